"""Readings of instruments against the gradient that is trained, numpy and closed forms, under every rule and task."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.source import Batch
from model.config import ModelConfig
from model.network import Network
from model.residual import RULES
from networks import TOKENS, WINDOWS, B, D, L, T, V, network, parameters, tapped
from train.core.state import State, hparams_of, initial_state
from train.gradflow.delta import true_gradients
from train.gradflow.norms import named, value
from train.instruments.blocks import split
from train.instruments.curvature import threshold
from train.instruments.gradients import grad_mean
from train.instruments.readings import json_of
from train.instruments.snapshot import Snapshot, read


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
@pytest.mark.parametrize("side", [0.99, 1.01])
def test_thresholds_are_where_a_parabola_starts_to_diverge(name, side, tiny, x64):
    """The spectral radius of (x, m) -> the next (x, m) under the optimizer's own rule, by numpy."""
    keys = {"optimizer.name": name, "optimizer.momentum": 0.7, "optimizer.schedule": "constant"}
    config = tiny(keys).variants[0].config
    hp = hparams_of(config, "float64")
    state = State({}, None, np.int32(10))
    curvature = side * float(threshold("sharpness", Snapshot(None, config, state, hp, None))["sharpness/threshold"])
    lr, beta = config.optimizer.lr, 0.7
    g = np.array([curvature, 0.0])  # the gradient as a row of (x, m)
    m = np.array([0.0, beta]) + g
    update = {"sgd": g, "momentum": m, "nesterov": g + beta * m}[name]
    radius = np.abs(np.linalg.eigvals(np.stack([np.array([1.0, 0.0]) - lr * update, m]))).max()
    assert (radius > 1) == (side > 1)


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"bias": True, "norm": "layer"}, {"activation": "swiglu", "kv_heads": 1}])
def test_the_parts_are_those_of_the_gradient_that_is_trained(model, x64):
    """O's and the MLP's last matrix by numpy, from what goes in and from jax.grad at what comes out; and the mean part
    of K's gradient is 0, as the softmax is blind to what all keys of a query share."""
    net = network(**model)
    params = parameters(net)
    snapshot = snapshot_of(net, params)

    def loss(offsets):
        anatomy, inputs = net.anatomy(params, TOKENS), {}
        carry = anatomy.carry
        for layer in range(L):

            def observe(name, value, layer=layer):
                inputs[name, layer] = value
                return value + offsets[name][layer] if name in offsets else value

            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], anatomy.blocks)
            carry = anatomy.block(block, jnp.int32(layer), carry, observe)
        return snapshot.loss_at(anatomy)(carry), inputs

    offsets = {f"{part}/output": jnp.zeros((L, B * T, D)) for part in ("attn", "mlp")}
    program = jax.jit(lambda: (grad_mean(snapshot), jax.grad(loss, has_aux=True)(offsets), tapped(net, params)[1]))
    parts, (deltas, inputs), result = program()
    trained = named(jax.jit(true_gradients)(result)["blocks"])
    for layer in range(L):
        for tag, place, output in (("attn_o", "attn/heads", "attn/output"), ("mlp_out", "mlp/hidden", "mlp/output")):
            a, delta = np.asarray(inputs[place, layer]), np.asarray(deltas[output][layer])
            mean = len(a) * np.outer(a.mean(0), delta.mean(0))
            covariance = (a - a.mean(0)).T @ (delta - delta.mean(0))
            np.testing.assert_allclose(mean + covariance, trained[tag][layer], rtol=1e-9, atol=1e-12)
            for name, part in (("mean", mean), ("covariance", covariance)):
                share = value(parts[f"grad_mean/{name}"][tag].value)[layer]
                np.testing.assert_allclose(share, np.linalg.norm(part) / np.linalg.norm(trained[tag][layer]), rtol=1e-9)
    assert (value(parts["grad_mean/mean"]["attn_k"].value) < 1e-12).all()
    for tag in ("attn_q", "attn_v", "mlp_in", "layer"):
        assert (value(parts["grad_mean/mean"][tag].value) > 1e-3).all()
    assert ("mlp_gate" in parts["grad_mean/mean"]) == ("activation" in model)


