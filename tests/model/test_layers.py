"""Layers by their formulas: products, softmax, activations, norms, dropout, and the barrier against fusion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import layers
from model.config import ModelConfig
from model.layers import dropout, fusion_barrier, normalize, product
from model.rules import ACTIVATIONS
from networks import SIGMAS, TOKENS, L, logits, parameters
from networks import float32_network as network
from train.chain.reference import ACTIVATIONS as FORMULAS
from train.chain.reference import GATES, normalized, softmax


def test_the_fusion_barrier_is_the_identity_and_so_are_its_derivatives():
    x, v = jnp.asarray([[0.1, -3e-38, 1e38], [np.inf, 0.0, 7.0]], jnp.float32)

    def cube(x, keep):
        return jnp.sum(keep(x * x) * x)

    def derivatives(keep):
        slope = jax.grad(partial(cube, keep=keep))
        return keep(x), slope(x), jax.jvp(slope, (x,), (v,))[1], jax.vmap(slope)(x[None])[0]

    with_barrier = derivatives(lambda x: fusion_barrier(x, jnp.float32(1)))
    jax.tree.map(np.testing.assert_array_equal, with_barrier, derivatives(lambda x: x))


def test_a_product_and_its_derivatives_in_bfloat16_are_those_in_float32_but_for_rounding():
    rng = np.random.default_rng(0)
    x, y, dx, dy = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((4, 6), (6, 5)) * 2)
    cotangent = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)

    def all_of(*factors):
        out, tangent = jax.jvp(partial(product, "nd,dv->nv"), factors[:2], factors[2:])
        return out, tangent, *jax.vjp(partial(product, "nd,dv->nv"), *factors[:2])[1](cotangent)

    actual, wanted = all_of(x, y, dx, dy), all_of(*(factor.astype(jnp.float32) for factor in (x, y, dx, dy)))
    assert [leaf.dtype for leaf in actual] == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_allclose(actual[0], wanted[0], rtol=1e-6)
    for one, other in zip(actual[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=0, atol=2**-6 * np.abs(other).max())


def test_the_softmax_s_derivative_is_its_jacobian_forwards_and_backwards(x64):
    x = jnp.asarray([[1.0, -2.0, 0.5], [30.0, 0.0, -1e3]])
    y = np.asarray(layers.softmax(x))
    np.testing.assert_allclose(y, softmax(np.asarray(x)), rtol=1e-14)
    wanted = np.zeros((2, 3, 2, 3))
    for row in (0, 1):
        wanted[row, :, row] = np.diag(y[row]) - np.outer(y[row], y[row])
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jax.jit(jacobian(layers.softmax))(x), wanted, rtol=0, atol=1e-15)


def test_activations(x64):
    x = np.linspace(-6, 6, 41)
    for name, formula in (FORMULAS | GATES).items():
        np.testing.assert_allclose(
            ACTIVATIONS[name].function()(jnp.asarray(x)), formula(x), rtol=1e-12, atol=1e-15, err_msg=name
        )
    assert set(ACTIVATIONS) == set(FORMULAS) | set(GATES) and {n for n in ACTIVATIONS if ACTIVATIONS[n].gated} == set(
        GATES
    )


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms(x64, kind, eps):
    x = np.random.default_rng(3).normal(size=(4, 6)) * np.asarray([[1], [1e-3], [1e3], [5]]) + 2
    result = np.asarray(normalize(jnp.asarray(x), kind, eps))
    np.testing.assert_allclose(result, normalized(x, kind, eps), rtol=1e-10)
    if eps == 0:
        np.testing.assert_allclose((result**2).mean(axis=-1), 1, rtol=1e-12)
        np.testing.assert_allclose(normalize(jnp.asarray(9 * x), kind, eps), result, rtol=1e-10)


def test_dropout_keeps_the_mean_and_drops_its_share():
    n, rate = 100_000, 0.3
    y = np.asarray(dropout(jnp.full((n,), 2.0), jnp.float32(rate), jax.random.key(0)))
    survivor = np.float32(2) / np.float32(0.7)
    assert set(np.unique(y)) == {0.0, survivor}
    # An entry over 2 is 1/(1-p) with probability 1-p: mean 1, variance p/(1-p). The zeros are binomial.
    assert abs(y.mean() / 2 - 1) < SIGMAS * np.sqrt(rate / (1 - rate) / n)
    assert abs((y == 0).mean() - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / n)


def test_dropout_is_off_without_a_key_or_a_rate():
    x = jnp.arange(5.0)
    np.testing.assert_array_equal(dropout(x, jnp.float32(0.9), None), x)
    np.testing.assert_array_equal(dropout(x, None, jax.random.key(0)), x)
    params = parameters(network())
    np.testing.assert_array_equal(logits(network(dropout=0.5), params), logits(network(), params))


@pytest.mark.slow
def test_each_place_has_its_own_rate():
    """A rate of 0 for one place disables its dropout; with one active place only its rate matters."""
    places = ("embed", "attention", "residual")
    rates = [ModelConfig(dropout=0.1, dropout_attention=0.0).dropout_at(place) for place in places]
    assert rates == ["dropout", None, "dropout"]
    params, key, off = parameters(network()), jax.random.key(1), {f"dropout_{place}": 0.0 for place in places}
    plain = np.asarray(logits(network(), params))
    np.testing.assert_array_equal(logits(network(dropout=0.5, **off), params, None, key), plain)
    dropped = [np.asarray(logits(network(**{f"dropout_{place}": 0.5}), params, None, key)) for place in places]
    for one, other in [(plain, result) for result in dropped] + [(dropped[0], dropped[1]), (dropped[1], dropped[2])]:
        assert np.abs(one - other).max() > 1e-2


def test_every_key_layer_and_place_draws_for_itself():
    net = network(dropout=0.5)
    params = parameters(net)
    one, again, other = (np.asarray(logits(net, params, None, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (np.abs(one - other).max(axis=-1) > 1e-3).all()
    # Every draw of a forward pass has a key of its own: three a block, and the embedding's.
    keys, unrolled = [], network(dropout=0.5, unroll=L)

    bernoulli = jax.random.bernoulli

    def spy(key, *rest):
        jax.debug.callback(lambda data: keys.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key))
        return bernoulli(key, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "bernoulli", spy)
        jax.block_until_ready(unrolled.apply(params, TOKENS, key=jax.random.key(1)))
        jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 3 * L + 1
