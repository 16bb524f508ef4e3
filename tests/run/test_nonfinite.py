"""Steps that are not finite: seen at the exact step, traced to where they began, and each policy kept to the bit."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.source import DataSpec
from runs import arrays, killed_at, rows, summary
from train.cli import main
from train.core.dispatch import run_dispatch
from train.core.finite import all_finite, finite_by_norm, sound
from train.core.nonfinite_cause import cause_of, examine
from train.core.state import State, hparams_of, initial_state, network_of
from train.gradflow.norms import frobenius
from train.report.comparison import as_markdown, compare
from train.run.recovery import NonfiniteSteps, first_nonfinite
from train.store.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("shared_programs")
# Batches of one number to tell from four; those in `bad` hold a target whose square float32 cannot.
DATA = """
import numpy as np
from data.custom import OwnSource
from data.source import Batch, DataSpec


class Calm(OwnSource):
    bad = ()
    spec = DataSpec("regression", 4, None, 1, channels=1, pooled=True)

    def drawn(self, seed, step, batch):
        rng = np.random.default_rng([seed, step])
        inputs = rng.normal(size=(batch, 4, 1)).astype(np.float32)
        targets = np.mean(inputs, axis=1)
        return inputs, targets * np.float32(1e30) if step in self.bad else targets

    def train_batches(self, batch, seed, first_step, steps):
        drawn = [self.drawn(seed, step, batch) for step in range(first_step, first_step + steps)]
        return Batch(*(np.stack(part) for part in zip(*drawn)))

    def heldout_batches(self, batch, batches):
        return Batch(*(part[None] for part in self.drawn(99, 1000, batch))), np.ones((1, batch), np.float32)


class Stormy(Calm):
    bad = (9,)


class Ever(Calm):
    bad = range(9, 1000)


class Always(Calm):
    bad = range(1000)
"""
CONFIG = """
name: n
model: {layers: 2, width: 8, heads: 1, attention: full}
data: {kind: stormy_batches:Stormy, context: 4, batch: 4}
optimizer: {name: adam, lr: 1e-2, schedule: constant, warmup: 0, decay: l2, weight_decay: 0}
train: {steps: 16, eval_every: 8, eval_batches: 1, checkpoint_every: 4, steps_per_call: 4, unroll: 1}
watch: {every: 4, counterfactual: false}
"""
GROUP = [
    "optimizer={name: sgd, lr: 1e-2, schedule: constant, warmup: 0, clip: null}",
    "data.kind=stormy_batches:Calm",
    "variants={good: {}, bad: {optimizer.lr: 1e30}, late: {optimizer.lr: 2e-2}}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("nonfinite")
    (path / "stormy_batches.py").write_text(DATA)
    (path / "n.yaml").write_text(CONFIG)
    return path


@pytest.fixture
def train(folder, monkeypatch):
    """Runs a command line in the folder; the exit code."""
    monkeypatch.chdir(folder)
    return lambda name, *more: main(["train", "n.yaml", f"name={name}", *more])


# Policies


@pytest.fixture(scope="module")
def alone(folder, shared_programs):
    """`good` without the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "n.yaml", "name=alone", *GROUP[:2], "variants={good: {}}", "train.group=turn"]) == 0
    return folder / "runs" / "alone" / "good"


@pytest.mark.parametrize("group", ["turn", pytest.param("vmap", marks=pytest.mark.slow)])
def test_stop_ends_one_variant_and_leaves_the_others_alone(train, folder, alone, capsys, group):
    assert train(group, *GROUP, f"train.group={group}") == 1
    out = capsys.readouterr().out
    root = folder / "runs" / group
    ended, logged = summary(root / "bad"), rows(root / "bad")
    step = ended["first_nonfinite_step"]
    assert ended["exit_reason"] == "nonfinite" and 1 <= step <= 3 and ended["steps"] == step
    assert f"bad: step {step}: the " in out and "pass went bad first" in out and ended["nonfinite"] in out
    assert f"bad: stops at step {step}; there was no checkpoint yet" in out
    report = as_markdown(compare([root]))
    assert ended["nonfinite"] in report and f"the run stopped at step {step}" in report
    (event,) = EventAccumulator(str(root / "bad")).Reload().Tensors("verdict/nonfinite")
    text = event.tensor_proto.string_val[0]
    assert event.step == step and b"pass went bad first" in text and b"Try " in text
    assert [*logged] == [0, step] and logged[step]["optim/nonfinite"] == 1
    assert Checkpoints(root / "bad").steps() == []
    assert ended["verdict"]["state"] == "unstable" and f"at step {step}" in ended["verdict"]["why"]
    for name in ("good", "late"):
        assert summary(root / name)["exit_reason"] == "done" and summary(root / name)["first_nonfinite_step"] is None
        assert [*rows(root / name)] == [0, 4, 8, 12, 16]
    if group == "turn":
        assert rows(root / "good") == rows(alone) and arrays(root / "good") == arrays(alone)
    else:
        losses = [[row["loss/train"] for step, row in rows(run).items() if step] for run in (root / "good", alone)]
        np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_bad_again_at_the_same_step_and_may_then_skip(train, folder, capsys):
    assert train("stormy") == 1
    run = folder / "runs" / "stormy" / "main"
    first, state = rows(run), arrays(run)
    assert max(first) == 10 and Checkpoints(run).steps() == [4, 8]
    assert "main: step 10: the forward pass went bad first: the logits or the loss" in capsys.readouterr().out
    assert train("stormy") == 1
    assert rows(run) == first and arrays(run) == state
    # Killed before it was noticed, and gone on with.
    killed_at(8, "n.yaml", "name=stormy_killed")
    assert train("stormy_killed") == 1
    assert rows(folder / "runs" / "stormy_killed" / "main") == first
    # The policy decides on nothing before the bad step, so it may change now.
    assert train("stormy", "train.on_nonfinite=skip") == 0
    assert train("skipped", "train.on_nonfinite=skip") == 0
    other = Checkpoints(folder / "runs" / "skipped" / "main").arrays(16)
    for path, array in Checkpoints(run).arrays(16).items():
        np.testing.assert_allclose(array, other[path], rtol=1e-2, atol=1e-3)  # another program: equal up to rounding


