"""Losses and heads of every task: hand-computed, masked, and from YAML to the summary."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.source import Batch
from model import transformer
from model.config import ModelConfig
from model.network import Network
from networks import logits, parameters, same, tapped, untapped
from sources import opened
from train.cli import main
from train.core.evaluate import evaluate
from train.core.loss import losses, tapped_loss
from train.core.state import hparams_of, program_structure, state_at
from train.core.step import train_step
from train.gradflow.delta import backward, flow
from train.gradflow.norms import value

run_step = jax.jit(train_step, static_argnums=(0, 1, 5))


def network(**ends: Any) -> Network:
    return Network(
        ModelConfig(layers=2, width=8, heads=2, norm="none"), ends.pop("vocab_size", 11), 8, "float64", **ends
    )


def masked_batch(rows: int = 4) -> Batch:
    """Row i has i + 1 unmasked targets, so that a mean of means differs from the mean."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 11, (rows, 9), np.int32)
    weights = (np.arange(8)[None, :] <= np.arange(rows)[:, None]).astype(np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights)


# The loss


def test_masked_targets_have_no_say(x64):
    net, batch = network(), masked_batch()
    params = parameters(net)
    program = jax.jit(lambda b: tapped_loss(net, b, None, None)(params, None, None)[0])  # pyright: ignore[reportArgumentType]

    def mean(**other) -> float:
        return float(program(batch._replace(**other)))

    each = np.asarray(losses(net, logits(net, params, tokens=batch.inputs), batch)).reshape(4, 8)
    assert mean() == pytest.approx((each * batch.weights).sum() / 10, rel=1e-12)
    assert mean(targets=np.where(batch.weights > 0, batch.targets, 0)) == mean() != mean(weights=None)
    assert mean(weights=np.ones_like(batch.weights)) == pytest.approx(mean(weights=None), rel=1e-12)


@pytest.mark.parametrize("watched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_accumulated_masked_batches_are_the_large_one(x64, tiny, watched):
    """The mean over all targets of the batch, not the mean of the micro-batches' means."""
    keys = {"optimizer.name": "sgd", "optimizer.lr": 0.5, "train.dtype": "float64", "model.norm": "none"}
    keys |= {"watch.counterfactual": False, "model.width": 8}
    found = []
    for parts in (1, 4):
        config = tiny(keys | {"optimizer.accumulate": parts}).variants[0].config
        net, hp = Network(config.model, 11, 8, "float64"), hparams_of(config, "float64")
        state = state_at(config, hp, parameters(net, 0.2))
        found.append(run_step(net, config, state, hp, masked_batch(), watched))
    (whole, metrics, seen), (after, parted, seen_in_parts) = found
    assert float(parted.loss) == pytest.approx(float(metrics.loss), rel=1e-12)
    same(after.params, whole.params, rtol=1e-9, atol=1e-13)
    if watched:
        same(value(seen_in_parts.flow.delta), value(seen.flow.delta), rtol=1e-6)


def test_label_smoothing_and_z_loss_by_hand(x64):
    net = network()
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(5, 11)))
    targets = np.array([0, 3, 3, 10, 7])
    batch = Batch(None, targets)
    log_z = np.log(np.exp(scores).sum(axis=1))
    log_p = np.asarray(scores) - log_z[:, None]
    wanted = np.full((5, 11), 0.2 / 11)
    wanted[np.arange(5), targets] += 0.8
    got = losses(net, scores, batch, {"task.label_smoothing": 0.2, "task.z_loss": 0.03})
    np.testing.assert_allclose(got, -(wanted * log_p).sum(axis=1) + 0.03 * log_z**2, rtol=1e-12)
    np.testing.assert_allclose(losses(net, scores, batch), -log_p[np.arange(5), targets], rtol=1e-12)


def test_smoothing_is_traced_and_off_is_another_program(tiny):
    configs = [tiny({"task.label_smoothing": value}).variants[0].config for value in (0.0, 0.1, 0.2)]
    numbers = [hparams_of(config).model for config in configs]
    assert "task.label_smoothing" not in numbers[0] and numbers[2]["task.label_smoothing"] == np.float32(0.2)
    assert program_structure(configs[1]) == program_structure(configs[2]) != program_structure(configs[0])


def test_squared_errors_by_hand(x64):
    net = network(task="regression", outputs=2, vocab_size=None, channels=3)
    got = losses(net, jnp.asarray([[1.0, 2.0], [0.0, 4.0]]), Batch(None, np.array([[[0.0, 0.0], [3.0, 4.0]]])))
    np.testing.assert_allclose(got, [2.5, 4.5])