def test_equal_tokens_teach_v_and_o_but_not_q_and_k(x64):
    """All of their gradient is the mean part; that of Q and K is 0."""
    net = network(positions="none")
    tokens = np.full((B, T), 3)
    batch = Batch(tokens, np.random.default_rng(0).integers(0, V, (B, T)))
    snapshot = snapshot_of(net, parameters(net), batch)
    parts, result = jax.jit(lambda: (grad_mean(snapshot), snapshot.backward(snapshot.params)))()
    for tag in ("attn_v", "attn_o", "mlp_in", "mlp_out"):
        np.testing.assert_allclose(value(parts["grad_mean/mean"][tag].value), 1, rtol=1e-12)
        rest = value(parts["grad_mean/covariance"][tag].value)
        assert (np.isnan(rest) | (rest == 0)).all()
    sizes = {tag: np.abs(leaf).max() for tag, leaf in named(result.params["blocks"]).items()}
    assert max(sizes["attn_q"], sizes["attn_k"]) < 1e-14 * sizes["attn_v"]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["attention", "grad_mean"])
def test_they_read_every_rule(name, rule, tiny):
    """At weights where no branch is shut: all that is not lost in rounding is a number."""
    config = tiny({"model.residual": rule, "optimizer.name": "sgd"}).variants[0].config
    net = Network(config.model, V, config.data.context)
    hp = hparams_of(config, "float32")
    windows = np.random.default_rng(0).integers(0, V, (1, 4, config.data.context + 1))

    @jax.jit
    def program(params):
        state = initial_state(net, config, hp)._replace(params=params)
        return read(name, net, config, state, hp, None, windows)

    for tag, reading in json_of(jax.device_get(program(parameters(net)))).items():
        for part in reading.values() if isinstance(reading, dict) else [reading]:
            lost = tag == "grad_mean/covariance"
            assert lost or None not in (part if isinstance(part, list) else [part]), tag


@pytest.mark.slow
@pytest.mark.parametrize("task", ["masked", "regression", "classification"])
def test_the_split_is_of_the_loss_that_is_trained(task, x64):
    """Whatever the targets are, and however many values each has: delta by the split is delta by the taps."""
    network, batch = other_task(task)
    params = jax.jit(lambda: network.init(0))()
    snapshot = snapshot_of(network, params, batch)
    parts, delta = jax.jit(lambda: (split(snapshot), snapshot.backward(params).delta))()
    skip, branch = value(parts["split/skip"]), value(parts["split/branch"])
    whole = np.sqrt(skip**2 + branch**2 + 2 * np.asarray(parts["split/cosine"]) * skip * branch)
    np.testing.assert_allclose(whole, value(delta)[:-1], rtol=1e-9)


def snapshot_of(net, params, batch=None):
    """Returns a snapshot of a network at these weights, on WINDOWS or on `batch`."""
    batch = Batch(WINDOWS[:, :-1], WINDOWS[:, 1:]) if batch is None else batch
    batches = jax.tree.map(lambda leaf: np.asarray(leaf)[None], batch)
    config = SimpleNamespace(model=net.config)
    return Snapshot(net, config, State(params, None, np.int32(0)), SimpleNamespace(model=None), batches)


def other_task(task):
    rng, model = np.random.default_rng(0), ModelConfig(layers=2, width=8, heads=2)
    tokens = rng.integers(0, 7, (3, 4))
    if task == "regression":
        network = Network(model, None, 4, "float64", task="regression", outputs=3, channels=2)
        return network, Batch(rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 4, 3)))
    if task == "classification":
        network = Network(model, 7, 4, "float64", task="classification", outputs=5, pooled=True)
        return network, Batch(tokens, rng.integers(0, 5, 3))
    weights = np.array([[1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 1, 1]], np.float32)
    return Network(model, 7, 4, "float64"), Batch(tokens, rng.integers(0, 7, (3, 4)), weights)
