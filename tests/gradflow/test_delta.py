"""Gradients and delta of the tapped backward pass against definitions without taps or scans (float64).

The dense definition composes the blocks by hand and adds an offset to the stream at every depth: delta_l is the
gradient of the mean loss with respect to the offset at depth l, at zero.
"""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from model.config import ModelConfig
from model.network import Network
from model.residual import Context, numbers_of
from networks import B, D, L, T, V, network, parameters
from train.core.batch import batch_of
from train.core.loss import tapped_loss
from train.gradflow import delta
from train.gradflow.delta import backward, flow, head_table, mean_of_microbatches, true_gradients
from train.gradflow.gradients import weight_dot_grad
from train.gradflow.norms import Norm, log10, named, value
from train.gradflow.verdict import judge, qk_rounded

WINDOWS = np.random.default_rng(0).integers(0, V, size=(B, T + 1)).astype(np.int32)
jitted_flow = jax.jit(flow)


@partial(jax.jit, static_argnums=0)
def tapped(network: Network, params, skip_scale, windows):
    loss, result, _ = backward(
        tapped_loss(network, windows, {"skip_scale": skip_scale}, None), params, network.config.layers
    )
    return loss, result


@partial(jax.jit, static_argnums=0)
def untapped(network: Network, params, skip_scale, windows):
    """Returns jax.grad of the training loss without taps."""
    loss: Any = tapped_loss(network, windows, {"skip_scale": skip_scale}, None)
    return jax.value_and_grad(lambda p: loss(p, None, None)[0])(params)


def tail(network: Network, params, table, skip_scale, depth, x, offsets=None):
    """Returns the mean loss from the stream x at `depth`, composed of the model's blocks without scan or taps."""
    model = nnx.merge(network._graph, params)
    graph, stacked = nnx.split(model.blocks)
    batch = batch_of(WINDOWS)
    tokens, targets = batch.inputs, batch.targets.reshape(-1)
    numbers = {k: jnp.asarray(v, x.dtype) for k, v in (numbers_of(network.config) | {"skip_scale": skip_scale}).items()}
    for layer in range(depth, network.config.layers):
        x = x if offsets is None else x + offsets[layer]
        block = nnx.merge(graph, jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked))
        x = block(x, Context(numbers, tokens.shape, jnp.int32(layer)), x.dtype)
    x = x if offsets is None else x + offsets[-1]
    x = x if model.norm_f is None else model.norm_f(x, numbers["norm_eps"])
    return -jnp.mean(jax.nn.log_softmax(x @ table.T)[jnp.arange(targets.size), targets])


def embedded(params):
    x = params["embed"][batch_of(WINDOWS).inputs.reshape(-1)]
    return x + jnp.tile(params["positions"][:T], (B, 1)) if "positions" in params else x


@partial(jax.jit, static_argnums=0)
def dense(network: Network, body, table, skip_scale):
    """Returns (loss, (gradients of all but the head's table, gradient of that table, delta [L+1, N, D]))."""

    def loss(body, table, offsets):
        return tail(network, body, table, skip_scale, 0, embedded(body), offsets)

    offsets = jnp.zeros((network.config.layers + 1, B * T, D), table.dtype)
    return jax.value_and_grad(loss, argnums=(0, 1, 2))(body, table, offsets)


def expected(net: Network, params, skip_scale):
    """Returns (loss, gradients, gradient of the lookup, of the head's table, delta) by the dense definition."""
    tied = Network(net.config.model_copy(update={"tied_head": True}), V, T, net.dtype)
    body = {name: leaf for name, leaf in params.items() if name != "head"}
    loss, (grads, head, deltas) = dense(tied, body, head_table(params), skip_scale)
    lookup = grads["embed"]
    grads = grads | ({"head": head} if "head" in params else {"embed": lookup + head})
    return loss, grads, lookup, head, deltas


