"""Gradients and delta of the tapped backward pass against definitions without taps or scans (float64)."""

from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from jax.flatten_util import ravel_pytree

from model.config import ModelConfig
from model.network import Network
from model.residual import numbers_of
from networks import WINDOWS, B, D, L, T, changed, dense_loss, network, parameters, same, tapped, untapped
from train.core.loss import tapped_loss
from train.gradflow import delta
from train.gradflow.delta import backward, flow, head_table, mean_of_microbatches
from train.gradflow.gradients import weight_dot_grad
from train.gradflow.norms import Norm, log10, named, value
from train.gradflow.verdict import judge, qk_rounded

jitted_flow, dots_of, true_gradients = map(jax.jit, (flow, weight_dot_grad, delta.true_gradients))
OFFSETS = (L + 1, B * T, D)


def at(skip_scale):
    return {"skip_scale": skip_scale}


@partial(jax.jit, static_argnums=0)
def dense(net: Network, params, numbers):
    """Returns (loss, (gradients of all but the head's use of its table, of that use, delta [L+1, N, D]))."""
    table = head_table(params)
    loss = jax.value_and_grad(partial(dense_loss, net), argnums=(0, 1, 2))
    return loss(params, table, jnp.zeros(OFFSETS, table.dtype), numbers)


def assert_close(actual, wanted, rtol=1e-12):
    """Asserts that entries agree within rtol of the largest of their array."""
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))


def norms_of(stacked):
    """Returns the Frobenius norms [L] of a stacked leaf, by numpy."""
    return np.sqrt(np.sum(np.square(np.asarray(stacked)), axis=tuple(range(1, np.ndim(stacked)))))


def combinations():
    """Returns every rule, norm, head and unroll; nine in ten are `slow`, as a program compiles for two seconds."""
    quick = [(rule, "none", True, 1) for rule in ("pre_ln", "none")] + [("post_ln", "rms", False, L)]
    for rule, norm, tied, unroll in product(
        ("pre_ln", "post_ln", "none"), ("rms", "layer", "none"), (True, False), (1, L)
    ):
        name = f"{rule}, norm {norm}, {'tied' if tied else 'untied'}, unroll {unroll}"
        yield pytest.param(
            rule, norm, tied, unroll, id=name, marks=() if (rule, norm, tied, unroll) in quick else pytest.mark.slow
        )


@pytest.mark.parametrize(("residual", "norm", "tied", "unroll"), list(combinations()))
def test_one_backward_pass_gives_it_all(x64, residual, norm, tied, unroll):
    # `none` is pre_ln at skip scale 0, so the two share a program, as in training.
    numbers = at(numbers_of(ModelConfig(residual=residual))["skip_scale"])
    net = network(unroll=unroll, residual="post_ln" if residual == "post_ln" else "pre_ln", norm=norm, tied_head=tied)
    params = parameters(net)
    loss, (grads, head, deltas) = dense(
        network(residual=net.config.residual, norm=norm, tied_head=tied), params, numbers
    )
    lookup = grads["embed"]
    grads = grads | ({"embed": lookup + head} if tied else {"head": head})
    found_loss, result = tapped(net, params, numbers)
    measured = jitted_flow(result)

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
    dots = dots_of(params, result)
    assert set(dots) == set(wanted)
    for tag in weights:
        products = np.asarray(weights[tag] * named(grads["blocks"])[tag]).reshape(L, -1)
        atol = 1e-12 * np.abs(products).sum(axis=1).max()
        np.testing.assert_allclose(value(dots[tag]), products.sum(axis=1), rtol=0, atol=atol, err_msg=tag)


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [1, L])
@pytest.mark.parametrize("rule", ["pre_ln", "attnres"])
def test_values_computed_again_in_the_backward_pass_change_nothing(x64, rule, unroll):
    """Under dropout, so that the second computation must draw the same masks."""
    result, products = {}, {}
    for remat in ("none", "dots", "full"):
        net = replace(network(unroll=unroll, residual=rule, norm="none", dropout=0.3), remat=remat)
        loss = tapped_loss(net, WINDOWS, {"dropout": 0.3}, jax.random.key(1))
        params = parameters(net)
        program = jax.jit(lambda params, loss=loss: backward(loss, params, L)[:2]).lower(params)
        result[remat], products[remat] = program.compile()(params), program.as_text().count("dot_general")
    same(result["dots"], result["none"], atol=1e-15)
    same(result["full"], result["none"], atol=1e-15)
    # dots: attention's scores and its outputs. full: these, and every product with a matrix whose result is needed.
    assert products["none"] < products["dots"] < products["full"]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("{}", marks=pytest.mark.slow),
        "{residual: post_ln, norm: layer, bias: true, tied_head: false, positions: rope, activation: swiglu, "
        "qk_norm: true}",
        pytest.param("{residual: none, norm: none, kv_heads: 1, activation: silu}", marks=pytest.mark.slow),
    ],
)
def test_gradients_against_finite_differences(x64, model):
    """Compares two entries of every parameter with central differences of the untapped loss."""
    net = network(**yaml.safe_load(model))
    params = parameters(net)
    result = tapped(net, params)[1]
    flat, unravel = ravel_pytree(params)
    grads = ravel_pytree(true_gradients(result))[0]
    rng, entries, start = np.random.default_rng(3), [], 0
    for leaf in jax.tree.leaves(params):
        entries += list(start + rng.choice(leaf.size, size=2, replace=False))
        start += leaf.size
    loss, h = tapped_loss(net, jnp.asarray(WINDOWS), None, None), 1e-5

    @jax.jit
    def losses(entries):
        return jax.lax.map(
            lambda i: jnp.stack([loss(unravel(flat.at[i].add(e)), None, None)[0] for e in (h, -h)]),  # pyright: ignore
            entries,
        )

    both = np.asarray(losses(jnp.asarray(entries)))
    slopes = (both[:, 0] - both[:, 1]) / (2 * h)
    np.testing.assert_allclose(grads[jnp.asarray(entries)], slopes, rtol=1e-6, atol=1e-9)