@pytest.mark.slow
def test_skip_leaves_out_one_update_and_counts_the_step(train, folder):
    if not (run := folder / "runs" / "skipped" / "main").exists():
        assert train("skipped", "train.on_nonfinite=skip") == 0
    ended, logged = summary(run), rows(run)
    assert (ended["exit_reason"], ended["skipped_steps"], ended["first_nonfinite_step"]) == ("done", 1, 10)
    assert "the logits or the loss" in ended["nonfinite"]
    assert [row["optim/skipped"] for step, row in logged.items() if step] == [0, 0, 1, 0]
    assert all(np.isfinite(row["loss/train"]) and "nonfinite" not in row for step, row in logged.items() if step)
    killed_at(12, "n.yaml", "name=skipped_killed", "train.on_nonfinite=skip")
    assert train("skipped_killed", "train.on_nonfinite=skip") == 0
    other = folder / "runs" / "skipped_killed" / "main"
    assert rows(other) == logged and arrays(other, 16) == arrays(run, 16)
    again = summary(other)
    assert all(again[key] == ended[key] for key in ("skipped_steps", "first_nonfinite_step", "nonfinite", "verdict"))


@pytest.mark.slow
def test_updates_that_were_skipped_count_under_the_other_policy_too(train, folder, capsys):
    killed_at(16, "n.yaml", "name=changed", "train.on_nonfinite=skip")
    assert train("changed") == 0
    assert summary(folder / "runs" / "changed" / "main")["skipped_steps"] == 1
    assert "main: 1 update was left out; the first that was not finite was step 10" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "K", "every", "last"),
    [("Ever", 20, 5, 120), ("Always", 100, 10, 100)],
)
def test_a_run_that_skipped_too_often_ends_with_its_rows_in_order(train, folder, kind, K, every, last):
    keys = [f"data.kind=stormy_batches:{kind}", f"train.steps_per_call={K}", f"watch.every={every}"]
    keys += [
        "train.on_nonfinite=skip",
        "train.steps=200",
        f"train.eval_every={2 * K}",
        f"train.checkpoint_every={2 * K}",
    ]
    assert train(f"stuck_{kind}", *keys) == 1
    run = folder / "runs" / f"stuck_{kind}" / "main"
    assert max(rows(run)) == last and summary(run)["exit_reason"] == "nonfinite"


def test_the_memory_of_bad_steps():
    finite = np.array([True, False, True, True])
    memory = NonfiniteSteps().skipping(finite, 8).diagnosed(10, "why").diagnosed(12, "other")
    assert (memory.first, memory.cause, memory.skipped, memory.in_a_row) == (10, "why", 1, 0)
    memory = memory.skipping(np.array([True, True, False, False]), 12).skipping(np.zeros(4, bool), 16)
    assert (memory.skipped, memory.in_a_row) == (7, 6)
    assert first_nonfinite(finite, 8) == 10 and first_nonfinite(np.ones(4, bool), 8) is None
    assert NonfiniteSteps(**json.loads(json.dumps(vars(memory)))) == memory


# What is seen of a step, and where it began


@pytest.fixture(scope="module")
def bench(tiny):
    """(network, config, state, hyperparameters, batches [1, B, T+1]); plain numpy, to be spoilt."""
    config = tiny({"optimizer.clip": 1.0, "model.norm": "none", "watch.counterfactual": False}).variants[0].config
    network = network_of(config, DataSpec("lm", 8, 11, 11), "float32")
    hp = hparams_of(config)
    state = jax.device_get(jax.jit(lambda: initial_state(network, config, hp))())
    return network, config, state, hp, np.arange(36, dtype=np.int32).reshape(1, 4, 9) % 11


