"""Synthetic tasks: targets by an independent rule, floors by the ideal predictor, rows that a resume cannot change."""

import math
from typing import Any

import numpy as np
import pytest

from data import DataError
from data.batches import Draws
from data.config import KINDS
from data.source import Batch
from data.synthetic.base import Synthetic
from data.synthetic.tasks import Markov, posterior_means
from sources import opened, refused

SMALL: dict[str, dict[str, Any]] = {
    "markov": {"symbols": 5, "context": 40},
    "copy": {"symbols": 7, "context": 12},
    "reverse": {"symbols": 7, "context": 12},
    "sort": {"symbols": 7, "context": 13},
    "induction": {"symbols": 7, "context": 14},
    "addition": {"digits": 2},
    "modular": {"modulus": 7, "val_fraction": 0.3},
    "linear_regression": {"dimensions": 3, "context": 16},
}


def source(kind: str, **more: Any) -> Synthetic:
    return opened(kind=kind, **{**SMALL[kind], **more})


def rows(batch: Batch) -> Batch:
    """Leaves [N, ...] of leaves [S, B, ...]."""
    return Batch(*(None if leaf is None else leaf.reshape(-1, *leaf.shape[2:]) for leaf in batch))


def strings(batch: Batch) -> np.ndarray:
    """[N, T+1]: the inputs and the last target."""
    return np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1)


@pytest.mark.parametrize("kind", SMALL)
def test_a_row_depends_on_seed_and_step_alone(kind):
    data = source(kind)
    whole = data.train_batches(4, 3, 0, 6)
    for first, steps in ((0, 1), (2, 3), (5, 1)):
        part = data.train_batches(4, 3, first, steps)
        for a, b in zip(whole, part, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a[first : first + steps], b)
    assert not np.array_equal(whole.inputs[0], whole.inputs[1])
    assert not np.array_equal(whole.inputs, data.train_batches(4, 4, 0, 6).inputs)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.code.startswith(".synthetic")])
def test_form_and_dtypes(kind):
    data = source(kind)
    spec, batch = data.spec, data.train_batches(3, 0, 10, 2)
    assert batch.inputs.shape[:3] == (2, 3, spec.context) and batch.targets.shape == (2, 3, spec.context)
    if spec.vocab_size is None:
        assert batch.inputs.dtype == np.float32 and batch.inputs.shape[3] == spec.channels
    else:
        assert batch.inputs.dtype == np.int32 and 0 <= batch.inputs.min() <= batch.inputs.max() < spec.vocab_size
        assert 0 <= batch.targets.min() <= batch.targets.max() < spec.outputs
        np.testing.assert_array_equal(batch.inputs[..., 1:], batch.targets[..., :-1])
    if batch.weights is not None:
        assert set(np.unique(batch.weights)) <= {0.0, 1.0} and (batch.weights.sum(axis=2) >= 1).all()
    assert data.sha256 == source(kind).sha256 != source(kind, task_seed=1).sha256
    assert data.name == kind and "\n" not in data.details
    assert min(data.losses.values()) == data.losses[""]


@pytest.mark.parametrize("kind", ["markov", "induction", "linear_regression"])
def test_no_row_to_train_on_is_held_out(kind):
    """Also where the seeds of the run and of the task are one and the same."""
    data = source(kind, task_seed=0)
    held = {row.tobytes() for row in data.heldout.inputs}
    trained = data.train_batches(16, 0, 0, 200).inputs
    assert len(held) > 4000 and held.isdisjoint(row.tobytes() for row in trained.reshape(3200, *trained.shape[2:]))


# Targets by another rule


@pytest.mark.parametrize(("kind", "rule"), [("copy", list), ("reverse", lambda x: x[::-1]), ("sort", sorted)])
def test_answers(kind, rule):
    batch = rows(source(kind).train_batches(50, 0, 0, 4))
    lengths = set()
    for string, weights in zip(strings(batch).tolist(), batch.weights, strict=True):
        question = [token for token in string[: string.index(7)] if token != 8]
        n = len(question)
        assert string == [8] * (len(string) - 2 * n - 1) + question + [7] + list(rule(question))
        assert weights.tolist() == [0.0] * (len(weights) - n) + [1.0] * n
        lengths.add(n)
    assert lengths == {1, 2, 3, 4, 5, 6}


def test_induction():
    batch = rows(source("induction").train_batches(50, 0, 0, 4))
    places = set()
    for string, weights in zip(strings(batch).tolist(), batch.weights, strict=True):
        triggers = [t for t, token in enumerate(string) if token == 7]
        assert len(triggers) >= 2 and triggers[-1] == len(string) - 2
        assert {string[t + 1] for t in triggers} == {string[triggers[0] + 1]} != {7}
        assert np.flatnonzero(weights).tolist() == triggers[1:]  # the target at t is the token at t + 1
        places.add(triggers[0])
    assert len(places) >= 5