def test_delta_against_finite_differences_in_the_stream(x64):
    """Compares three entries a depth of the dense delta with central differences of the loss from there on."""
    net = network()
    params = parameters(net)
    deltas = dense(net, params, at(1.0))[1][2]
    rng, h, zero = np.random.default_rng(4), 1e-5, jnp.zeros(OFFSETS)
    loss = jax.jit(lambda offsets: dense_loss(net, params, params["embed"], offsets))
    for entry in [(d, *rng.integers((B * T, D))) for d in range(L + 1) for _ in range(3)]:
        slope = (loss(zero.at[entry].set(h)) - loss(zero.at[entry].set(-h))) / (2 * h)
        np.testing.assert_allclose(deltas[entry], slope, rtol=1e-6, atol=1e-10)


def test_taps_and_counterfactual_leave_the_loss_alone(x64):
    """Taps change neither the forward pass nor the gradient."""
    net = network()
    params = parameters(net)
    for skip_scale in (1.0, 0.0, 0.5):
        loss, grads = untapped(net, params, at(skip_scale))
        primal, result = tapped(net, params, at(skip_scale))
        assert primal == pytest.approx(float(loss), rel=1e-14, abs=0)
        assert_close(true_gradients(result), grads)


@pytest.fixture(scope="module")
def deep():
    """Returns (tapped result, untapped gradients) by dtype, of 60 blocks without skip and norm."""
    narrow, wide = (network(dtype, layers=60, norm="none", bias=True) for dtype in ("float32", "float64"))
    # Biases keep the activations near 1 while each block shrinks delta by a factor of about 40.
    params, result = parameters(narrow, scale=0.15), {}
    result["float32"] = tapped(narrow, params, at(0.0))[1], untapped(narrow, params, at(0.0))[1]
    jax.config.update("jax_enable_x64", True)
    try:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        result["float64"] = (tapped(wide, params, at(0.0))[1], untapped(wide, params, at(0.0))[1])
    finally:
        jax.config.update("jax_enable_x64", False)
    return result


def settled(tag: str) -> bool:
    """False for q and k, whose gradients are differences of equal numbers.

    The tokens of a deep network without skip and norm have collapsed, so attention is uniform.
    """
    return not tag.startswith(("attn_q", "attn_k"))