def test_the_training_loss_reads_the_numbers_of_the_task(x64):
    net, batch = network(), masked_batch()
    params = parameters(net)

    @jax.jit
    def loss(numbers):
        return tapped_loss(net, batch, numbers, None)(params, None, None)[0]  # pyright: ignore[reportArgumentType]

    plain, smoothed = loss({}), loss({"task.label_smoothing": np.float64(0.3)})
    partition = np.asarray(jax.nn.logsumexp(logits(net, params, tokens=batch.inputs), axis=-1)).reshape(4, 8)
    weight = batch.weights
    penalty = 0.1 * (partition**2 * weight).sum() / weight.sum()
    assert float(loss({"task.z_loss": np.float64(0.1)}) - plain) == pytest.approx(penalty, rel=1e-9)
    assert abs(smoothed - plain) > 1e-6


@pytest.mark.parametrize(
    ("ends", "most", "chunk"),
    [
        ({}, 100, 2),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in (
                ({"outputs": 5}, 1, 1),
                ({"task": "regression", "outputs": 2}, 8 * 4, 4),
                ({"pooled": True}, 1, 0),
            )
        ),
    ],
)
def test_losses_and_scores_by_chunks_are_those_of_all_logits(x64, monkeypatch, ends, most, chunk):
    """`chunk`: tokens of each of four sequences whose logits are to exist at a time."""
    net, batch = network(**ends), masked_batch()
    if net.task == "regression":
        batch = batch._replace(targets=np.random.default_rng(0).normal(size=(4, 8, 2)))
    elif net.pooled:
        batch = Batch(batch.inputs, batch.targets[:, 0])
    else:
        batch = batch._replace(targets=batch.targets % (net.outputs or 11))
    net = dataclasses.replace(net, config=net.config.model_copy(update={"logit_cap": 2.0, "base_width": 4}))
    params = parameters(net)
    extras = {"task.label_smoothing": np.float64(0.3), "task.z_loss": np.float64(0.1)}

    def figures(params):
        measured = backward(tapped_loss(net, batch, extras, None), params, 2)
        plain = jax.value_and_grad(lambda p: tapped_loss(net, batch, extras, None)(p, None, None)[0])(params)
        return measured, plain, evaluate(net, params, {}, None, jax.tree.map(lambda x: x[None], batch), np.ones((1, 4)))

    texts, found = [], []
    for limit in (2**24, most):
        monkeypatch.setattr(transformer, "MOST_LOGITS", limit)
        program = jax.jit(lambda p: figures(p)).lower(params)
        texts.append(program.as_text())
        found.append(program.compile()(params))
    same(found[1], found[0], atol=1e-15)
    rows, columns = 4 * 8, net.outputs or 11
    assert net.pooled or f"tensor<{rows}x{columns}xf64>" in texts[0]
    assert f"tensor<{rows}x{columns}xf64>" not in texts[1]
    assert net.pooled == (texts[0] == texts[1]) and f"tensor<{4 * chunk or 4}x{columns}xf64>" in texts[1]


# Heads


def test_a_pooled_output_is_told_from_the_mean_over_tokens(x64):
    each, pooled = network(outputs=3), network(outputs=3, pooled=True)
    tokens, params = masked_batch().inputs, parameters(each)
    assert params["head"].shape == (3, 8) and params["embed"].shape == (11, 8)
    found = logits(each, params, tokens=tokens)
    assert found.shape == (32, 3)
    same(logits(pooled, params, tokens=tokens), np.asarray(found).reshape(4, 8, 3).mean(axis=1), rtol=1e-9)


def test_one_hot_values_are_the_tokens_themselves(x64):
    ids, values = network(outputs=5), network(vocab_size=None, channels=11, outputs=5)
    tokens, params = masked_batch().inputs, parameters(ids)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, values.shapes())
    same(logits(values, params, tokens=np.eye(11)[tokens]), logits(ids, params, tokens=tokens), rtol=1e-9)


@pytest.mark.parametrize("more", [{"vocab_size": None}, {"channels": 3}, {"vocab_size": None, "channels": 3}])
def test_ends_that_do_not_fit(more):
    with pytest.raises(ValueError, match="expected vocab_size, or channels and outputs"):
        network(**more)


