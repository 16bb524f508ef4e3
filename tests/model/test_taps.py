"""Taps: the identity forwards; norms of the cotangent, in unlimited range, backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.scaling import exponent_limit, power_of_two, scaled
from model.taps import tap
from train.gradflow.norms import Norm, log10

pytestmark = pytest.mark.usefixtures("both_paths")

ZERO = jnp.zeros((), jnp.float32)
SLOPE = np.float32(1e-3)


def empty(*shape, dtype=jnp.float32):
    return jnp.zeros((*shape, 2), dtype)


@jax.jit
def linear(weights, slot):
    """Returns the gradients of x, exponent and slot of <weights, tap(x)>, whose cotangent is `weights`."""

    def loss(x, exponent, slot):
        return jnp.sum(weights * tap(x, exponent, slot)[0])

    return jax.grad(loss, argnums=(0, 1, 2))(jnp.ones_like(weights), ZERO, slot)


@jax.jit
def chain(weights, slopes, slots):
    """Returns the gradients of x and slots of <weights, x> after len(slopes) taps and multiplications, as a scan.

    One slot, closed over instead of scanned over, has the sum over the depths.
    """

    def loss(x, slots):
        def body(state, inputs):
            x, exponent = tap(state[0], state[1], slots if slots.ndim == 1 else inputs[1])
            return (x * inputs[0], exponent), None

        (x, _), _ = jax.lax.scan(body, (x, ZERO), (slopes, None if slots.ndim == 1 else slots))
        return jnp.sum(weights * x)

    return jax.grad(loss, argnums=(0, 1))(jnp.ones_like(weights), slots)


def test_forwards_it_is_the_identity():
    x = jnp.asarray([[1e-30, -3.0], [np.nan, np.inf]], jnp.float32)
    for function in (tap, jax.jit(tap)):
        y, exponent = function(x, jnp.float32(7), jnp.asarray([5.0, 6.0], jnp.float32))
        np.testing.assert_array_equal(y, x)
        assert exponent == 7


def test_mantissa_exponent_and_scaled_cotangent_by_hand():
    # The largest entry is 12 in [2^3, 2^4), so e = 4, and |(3, 4, 12)| = 13 is 13/16 * 2^4.
    delta, exponent, slot = linear(jnp.asarray([[3.0, -4.0, 12.0]], jnp.float32), empty())
    np.testing.assert_array_equal(delta, [[3 / 16, -4 / 16, 12 / 16]])
    assert exponent == 4
    np.testing.assert_array_equal(slot, [13 / 16, 4])


def test_every_size_is_right_alone_and_under_vmap(both_paths):
    entries = np.random.default_rng(0).normal(size=(3, 7))
    x = jnp.asarray(10.0 ** np.arange(-36, 37)[:, None, None] * entries, jnp.float32)
    delta, exponent, slot = jax.jit(jax.vmap(linear))(x, empty(len(x)))
    for one, *together in zip(x, delta, exponent, slot, strict=True):
        exact = np.linalg.norm(np.asarray(one, np.float64))
        for scaled_down, e, (mantissa, same) in (linear(one, empty()), together):
            assert e == same
            assert log10(Norm(mantissa, e)) == pytest.approx(np.log10(exact), abs=1e-6)
            assert mantissa == pytest.approx(np.linalg.norm(np.asarray(scaled_down, np.float64)), rel=1e-6, abs=0)
            np.testing.assert_array_equal(scaled(scaled_down, e), one)  # but for a power of two it is what it was
            assert 0.5 <= (mantissa if both_paths == "cpu" else np.abs(np.asarray(scaled_down)).max()) < 1


def test_a_power_of_two_takes_the_upper_exponent():
    # max|x| in [2^(k-1), 2^k)
    for x, k in ((1.0, 1), (0.5, 0), (0.75, 0), (2.0, 2), (-2.0, 2), (1.99, 1)):
        assert power_of_two(jnp.asarray([0.0, x], jnp.float32)) == k


def test_parts_of_a_carry_share_the_exponent_of_the_largest():
    small, large = jnp.asarray([3.0, 4.0], jnp.float32) * 2.0**-60, jnp.asarray([2.0**40], jnp.float32)

    def loss(carry, exponent, slot):
        (x, y), _ = tap(carry, exponent, slot, lambda carry: carry[0])
        return jnp.sum(small * x) + jnp.sum(large * y)

    carry = (jnp.ones((2,), jnp.float32), jnp.ones((1,), jnp.float32))
    (x, y), exponent, slot = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(carry, ZERO, empty())
    assert exponent == 41 and y == 0.5
    np.testing.assert_array_equal(x, small * 2.0**-41)
    assert log10(Norm(slot[0], slot[1])) == pytest.approx(np.log10(5) - 60 * np.log10(2), abs=1e-6)


def test_exponents_add_up_from_tap_to_tap():
    # By hand, with factors 1/32 and then 4: the cotangent 3 is 12 = 3/4 * 2^4 at the upper tap, and 12/32 = 3/4 * 2^-1
    # at the lower one. Rows of a scan's input stay apart; closed over, they add up.
    weights, slopes = jnp.asarray([3.0], jnp.float32), jnp.asarray([1 / 32, 4], jnp.float32)
    delta, slots = chain(weights, slopes, empty(2))
    np.testing.assert_array_equal(slots, [[3 / 4, -1], [3 / 4, 4]])
    np.testing.assert_array_equal(delta, [3 / 4])
    np.testing.assert_array_equal(chain(weights, slopes, empty())[1], [3 / 4 + 3 / 4, 4 - 1])


@pytest.mark.parametrize("slope", [1e-3, 1e3])
def test_300_taps_in_float32_reach_1e_minus_900_and_1e900(slope):
    weights = jnp.asarray([0.6, -0.8], jnp.float32)
    slopes = jnp.full((300,), slope, jnp.float32)
    _, slots = chain(weights, slopes, empty(300))
    logs = log10(Norm(slots[:, 0], slots[:, 1]))
    exact = np.arange(300, 0, -1) * np.log10(slope)  # |weights| = 1
    np.testing.assert_allclose(logs, exact, rtol=1e-5)
    # Against the slope as float32 holds it only the roundings of 300 products are left.
    exact = np.arange(300, 0, -1) * np.log10(float(np.float32(slope)))
    np.testing.assert_allclose(logs, exact, rtol=0, atol=300 * 6e-8)
    if slope < 1:  # what a gradient without taps says
        plain = jax.grad(lambda x: jnp.sum(weights * jax.lax.fori_loop(0, 300, lambda _, x: x * SLOPE, x)))
        assert np.all(np.asarray(plain(jnp.ones((2,), jnp.float32))) == 0)


def test_a_cotangent_past_the_limit_is_caught_by_the_next_tap():
    # 2^100 * 2^100 is no float32, but each tap brings the cotangent back to [0.5, 1) before the next factor.
    factors = jnp.asarray([2.0**-127, 2.0**100, 2.0**100, 2.0**127], jnp.float32)  # the first is denormal: flushed
    _, slots = chain(jnp.ones((1,), jnp.float32), factors, empty(4))
    np.testing.assert_array_equal(log10(Norm(slots[1:, 0], slots[1:, 1])), np.asarray([327, 227, 127]) * np.log10(2))
    assert slots[3, 1] == 126  # 2^127 is 2 * 2^126: the factor left over travels on in the cotangent


def test_a_zero_cotangent_has_mantissa_exactly_zero_and_keeps_the_rows_above():
    delta, exponent, slot = linear(jnp.zeros((2, 3), jnp.float32), empty())
    assert not np.any(delta) and exponent == 0
    np.testing.assert_array_equal(slot, [0, 0])
    _, slots = chain(jnp.asarray([3.0], jnp.float32), jnp.asarray([5, 0, 4], jnp.float32), empty(3))
    logs = log10(Norm(slots[:, 0], slots[:, 1]))
    np.testing.assert_array_equal(logs, [-np.inf, -np.inf, np.log10(0.75) + 4 * np.log10(2)])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(bad):
    delta, exponent, slot = linear(jnp.asarray([1.0, bad, 2.0], jnp.float32), empty())
    np.testing.assert_array_equal(delta, [1.0, bad, 2.0])
    np.testing.assert_array_equal(slot, [np.abs(bad), 0])
    assert exponent == 0
    _, slots = chain(jnp.asarray([1.0, bad], jnp.float32), jnp.ones((2,), jnp.float32), empty(2))
    assert not np.isfinite(slots[:, 0]).any()


def test_a_nonlinear_gradient_comes_back_once_its_power_of_two_is_multiplied_back():
    def loss(x):
        return jnp.sum(jnp.sin(x) ** 2)

    def tapped(x, exponent, slot):
        return loss(tap(x, exponent, slot)[0])

    x = jnp.asarray([0.3, -1.2, 2.0], jnp.float32)
    delta, exponent = jax.jit(jax.grad(tapped, argnums=(0, 1)))(x, ZERO, empty())
    np.testing.assert_allclose(scaled(delta, exponent), np.sin(2 * np.asarray(x, np.float64)), rtol=1e-6)


def test_bfloat16_cotangents_are_summed_in_float32():
    weights = jnp.asarray(np.random.default_rng(2).normal(size=1000)).astype(jnp.bfloat16)
    for function in (linear, linear.__wrapped__):  # pyright: ignore[reportAttributeAccessIssue]
        delta, _, slot = function(weights, empty())
        assert delta.dtype == jnp.bfloat16 and slot.dtype == jnp.float32
        # A square rounded to bfloat16 would be off by 5e-5 here.
        exact = np.linalg.norm(np.asarray(weights, np.float64))
        assert np.ldexp(float(slot[0]), int(slot[1])) == pytest.approx(exact, rel=1e-6, abs=0)


def test_float64_has_its_own_range(x64, both_paths):
    assert exponent_limit(jnp.float32) == 126 and exponent_limit(jnp.float64) == 1022
    for size in (1e-200, 1e-300, 1e300):
        weights = jnp.asarray([3 * size, 4 * size])
        delta, exponent, slot = linear(weights, empty(dtype=jnp.float64))
        assert 0.5 <= (slot[0] if both_paths == "cpu" else np.abs(delta).max()) < 1
        np.testing.assert_array_equal(scaled(delta, exponent), weights)
        assert log10(Norm(slot[0], slot[1])) == pytest.approx(np.log10(5 * size), rel=1e-15, abs=0)


def test_scaled_is_exact_within_the_limit():
    k = jnp.arange(-126, 127, dtype=jnp.float32)
    np.testing.assert_array_equal(scaled(jnp.ones((), jnp.float32), k), 2.0 ** np.arange(-126, 127))