@pytest.fixture(scope="module")
def steps(bench):
    """(state, watched) -> (state, metrics, measurements) of a step by the dispatch of training; and its cause."""
    network, config, _, hp, batches = bench
    run = jax.jit(lambda state, every: run_dispatch(network, config, every, state, hp, None, batches), static_argnums=1)
    examined = jax.jit(lambda state: examine(network, config, state, hp, batches[0]))
    return (lambda state, watched: run(state, int(watched))), (lambda state: cause_of(examined(state), "float32"))


def spoilt(state: State, **factors: float) -> State:
    """The state with matrices of block 1, by their tags, or the whole embedding multiplied."""
    params = jax.tree.map(np.array, state.params)
    with np.errstate(over="ignore"):
        for tag, factor in factors.items():
            if tag == "embed":
                params["embed"] *= np.float32(factor)
            else:
                part, name = tag.split("_")
                matrices = params["blocks"][part]
                matrices[name if name in matrices else f"{name}_"]["kernel"][1] *= np.float32(factor)
    return state._replace(params=params)


def test_a_good_step_is_finite_and_has_no_cause(bench, steps):
    one, cause = steps
    for watched in (False, True):
        assert one(bench[2], watched)[1].finite.tolist() == [True]
    assert cause(bench[2]).phase == "none"


@pytest.mark.parametrize(
    ("factors", "phase", "block", "what"),
    [
        ({"attn_q": np.nan}, "weights", None, "layer_001/attn_q"),
        ({"embed": np.inf}, "weights", None, "embed"),
        ({"embed": 1e22}, "forward", 0, "attention's scores"),
        ({"attn_q": 1e20, "attn_k": 1e22}, "forward", 1, "attention's scores"),
        ({"attn_o": 1e20, "mlp_in": 1e22}, "forward", 1, "the MLP's hidden units"),
        ({"mlp_in": 1e22, "mlp_out": 1e22}, "forward", 1, "its output"),
        ({"attn_q": 1e-30, "attn_k": 1e30, "attn_o": 1e14}, "backward", 1, "attn_q"),
    ],
)
def test_where_it_began(bench, steps, factors, phase, block, what):
    one, cause = steps
    state = spoilt(bench[2], **factors)
    began = cause(state)
    assert (began.phase, began.block) == (phase, block) and what in began.what, str(began)
    for watched in (False, True):
        assert one(state, watched)[1].finite.tolist() == [False]


def test_an_infinite_gradient_is_seen_before_clipping_and_a_huge_one_is_not_called_one(bench, steps):
    large = spoilt(bench[2], mlp_out=1e8)
    for watched in (False, True):
        _, metrics, stats = steps[0](large, watched)
        assert metrics.finite
    assert stats.clip_factor < 1e-3  # and it is clipped


def test_an_optimizer_whose_averages_overflow_leaves_no_good_state(tiny):
    """Adam's second moment of a gradient of 1e20 is infinite: what is trained on with it stands still for ever."""
    state = State({"w": np.ones(3, np.float32)}, {"nu": np.array([1, np.inf], np.float32)}, np.int32(0))
    assert not sound(state)
    assert sound(state._replace(optimizer={"best": np.float32(np.inf), "count": np.int32(3)}))
    assert not sound(state._replace(optimizer=(), ema={"w": np.array([np.nan], np.float32)}))
    assert all_finite({"ids": np.arange(3)}) and all_finite(()) and not all_finite([jnp.ones(2), jnp.array([jnp.inf])])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3,), pytest.param((65, 128), marks=pytest.mark.slow), (4, 128, 128)], ids=str)
def test_one_entry_anywhere_is_seen(both_paths, shape, dtype):
    """A maximum on a CPU may lose nan (jax 0.10 to 0.12)."""
    rng = np.random.default_rng(0)
    huge = jnp.asarray(rng.normal(size=shape) * 1e37, dtype)
    ask = jax.jit(lambda tree: all_finite([jnp.ones(2), tree]))
    assert ask(huge)
    for bad in (np.nan, np.inf, -np.inf):
        for at in (0, huge.size // 2, huge.size - 1, *rng.integers(0, huge.size, 5)):
            assert not ask(huge.reshape(-1).at[at].set(bad).reshape(shape)), (bad, at)


def test_a_norm_tells_whether_its_entries_are_finite(both_paths):
    """A norm near or beyond the end of the entries' range does not decide: the entries are asked themselves."""

    @partial(jax.jit, static_argnums=1)
    def ask(x, exponent=0):
        return finite_by_norm(frobenius(x).times(exponent), lambda: {"w": x * jnp.float32(2.0**exponent)})

    assert all(ask(jnp.full((30, 30), size)) for size in (0.0, 1e-40, 1.0, 1e36, 1e37, 3e38))
    for size in (1.0, 3e38):
        for bad in (np.nan, np.inf, -np.inf):
            assert not ask(jnp.where(jnp.arange(900) == 450, bad, size))
    # 2^127.9 and 2^128.1, out of entries that are in range.
    assert ask(jnp.array([2**27.9]), 100) and ask(jnp.full(100, 2**27.9), 100)
    assert not ask(jnp.array([2**28.1]), 100) and not ask(jnp.array([0, 2**28.1]), 100)