def assert_close(found, wanted, rtol=1e-12):
    """Asserts that entries agree within rtol of the largest of their array."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))


def norms_of(stacked):
    """Returns the Frobenius norms [L] of a stacked leaf, by numpy."""
    return np.sqrt(np.sum(np.square(np.asarray(stacked)), axis=tuple(range(1, np.ndim(stacked)))))


def combinations():
    """Returns every rule, norm, head and unroll; two in three are `slow`, as a program compiles for two seconds."""
    for rule, norm, tied, unroll in product(
        ("pre_ln", "post_ln", "none"), ("rms", "layer", "none"), (True, False), (1, L)
    ):
        quick_one = (tied and unroll == 1) or (norm == "rms" and not tied and unroll == L)
        name = f"{rule}, norm {norm}, {'tied' if tied else 'untied'}, unroll {unroll}"
        yield pytest.param(rule, norm, tied, unroll, id=name, marks=() if quick_one else pytest.mark.slow)


@pytest.mark.parametrize(("residual", "norm", "tied", "unroll"), list(combinations()))
def test_one_backward_pass_gives_it_all(x64, residual, norm, tied, unroll):
    # `none` is pre_ln at skip scale 0, so the two share a program, as in training.
    skip_scale = numbers_of(ModelConfig(residual=residual))["skip_scale"]
    net = network(unroll=unroll, residual="post_ln" if residual == "post_ln" else "pre_ln", norm=norm, tied_head=tied)
    params = parameters(net)
    loss, grads, lookup, head, deltas = expected(net, params, skip_scale)
    found_loss, result = tapped(net, params, skip_scale, WINDOWS)
    measured = flow(result)

    assert found_loss == pytest.approx(float(loss), rel=1e-13, abs=0)
    assert_close(true_gradients(result), grads)
    np.testing.assert_allclose(value(measured.delta), norms_of(deltas), rtol=1e-12)

    wanted = {tag: norms_of(leaf) for tag, leaf in named(grads["blocks"]).items()}
    wanted["layer"] = np.sqrt(sum(norm**2 for norm in wanted.values()))
    wanted |= {"lookup": np.linalg.norm(lookup), "head": np.linalg.norm(head)}
    wanted["embed"] = np.linalg.norm(lookup + head if tied else lookup)
    wanted["positions"] = np.linalg.norm(grads["positions"])
    if "norm_f" in params:
        wanted["norm_f"] = np.linalg.norm(grads["norm_f"]["gain"])
    assert set(measured.grad) == set(wanted)
    assert ("norm_f" in wanted) == (norm != "none" and residual != "post_ln")
    for name, norm in wanted.items():
        np.testing.assert_allclose(value(measured.grad[name]), norm, rtol=1e-12, err_msg=name)

    weights = named(params["blocks"])
    dots = weight_dot_grad(params, result)
    assert set(dots) == set(wanted)
    for tag in weights:
        products = np.asarray(weights[tag] * named(grads["blocks"])[tag]).reshape(L, -1)
        atol = 1e-12 * np.abs(products).sum(axis=1).max()
        np.testing.assert_allclose(value(dots[tag]), products.sum(axis=1), rtol=0, atol=atol, err_msg=tag)


VARIED = {
    "pre_ln, tied, learned": {},
    "post_ln, untied, rope, swiglu, biases, qk_norm": {
        "residual": "post_ln",
        "norm": "layer",
        "bias": True,
        "tied_head": False,
        "positions": "rope",
        "activation": "swiglu",
        "qk_norm": True,
    },
    "no skip, no norm, grouped heads": {"residual": "none", "norm": "none", "kv_heads": 1, "activation": "silu"},
}


@pytest.mark.parametrize("model", VARIED.values(), ids=VARIED.keys())
def test_gradients_against_finite_differences(x64, model):
    """Compares two entries of every parameter with central differences of the untapped loss."""
    net = network(**model)
    params, skip_scale = parameters(net), numbers_of(net.config)["skip_scale"]
    _, result = tapped(net, params, skip_scale, WINDOWS)
    flat, unravel = ravel_pytree(params)
    grads = ravel_pytree(true_gradients(result))[0]
    rng, entries, start = np.random.default_rng(3), [], 0
    for leaf in jax.tree.leaves(params):
        entries += list(start + rng.choice(leaf.size, size=2, replace=False))
        start += leaf.size
    loss: Any = tapped_loss(net, jnp.asarray(WINDOWS), {"skip_scale": skip_scale}, None)
    h = 1e-5

    @jax.jit
    def losses(entries):
        return jax.lax.map(
            lambda i: jnp.stack([loss(unravel(flat.at[i].add(e)), None, None)[0] for e in (h, -h)]), entries
        )

    both = np.asarray(losses(jnp.asarray(entries)))
    slopes = (both[:, 0] - both[:, 1]) / (2 * h)
    np.testing.assert_allclose(grads[jnp.asarray(entries)], slopes, rtol=1e-6, atol=1e-9)


def test_delta_against_finite_differences_in_the_stream(x64):
    """Compares three entries a depth of the dense delta with central differences of the loss from there on."""
    net = network()
    params = parameters(net)
    _, _, _, _, deltas = expected(net, params, 1.0)
    rng, h = np.random.default_rng(4), 1e-5
    picked = [[(d, *rng.integers((B * T, D))) for _ in range(3)] for d in range(L + 1)]

    @jax.jit
    def loss(offsets):
        return tail(net, params, params["embed"], jnp.asarray(1.0), 0, embedded(params), offsets)

    zero = jnp.zeros((L + 1, B * T, D))
    for entry in sum(picked, []):
        slope = (loss(zero.at[entry].set(h)) - loss(zero.at[entry].set(-h))) / (2 * h)
        np.testing.assert_allclose(deltas[entry], slope, rtol=1e-6, atol=1e-10)


def test_taps_and_counterfactual_leave_the_loss_alone(x64):
    """Taps change neither the forward pass nor the gradient."""
    net = network()
    params = parameters(net)
    for skip_scale in (1.0, 0.0, 0.5):
        loss, grads = untapped(net, params, skip_scale, WINDOWS)
        found, result = tapped(net, params, skip_scale, WINDOWS)
        assert found == pytest.approx(float(loss), rel=1e-14, abs=0)
        assert_close(true_gradients(result), grads)


@pytest.fixture(scope="module")
def deep():
    """Returns (tapped result, untapped gradients) by dtype, of 60 blocks without skip and norm."""
    narrow, wide = (network(dtype, layers=60, norm="none", bias=True) for dtype in ("float32", "float64"))
    # Biases keep the activations near 1 while each block shrinks delta by a factor of about 40.
    params = parameters(narrow, scale=0.15)
    found = {"float32": (tapped(narrow, params, 0.0, WINDOWS)[1], untapped(narrow, params, 0.0, WINDOWS)[1])}
    jax.config.update("jax_enable_x64", True)
    try:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        found["float64"] = (tapped(wide, params, 0.0, WINDOWS)[1], untapped(wide, params, 0.0, WINDOWS)[1])
    finally:
        jax.config.update("jax_enable_x64", False)
    return found


def settled(tag: str) -> bool:
    """False for q and k, whose gradients are differences of equal numbers.

    The tokens of a deep network without skip and norm have collapsed, so attention is uniform.
    """
    return not tag.startswith(("attn_q", "attn_k"))


def test_float32_taps_see_what_float32_gradients_cannot(x64, deep):
    result, plain = deep["float32"]
    found, true = jitted_flow(result), jitted_flow(deep["float64"][0])
    assert log10(true.delta)[0] < -90 and log10(true.delta)[-1] > -5
    np.testing.assert_allclose(log10(found.delta), log10(true.delta), atol=1e-3)
    for name in filter(settled, found.grad):
        np.testing.assert_allclose(log10(found.grad[name]), log10(true.grad[name]), atol=1e-3, err_msg=name)
    # Without taps the same network in the same precision says: exactly zero.
    assert not np.any(plain["positions"])
    assert not any(np.any(leaf[0]) for leaf in jax.tree.leaves(plain["blocks"]))
    assert np.any(plain["blocks"]["mlp"]["out"]["kernel"][-1])


def test_where_tokens_are_alike_q_and_k_are_rounding_and_said_to_be(x64):
    """float32 gradients of Q and K deviate from float64 exactly where act rank predicts it; those of V and O do not."""
    narrow, exact = (network(dtype, layers=24, norm="rms") for dtype in ("float32", "float64"))
    params = parameters(exact, scale=0.3)
    windows = jnp.asarray(WINDOWS)
    true = jitted_flow(tapped(exact, params, 0.0, windows)[1])
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    found = jitted_flow(tapped(narrow, single, jnp.float32(0.0), windows)[1])
    assert found.stream is not None
    rank = np.asarray(found.stream.rank)
    rounded = qk_rounded(rank, "float32")
    assert not rounded[:4].any() and rounded[-4:].all()
    off = {name: np.abs(log10(found.grad[name]) - log10(true.grad[name])) for name in true.grad if "attn" in name}
    for name, digits in off.items():
        if settled(name):
            assert digits.max() < 1e-3, name
        else:
            assert digits[~rounded].max() < 0.1 and digits[-1] > 2, name
    assert not qk_rounded(rank, "float64")[:-4].any()
    verdict = judge(log10(found.delta), found.grad.log10(), rank=rank)
    assert verdict.state == "dead_qk" and verdict.qk_rounded == rounded.sum()
    assert "Q and K are at most " in verdict.why
    assert f"(in {rounded.sum()} of 24 blocks they are float32's" in verdict.why


def test_float64_taps_give_the_gradients_at_any_depth(x64, deep):
    result, plain = deep["float64"]
    grads = true_gradients(result)
    assert 0 < np.abs(np.asarray(plain["positions"])).max() < 1e-90
    assert_close(grads["positions"], plain["positions"], rtol=1e-9)
    for tag, leaf in named(grads["blocks"]).items():
        if settled(tag):
            for layer in (0, 30, 59):
                assert_close(leaf[layer], named(plain["blocks"])[tag][layer], rtol=1e-9)


def test_microbatches_keep_the_range(deep):
    """The mean of a batch and its copy is the batch: norms of 1e-90 stay nonzero, the lookup is not lost."""
    result = deep["float32"][0]
    twice = jitted_flow(mean_of_microbatches(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), result)))
    once = jitted_flow(result)
    for name in once.grad:
        np.testing.assert_allclose(log10(twice.grad[name]), log10(once.grad[name]), atol=1e-6, err_msg=name)
    # |delta| is of the rows of both: each halved by the mean, twice as many.
    np.testing.assert_allclose(log10(twice.delta), log10(once.delta) - np.log10(2) / 2, atol=1e-6)


def test_a_microbatch_without_gradient_counts_as_zero(deep):
    """Its exponents, which stopped growing where delta became 0, are ignored."""
    result = deep["float32"][0]
    nothing = jax.tree.map(jnp.zeros_like, result)
    half = jitted_flow(mean_of_microbatches(jax.tree.map(lambda a, b: jnp.stack([a, b]), nothing, result)))
    once = jitted_flow(result)
    for name in filter(settled, once.grad):
        wanted = log10(once.grad[name]) - np.log10(2)
        np.testing.assert_allclose(log10(half.grad[name]), wanted, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(log10(half.delta), log10(once.delta) - np.log10(2), atol=1e-6)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"])
def test_microbatches_equal_the_full_batch(x64, tied):
    net = network(tied_head=tied)
    params = parameters(net)
    _, whole = tapped(net, params, 1.0, WINDOWS)
    parts = [tapped(net, params, 1.0, WINDOWS[i : i + 1])[1] for i in range(B)]
    mean = mean_of_microbatches(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))
    assert_close(true_gradients(mean), true_gradients(whole))
    found, wanted = flow(mean), flow(whole)
    np.testing.assert_allclose(value(found.delta), value(wanted.delta), rtol=1e-12)
    assert set(found.grad) == set(wanted.grad)
    for name in wanted.grad:
        np.testing.assert_allclose(value(found.grad[name]), value(wanted.grad[name]), rtol=1e-12, err_msg=name)
    assert found.stream is not None and wanted.stream is not None
    np.testing.assert_allclose(found.stream.rms, wanted.stream.rms, rtol=1e-12)
    np.testing.assert_allclose(found.stream.rank, wanted.stream.rank, rtol=1e-12)


def test_weight_dot_grad_vanishes_where_a_norm_takes_the_scale_out(x64):
    """Without skip, W_v, W_o and the MLP's output matrix enter only through a norm without epsilon.

    The loss does not depend on their scale, so its derivative along the matrix itself is 0 (Euler); with skip it does.
    """
    net = network(norm_eps=0.0)
    params = parameters(net)
    free = {"attn_v", "attn_o", "mlp_out"}

    def cosines(skip_scale):
        _, result = tapped(net, params, skip_scale, WINDOWS)
        grads = flow(result).grad
        dots, weights = weight_dot_grad(params, result), named(params["blocks"])
        return {tag: np.abs(value(dots[tag])) / norms_of(weights[tag]) / value(grads[tag]) for tag in weights}

    without, with_skip = cosines(0.0), cosines(1.0)
    for tag in without:
        if tag in free:
            assert without[tag].max() < 1e-13, tag
        else:
            assert without[tag].min() > 1e-6, tag
        assert with_skip[tag].min() > 1e-6, tag


def test_a_gradient_is_scaled_back_in_two_halves():
    # 2^-140 is no normal float32, but 2^20 * 2^-140 is.
    x = jnp.asarray([2.0**20, -3 * 2.0**18], jnp.float32)
    np.testing.assert_array_equal(delta._shift(x, jnp.float32(-140)), np.asarray([2.0**-120, -3 * 2.0**-122]))
    np.testing.assert_array_equal(delta._shift(x / 2.0**20, jnp.float32(127)), np.asarray([2.0**127, -1.5 * 2.0**126]))
    assert not np.any(delta._shift(x, jnp.float32(-4000)))


def test_the_rows_of_delta_are_those_of_their_depth(x64):
    """Zeroing the last block's outputs and the skip cuts the network in two: no gradient arrives below."""
    net = network()
    params = parameters(net)
    cut = params["blocks"] | {
        "mlp": params["blocks"]["mlp"] | {"out": {"kernel": params["blocks"]["mlp"]["out"]["kernel"].at[1].set(0.0)}}
    }
    _, result = tapped(net, params | {"blocks": cut}, 0.0, WINDOWS)
    logs = log10(flow(result).delta)
    assert np.isneginf(logs[:2]).all() and np.isfinite(logs[2:]).all()
    assert isinstance(result.delta, Norm)