def test_addition():
    data = source("addition")
    for batch in (rows(data.train_batches(50, 0, 0, 4)), data.heldout):
        for string, weights in zip(strings(batch)[:200].tolist(), batch.weights, strict=False):
            text = "".join("0123456789+="[token] for token in string)
            left, right = text.split("=")
            assert len(right) == 3 and int(right) == sum(map(int, left.split("+")))
            assert weights.tolist() == [0.0] * 5 + [1.0] * 3


@pytest.mark.parametrize(("operation", "rule"), [("add", "+"), ("subtract", "-"), ("multiply", "*")])
def test_modular(operation, rule):
    data = source("modular", operation=operation)
    for batch in (rows(data.train_batches(50, 0, 0, 4)), data.heldout):
        for a, b, equals, c in strings(batch).tolist():
            assert equals == 7 and eval(f"({a} {rule} {b}) % 7") == c
        assert (batch.weights == [0, 0, 1]).all()


def pairs(batch: Batch, kind: str) -> set[tuple[int, ...]]:
    columns = [0, 1] if kind == "modular" else [0, 1, 3, 4]
    return set(map(tuple, batch.inputs[:, columns].tolist()))


@pytest.mark.parametrize("kind", ["modular", "addition"])
def test_no_pair_is_both_trained_on_and_held_out(kind):
    data = source(kind, val_fraction=0.3)
    trained = pairs(rows(data.train_batches(100, 1, 0, 200)), kind)
    held_out = pairs(data.heldout, kind)
    assert not trained & held_out
    everything = 49 if kind == "modular" else 10_000
    assert len(held_out) == pytest.approx(0.3 * everything, rel=0.3 if kind == "addition" else 0.03)
    assert len(trained) > 0.9 * (everything - len(held_out)) * (1 if kind == "modular" else 0.9)
    other = pairs(source(kind, val_fraction=0.3, task_seed=1).heldout, kind)
    assert other != held_out


# Floors


def test_the_chain_is_that_of_its_transitions_and_its_floor_near_the_entropies():
    data: Any = source("markov", context=200)
    examples = strings(rows(data.train_batches(200, 0, 0, 20)))
    counts = np.zeros((5, 5))
    np.add.at(counts, (examples[:, :-1].ravel(), examples[:, 1:].ravel()), 1)
    joint = counts / counts.sum()
    conditional = joint / joint.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(conditional, data.transition, atol=0.01)
    np.testing.assert_allclose(data.stationary @ data.transition, data.stationary, atol=1e-12)
    assert data.losses[""] == pytest.approx(-np.sum(joint * np.log(conditional)), abs=0.003)
    marginal = joint.sum(axis=0)
    assert data.losses["unigram"] == pytest.approx(-np.sum(marginal * np.log(marginal)), abs=0.003)
    assert data.losses[""] < data.losses["unigram"] - 0.1
    np.testing.assert_allclose(np.bincount(examples[:, 0]) / len(examples), data.stationary, atol=0.03)


def evaluated(data: Synthetic, batch: int, batches: int | None) -> list[tuple[np.ndarray, ...]]:
    """The rows of an evaluation, each as (inputs, targets)."""
    held, weights = data.heldout_batches(batch, batches)
    return [(x, y) for x, y, weight in zip(*rows(held)[:2], weights.ravel(), strict=True) if weight]


@pytest.mark.parametrize(("batch", "batches"), [(2, 3), (3, None)])
def test_a_given_chain_by_hand(batch, batches):
    chain = [[0.9, 0.1], [0.5, 0.5]]
    data = source("markov", symbols=16, transition=chain)
    assert data.spec.vocab_size == 2
    pairs = [(int(a), int(b)) for x, y in evaluated(data, batch, batches) for a, b in zip(x, y, strict=True)]
    share = sum(b for _, b in pairs) / len(pairs)
    by_hand = {
        "": -sum(math.log(chain[a][b]) for a, b in pairs) / len(pairs),
        "unigram": -share * math.log(share) - (1 - share) * math.log(1 - share),
    }
    assert data.floors(batch, batches) == pytest.approx(by_hand, rel=1e-12)


def test_chains_whose_losses_are_certain():
    turn = source("markov", symbols=16, transition=[[0, 1], [1, 0]])
    assert turn.losses == {"": 0.0, "unigram": pytest.approx(math.log(2), abs=1e-6)}
    assert "ideal predictor 0.0000" in turn.details
    assert source("markov", sharpness=0.0).losses[""] == pytest.approx(math.log(5))