def test_float32_taps_see_what_float32_gradients_cannot(x64, deep):
    result, plain = deep["float32"]
    actual, true = jitted_flow(result), jitted_flow(deep["float64"][0])
    assert log10(true.delta)[0] < -90 and log10(true.delta)[-1] > -5
    np.testing.assert_allclose(log10(actual.delta), log10(true.delta), atol=1e-3)
    for name in filter(settled, actual.grad):
        np.testing.assert_allclose(log10(actual.grad[name]), log10(true.grad[name]), atol=1e-3, err_msg=name)
    # Without taps the same network in the same precision says: exactly zero.
    assert not np.any(plain["positions"])
    assert not any(np.any(leaf[0]) for leaf in jax.tree.leaves(plain["blocks"]))
    assert np.any(plain["blocks"]["mlp"]["out"]["kernel"][-1])


@pytest.mark.slow
def test_where_tokens_are_alike_q_and_k_are_rounding_and_said_to_be(x64):
    """float32 gradients of Q and K deviate from float64 exactly where act rank predicts it; those of V and O do not."""
    narrow, exact = (network(dtype, layers=24, norm="rms") for dtype in ("float32", "float64"))
    params = parameters(exact, scale=0.3)
    true = jitted_flow(tapped(exact, params, at(0.0))[1])
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    actual = jitted_flow(tapped(narrow, single, at(jnp.float32(0.0)))[1])
    assert actual.stream is not None
    rank = np.asarray(actual.stream.rank)
    rounded = qk_rounded(rank, "float32")
    assert not rounded[:4].any() and rounded[-4:].all()
    off = {name: np.abs(log10(actual.grad[name]) - log10(true.grad[name])) for name in true.grad if "attn" in name}
    for name, digits in off.items():
        if settled(name):
            assert digits.max() < 1e-3, name
        else:
            assert digits[~rounded].max() < 0.1 and digits[-1] > 2, name
    assert not qk_rounded(rank, "float64")[:-4].any()
    verdict = judge(log10(actual.delta), actual.grad.log10(), rank=rank)
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


@pytest.mark.slow
def test_microbatches_keep_the_range(deep):
    """The mean of a batch and its copy is the batch: norms of 1e-90 stay nonzero, the lookup is not lost.

    And a micro-batch without a gradient counts as zero: its exponents, which stopped growing where delta became 0, are
    ignored.
    """
    result = deep["float32"][0]
    mean = jax.jit(lambda *parts: flow(mean_of_microbatches(jax.tree.map(lambda *x: jnp.stack(x), *parts))))
    twice, half, once = mean(result, result), mean(jax.tree.map(jnp.zeros_like, result), result), jitted_flow(result)
    for name in once.grad:
        np.testing.assert_allclose(log10(twice.grad[name]), log10(once.grad[name]), atol=1e-6, err_msg=name)
        if settled(name):
            wanted = log10(once.grad[name]) - np.log10(2)
            np.testing.assert_allclose(log10(half.grad[name]), wanted, atol=1e-6, err_msg=name)
    # |delta| is of the rows of both: each halved by the mean, twice as many.
    np.testing.assert_allclose(log10(twice.delta), log10(once.delta) - np.log10(2) / 2, atol=1e-6)
    np.testing.assert_allclose(log10(half.delta), log10(once.delta) - np.log10(2), atol=1e-6)


@pytest.mark.slow
def test_weight_dot_grad_vanishes_where_a_norm_takes_the_scale_out(x64):
    """Without skip, W_v, W_o and the MLP's output matrix enter only through a norm without epsilon.

    The loss does not depend on their scale, so its derivative along the matrix itself is 0 (Euler); with skip it does.
    """
    net = network(norm_eps=0.0)
    params = parameters(net)
    free = {"attn_v", "attn_o", "mlp_out"}

    def cosines(skip_scale):
        result = tapped(net, params, at(skip_scale))[1]
        grads, dots, weights = jitted_flow(result).grad, dots_of(params, result), named(params["blocks"])
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
    cut = changed(parameters(net), "blocks/mlp/out/kernel", lambda kernel: kernel.at[1].set(0.0))
    result = tapped(net, cut, at(0.0))[1]
    logs = log10(result.delta)
    assert np.isneginf(logs[:2]).all() and np.isfinite(logs[2:]).all()
    assert isinstance(result.delta, Norm)
