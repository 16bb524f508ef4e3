"""Delta of a stack of blocks that is written by hand, with taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.taps import tap
from train.gradflow.delta import delta_of
from train.gradflow.norms import log10, value
from train.gradflow.verdict import judge


def blocks(depth, scale):
    return scale * np.random.default_rng(0).normal(size=(depth, 6, 6)) / np.sqrt(6)


def scanned(weights, x, slots):
    """Returns the loss of a stack of tanh layers under scan, with the slots as scan inputs."""

    def body(state, inputs):
        (x, exponent), (weight, slot) = state, inputs
        x, exponent = tap(x, exponent, slot)
        return (jnp.tanh(x @ weight), exponent), None

    state, _ = jax.lax.scan(body, (x, jnp.zeros((), jnp.float32)), (weights, slots[:-1]))
    return tap(state[0], state[1], slots[-1])[0]


def test_delta_is_the_gradient_of_what_is_added_to_the_stream(x64):
    weights, x = jnp.asarray(blocks(4, 1.0)), jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)))

    def moved(offsets):
        y = x
        for weight, offset in zip(weights, offsets[:-1], strict=True):
            y = jnp.tanh((y + offset) @ weight)
        return jnp.sum((y + offsets[-1]) ** 3)

    wanted = jax.grad(moved)(jnp.zeros((5, 3, 6)))
    actual = delta_of(lambda slots: jnp.sum(scanned(weights, x, slots) ** 3), 4, "float64")
    np.testing.assert_allclose(value(actual), np.linalg.norm(wanted.reshape(5, -1), axis=1), rtol=1e-12)


def test_a_deep_stack_of_ones_own_has_no_range():
    weights, x = jnp.asarray(blocks(200, 0.01), jnp.float32), jnp.ones((1, 6), jnp.float32)
    delta = log10(jax.jit(lambda: delta_of(lambda slots: jnp.sum(scanned(weights, x, slots)), 200))())
    assert np.isfinite(delta).all()
    # Each layer a hundredth, and what a random matrix does to one row.
    assert delta[0] == pytest.approx(-200 * 2, abs=40)
    verdict = judge(delta, {})
    assert verdict.state == "vanishing" and verdict.qk_share is None
    assert verdict.per_layer_gain is not None and verdict.per_layer_gain < 0.02
