"""Losses: by hand, masked, and by chunks of the logits."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.source import Batch
from model.network import Network
from networks import logits, masked_batch, parameters, same
from networks import task_network as network
from train.core.evaluate import evaluate
from train.core.loss import losses, tapped_loss
from train.core.state import hparams_of, program_structure, state_at
from train.core.step import train_step
from train.gradflow.delta import backward
from train.gradflow.norms import value

run_step = jax.jit(train_step, static_argnums=(0, 1, 5))


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
    result = []
    for parts in (1, 4):
        config = tiny(keys | {"optimizer.accumulate": parts}).variants[0].config
        net, hp = Network(config.model, 11, 8, "float64"), hparams_of(config, "float64")
        state = state_at(config, hp, parameters(net, 0.2))
        result.append(run_step(net, config, state, hp, masked_batch(), watched))
    (whole, metrics, stats), (after, parted, seen_in_parts) = result
    assert float(parted.loss) == pytest.approx(float(metrics.loss), rel=1e-12)
    same(after.params, whole.params, rtol=1e-9, atol=1e-13)
    if watched:
        same(value(seen_in_parts.flow.delta), value(stats.flow.delta), rtol=1e-6)


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
def test_losses_and_scores_by_chunks_are_those_of_all_logits(x64, ends, most, chunk):
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

    def figures(net, params):
        measured = backward(tapped_loss(net, batch, extras, None), params, 2)
        plain = jax.value_and_grad(lambda p: tapped_loss(net, batch, extras, None)(p, None, None)[0])(params)
        return measured, plain, evaluate(net, params, {}, None, jax.tree.map(lambda x: x[None], batch), np.ones((1, 4)))

    texts, result = [], []
    for limit in (2**24, most):
        limited = dataclasses.replace(net, most_logits=limit)
        program = jax.jit(partial(figures, limited)).lower(params)
        texts.append(program.as_text())
        result.append(program.compile()(params))
    same(result[1], result[0], atol=1e-15)
    rows, columns = 4 * 8, net.outputs or 11
    assert net.pooled or f"tensor<{rows}x{columns}xf64>" in texts[0]
    assert f"tensor<{rows}x{columns}xf64>" not in texts[1]
    assert net.pooled == (texts[0] == texts[1]) and f"tensor<{4 * chunk or 4}x{columns}xf64>" in texts[1]
