"""Heads and held-out scores of every task, from YAML to the summary."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.source import Batch
from networks import logits, masked_batch, parameters, same, tapped, untapped
from networks import task_network as network
from sources import opened
from train.cli import main
from train.core.evaluate import evaluate
from train.core.loss import losses
from train.gradflow.delta import flow
from train.gradflow.norms import value

# Heads


def test_a_pooled_output_is_told_from_the_mean_over_tokens(x64):
    each, pooled = network(outputs=3), network(outputs=3, pooled=True)
    tokens, params = masked_batch().inputs, parameters(each)
    assert params["head"].shape == (3, 8) and params["embed"].shape == (11, 8)
    result = logits(each, params, tokens=tokens)
    assert result.shape == (32, 3)
    same(logits(pooled, params, tokens=tokens), np.asarray(result).reshape(4, 8, 3).mean(axis=1), rtol=1e-9)


def test_one_hot_values_are_the_tokens_themselves(x64):
    ids, values = network(outputs=5), network(vocab_size=None, channels=11, outputs=5)
    tokens, params = masked_batch().inputs, parameters(ids)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, values.shapes())
    same(logits(values, params, tokens=np.eye(11)[tokens]), logits(ids, params, tokens=tokens), rtol=1e-9)


@pytest.mark.parametrize("more", [{"vocab_size": None}, {"channels": 3}, {"vocab_size": None, "channels": 3}])
def test_ends_that_do_not_fit(more, wording):
    with wording.raises(ValueError):
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
    result = np.asarray(logits(net, params, tokens=batch.inputs))
    each = np.asarray(losses(net, jnp.asarray(result), batch)).reshape(4, 8)
    weight = batch.weights * np.array([2, 1, 1, 0])[:, None]
    assert float(scores.loss) == pytest.approx((each * weight).sum() / weight.sum(), rel=1e-6)
    right = result.reshape(4, 8, 11).argmax(axis=-1) == batch.targets
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


def test_a_markov_chain_is_learned_to_its_floor(tmp_path, capsys, wording):
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
    wording(capsys.readouterr().err, run)


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


def test_a_task_that_the_data_is_not_for(tmp_path, capsys, wording):
    config = tmp_path / "c.yaml"
    config.write_text("name: t\ndata: {kind: copy}\ntask: {kind: regression}\n", encoding="utf-8")
    assert main(["train", str(config)]) != 0
    wording(capsys.readouterr().err, f"{config}:3: task.kind")