def test_gradient_flow_of_a_pooled_model_of_real_values(x64):
    """Compares delta and the norms of every table with untapped differentiation."""
    net = network(task="regression", outputs=2, vocab_size=None, channels=3, pooled=True)
    draw = np.random.default_rng(0)
    batch, params = Batch(draw.normal(size=(4, 8, 3)), draw.normal(size=(4, 2))), parameters(net)
    (loss, result), (whole, grads) = tapped(net, params, None, batch), untapped(net, params, None, batch)
    assert float(loss) == pytest.approx(float(whole), rel=1e-12)
    seen = jax.jit(flow)(result).grad
    for name in ("embed", "head"):
        assert value(seen[name]) == pytest.approx(float(jnp.linalg.norm(grads[name])), rel=1e-6)


def test_held_out_scores_count_rows_and_targets_by_weight(x64):
    net, batch = network(), masked_batch()
    params = parameters(net)
    two = Batch(*(np.stack([leaf, leaf[::-1]]) for leaf in batch))
    rows = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], np.float32)  # each row once, the last and the first one
    # Held-out losses are plain means, whatever the training loss adds.
    extras = {"task.label_smoothing": np.float64(0.3), "task.z_loss": np.float64(0.1)}
    scores = jax.jit(lambda p: evaluate(net, p, extras, None, two, rows))(params)
    found = np.asarray(logits(net, params, tokens=batch.inputs))
    each = np.asarray(losses(net, jnp.asarray(found), batch)).reshape(4, 8)
    weight = batch.weights * np.array([2, 1, 1, 0])[:, None]
    assert float(scores.loss) == pytest.approx((each * weight).sum() / weight.sum(), rel=1e-6)
    right = found.reshape(4, 8, 11).argmax(axis=-1) == batch.targets
    assert float(scores.accuracy) == pytest.approx((right * weight).sum() / weight.sum(), rel=1e-6)


# From YAML

RUN = """
name: t
runs_dir: {folder}
model: {{layers: 1, width: 16, heads: 2, init_std: 0.3, norm: none}}
data: {data}
optimizer: {{warmup: 1, lr: 3e-2, min_lr: 1e-3, clip: null}}
train: {{steps: {steps}, eval_every: {steps}, eval_batches: 8, checkpoint_every: {steps}, unroll: 1}}
watch: {{every: 0}}
"""


def trained(folder, data: str, steps: int, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (summary, last row of the log) of a run through the command line."""
    config = folder / "config.yaml"
    config.write_text(RUN.format(folder=folder / "runs", data=data, steps=steps), encoding="utf-8")
    assert main(["train", str(config), *more]) == 0
    run = folder / "runs" / "t" / "main"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.loads((run / "summary.json").read_text()), rows[-1]


def test_a_markov_chain_is_learned_to_its_floor(tmp_path, capsys):
    chain = "[[0.9, 0.1, 0], [0.05, 0.9, 0.05], [0, 0.1, 0.9]]"
    data = f"{{kind: markov, transition: {chain}, context: 16, batch: 32}}"
    summary, row = trained(tmp_path, data, 150)
    assert summary["floors"] == {"floor": row["loss/floor"], "floor_unigram": row["loss/floor_unigram"]}
    assert summary["loss_val"] == pytest.approx(row["loss/floor"], abs=0.05)
    assert row["loss/floor"] < row["loss/floor_unigram"] - 0.3
    assert summary["accuracy_val"] == pytest.approx(0.9, abs=0.03)
    assert "ideal predictor 0.3" in " ".join(capsys.readouterr().out.split())
    run = tmp_path / "runs" / "t" / "main"
    assert main(["sample", str(run), "--prompt", "a"]) == 2
    assert "data.kind is markov, which has no text" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_regression_is_logged_without_perplexity_or_accuracy_and_probed(tmp_path):
    keys = {"kind": "linear_regression", "dimensions": 2, "noise": 3.0, "context": 8, "batch": 4}
    summary, row = trained(tmp_path, json.dumps(keys), 4, "train.eval_batches=2")
    assert not {"perplexity/val", "accuracy/val"} & row.keys() and summary["accuracy_val"] is None
    known = opened(**keys).floors(4, 2)  # of the eight rows that are evaluated
    assert summary["floors"] == {"floor": known[""], "floor_zero": known["zero"]}
    file = tmp_path / "probe.json"
    assert main(["probe", str(tmp_path / "config.yaml"), "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["loss"] > 0 and result["grad"]["embed"] > 0 and result["grad"]["head"] > 0


def test_a_task_that_the_data_is_not_for(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("name: t\ndata: {kind: copy}\ntask: {kind: regression}\n", encoding="utf-8")
    assert main(["train", str(config)]) != 0
    lines = "".join(capsys.readouterr())
    assert "task.kind: data.kind copy is for lm, got regression" in lines and "Traceback" not in lines