def test_a_chain_in_two_parts_is_refused(wording):
    parts = {"symbols": 16, "transition": [[1.0, 0.0], [0.0, 1.0]]}
    wording(refused(kind="markov", **parts), "data.transition")
    wording(refused(kind="markov", sharpness=100.0, task_seed=1), "data.sharpness")


def test_the_hash_is_of_what_the_task_reads():
    """So that another kind's next option leaves a finished run what it was."""
    task = source("markov").config
    same = task.model_copy(update={"digits": 5, "batch": 7, "seed": 3, "corpus": "shakespeare"})
    hashes = {Markov(config).sha256 for config in (task, same)}
    assert len(hashes) == 1
    for change in ({"sharpness": 2.5}, {"symbols": 6}, {"context": 41}, {"val_fraction": 0.2}, {"task_seed": 1}):
        hashes.add(Markov(task.model_copy(update=change)).sha256)
    assert len(hashes) == 6


@pytest.mark.parametrize(("batch", "batches"), [(2, 3), (64, None)])
@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_the_floor_of_regression_is_the_loss_of_ridge_on_the_rows_of_the_evaluation(noise, batch, batches):
    data, errors = source("linear_regression", noise=noise), []
    inputs, values = (np.stack(arrays).astype(float) for arrays in zip(*evaluated(data, batch, batches), strict=True))
    x, y = inputs[:, 0::2, :3], values[:, 0::2, None]
    for k in range(8):
        # The posterior mean of w ~ N(0, I/3): ridge regression of strength 3 noise^2, here through its dual.
        seen = x[:, :k]
        gram = seen @ seen.mT + 3 * noise**2 * np.eye(k)
        w = seen.mT @ (np.linalg.pinv(gram, rcond=1e-12, hermitian=True) @ y[:, :k])
        errors.append((x[:, k : k + 1] @ w - y[:, k : k + 1]) ** 2)
    by_hand = {"": np.mean(errors), "zero": np.mean(np.square(y))}
    assert data.floors(batch, batches) == pytest.approx(by_hand, rel=1e-6)


def test_without_noise_d_examples_tell_everything():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 6, 3))
    y = np.einsum("nkd,nd->nk", x, generator.normal(size=(50, 3)))
    means = posterior_means(x, y, 0.0)
    np.testing.assert_allclose(means[:, 3:], y[:, 3:], atol=1e-8)
    np.testing.assert_array_equal(means[:, 0], 0)


def test_regression_rows_hold_one_w():
    batch = rows(source("linear_regression").train_batches(5, 0, 0, 2))
    for inputs, targets, weights in zip(*batch, strict=True):
        assert (inputs[0::2, 3] == 0).all() and (inputs[1::2, :3] == 0).all()
        np.testing.assert_array_equal(inputs[1::2, 3], targets[0::2])
        np.testing.assert_array_equal(weights, [1, 0] * 8)
        assert np.linalg.lstsq(inputs[0::2, :3], targets[0::2], rcond=None)[1] < 1e-8


@pytest.mark.parametrize("kind", ["copy", "sort", "induction", "addition", "modular"])
def test_no_fixed_probabilities_are_better_on_the_held_out_rows(kind):
    data = source(kind)
    rows, floor = data.heldout, data.losses["unigram"]
    asked = rows.targets[rows.weights > 0]
    share = np.bincount(asked, minlength=data.spec.outputs) / len(asked)
    loss = lambda p: float(-np.mean(np.log(p[asked])))  # noqa: E731
    assert loss(np.where(share > 0, share, 1.0)) == pytest.approx(floor, rel=1e-12)
    other = np.random.default_rng(0).dirichlet(20 * share + 0.01, 50)
    assert min(loss(np.maximum(p, 1e-12)) for p in other) > floor > data.losses[""] + 0.1 == 0.1


# The split


def test_all_modular_pairs_are_used_once():
    task: Any = source("modular")
    train, val = task.split
    assert len(train) == 34 and len({*map(tuple, train.tolist()), *map(tuple, val.tolist())}) == 49
    batch, weights = task.heldout_batches(4, None)
    assert weights.sum() == 15 and batch.inputs.shape == (4, 4, 3)


def test_hash_split_is_near_its_fraction():
    task: Any = source("addition", digits=3)
    every = np.stack(np.meshgrid(np.arange(1000), np.arange(1000)), axis=-1).reshape(-1, 2)
    assert task.is_heldout(every).mean() == pytest.approx(0.1, abs=0.002)


def test_a_split_without_rows_is_refused(wording):
    wording(refused(kind="modular", modulus=2, val_fraction=0.01), "data.val_fraction")
    with wording.raises(DataError, "data.val_fraction"):
        source("addition", digits=1, val_fraction=1e-6).rows(Draws(0, 1, 0, 1, 1), True)
