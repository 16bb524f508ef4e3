"""Norms as (mantissa, exponent) against numpy in float64, within and far beyond float32's range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.gradflow import norms
from train.gradflow.norms import Norm, gains, log10, named, value

PATHS = ["cpu", pytest.param("accelerator", marks=pytest.mark.slow)]
pytestmark = [
    pytest.mark.usefixtures("both_paths"),
    pytest.mark.parametrize("both_paths", PATHS, indirect=True, scope="module"),
]

frobenius = jax.jit(norms.frobenius)
stacked_frobenius = jax.jit(norms.stacked_frobenius)
inner = jax.jit(norms.inner)
root_sum_square = jax.jit(norms.root_sum_square)
root_mean_of_parts = jax.jit(norms.root_mean_of_parts)
matrix_norms = jax.jit(norms.matrix_norms)

RNG = np.random.default_rng(0)
LOG2 = np.log10(2.0)


def float32(x):
    return jax.device_put(np.asarray(x, np.float32))


def norm(mantissa, exponent):
    return Norm(float32(mantissa), float32(exponent))


def exact(x):
    """Returns the Frobenius norm of the float32 (or bfloat16) values, computed in float64."""
    return np.linalg.norm(np.asarray(x, np.float64))


ENTRIES = {
    "ones": np.ones((3, 4)),
    "1e-30": 1e-30 * RNG.normal(size=(3, 4)),
    "1e30": 1e30 * RNG.normal(size=(3, 4)),
    "3e38": np.full((100,), 3e38),  # a norm that float32 itself cannot hold
    "smallest normals": np.full((5,), 1.2e-38),
    "mixed": 10.0 ** RNG.uniform(-35, 35, size=(50,)) * RNG.choice([-1, 1], size=50),
    "one large, many small": np.concatenate([[1.0], np.full(1000, 1e-3)]),
    "scalar": np.asarray(-7.5),
    "three axes": RNG.normal(size=(2, 3, 4)),
}


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES.keys())
def test_frobenius(entries):
    x = float32(entries)
    result = frobenius(x)
    assert value(result) == pytest.approx(exact(x), rel=2e-6, abs=0)
    assert log10(result) == pytest.approx(np.log10(exact(x)), abs=1e-6)
    assert result.mantissa.dtype == jnp.float32
    assert float(result.exponent).is_integer()


def test_every_size_is_right_alone_and_under_vmap():
    entries = RNG.normal(size=(3, 50))
    exponents = np.arange(-36, 38, 0.5)
    x = float32(10.0 ** exponents[:, None, None] * entries)
    together = jax.jit(jax.vmap(norms.frobenius))(x)
    for one in x:
        assert value(frobenius(one)) == pytest.approx(exact(one), rel=2e-6, abs=0)
    np.testing.assert_allclose(value(together), [exact(one) for one in x], rtol=2e-6)


def test_one_small_matrix_among_large_ones_keeps_its_norm():
    sizes = {"a": 1.0, "b": 1e-25, "c": 1e30, "d": 0.0}
    blocks = {name: {"kernel": float32(size * np.ones((2, 3, 3)))} for name, size in sizes.items()}
    result = matrix_norms(blocks)
    for name, size in sizes.items():
        np.testing.assert_allclose(value(result[name]), np.full(2, 3 * size), rtol=1e-6)


def test_only_denormals_may_be_flushed_to_zero():
    """XLA flushes denormals (below 2^-126 = 1.18e-38) on most platforms: norms are right or exactly zero."""
    for size in (1e-42, 1e-39):
        x = float32(np.full(5, size))
        actual = value(frobenius(x))
        assert actual == 0 or actual == pytest.approx(exact(x), rel=2e-6, abs=0)
    normal = frobenius(float32([1e-42, 3e-38, 4e-38]))
    assert value(normal) == pytest.approx(5e-38, rel=2e-6, abs=0)


def test_frobenius_adds_the_exponent_that_a_tap_took_out():
    x = float32(RNG.normal(size=(4, 4)))
    for e in (-3000, 3000):
        assert log10(frobenius(x, float32(e))) == pytest.approx(np.log10(exact(x)) + e * LOG2, abs=1e-6)
    for zero in (frobenius(float32(np.zeros((2, 2)))), frobenius(float32(0.0), float32(-500))):
        assert value(zero) == 0 and log10(zero) == -np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(bad):
    x = float32([1.0, bad, 2.0])
    np.testing.assert_array_equal(value(frobenius(x)), np.abs(bad))
    np.testing.assert_array_equal(log10(frobenius(x)), np.abs(bad))
    combined = root_sum_square([frobenius(x), frobenius(float32([1.0]))])
    np.testing.assert_array_equal(value(combined), np.abs(bad))
    assert not np.isfinite(value(inner(x, float32([1.0, 1.0, 1.0]))))


def test_bfloat16_is_summed_in_float32():
    """Values are squared in float32, not rounded to three digits."""
    x = jnp.asarray(RNG.normal(size=1000)).astype(jnp.bfloat16)
    for result in (frobenius(x), norms.frobenius(x)):
        assert result.mantissa.dtype == jnp.float32
        assert value(result) == pytest.approx(exact(x), rel=1e-6, abs=0)
    for size in (1e-30, 1e30):
        x = jnp.asarray(np.full((3, 3), size)).astype(jnp.bfloat16)
        assert value(frobenius(x)) == pytest.approx(exact(x), rel=1e-6, abs=0)


def test_float64_keeps_its_range_and_digits(x64):
    for entries in (RNG.normal(size=(5, 5)), np.full(7, 1e-200), np.full(7, 1e300), [1e-200, 1e200]):
        x = jnp.asarray(entries, jnp.float64)
        scale = np.abs(np.asarray(entries)).max()  # numpy's own squares would underflow
        expected = np.log10(np.linalg.norm(np.asarray(entries) / scale)) + np.log10(scale)
        assert log10(frobenius(x)) == pytest.approx(expected, abs=1e-12)
        assert log10(root_sum_square([frobenius(x), frobenius(x)])) == pytest.approx(
            expected + np.log10(np.sqrt(2)), abs=1e-12
        )
        assert log10(inner(x, x)) == pytest.approx(2 * expected, abs=1e-12)
    parts = [jnp.asarray(10.0**k * RNG.normal(size=9)) for k in range(-4, 3)]
    together = np.linalg.norm(np.concatenate([np.asarray(part) for part in parts]))
    assert value(root_sum_square([frobenius(part) for part in parts])) == pytest.approx(together, rel=1e-14, abs=0)


def test_stacked_reduces_over_every_axis_but_the_first():
    x = float32(RNG.normal(size=(4, 2, 3, 5)) * (10.0 ** np.asarray([-30, -3, 0, 30]))[:, None, None, None])
    actual, exponents = stacked_frobenius(x), np.asarray([-1000.0, 0.0, 40.0, 3000.0])
    assert actual.mantissa.shape == actual.exponent.shape == (4,)
    np.testing.assert_allclose(value(actual), [exact(layer) for layer in x], rtol=2e-6)
    # Each layer has an exponent of its own.
    expected = np.log10([exact(layer) for layer in x]) + exponents * LOG2
    np.testing.assert_allclose(log10(stacked_frobenius(x, float32(exponents))), expected, atol=1e-6)
    # A stacked vector (a norm's gain, [L, D]) gives one norm a layer too.
    np.testing.assert_allclose(value(stacked_frobenius(x[:, 0, 0])), [exact(v) for v in x[:, 0, 0]], rtol=2e-6)


def test_root_sum_square_element_by_element_and_far_outside_float32():
    values = 10.0 ** RNG.uniform(-30, 30, size=(3, 4)) * np.asarray([[1], [1e-2], [1e2]])
    parts = [norm(m, e) for m, e in zip(*np.frexp(values), strict=True)]
    np.testing.assert_allclose(value(root_sum_square(parts)), np.sqrt(np.sum(values**2, axis=0)), rtol=2e-6)
    # 3 and 4 times 2^-3000 are 5 times 2^-3000; a part 2^500 smaller has no say.
    result = root_sum_square([norm(0.75, -2998), norm(0.5, -2997), norm(0.9, -3500)])
    assert log10(result) == pytest.approx(np.log10(5) - 3000 * LOG2, abs=1e-6)
    for zero in (0.0, 300.0, -3000.0):  # nor has the exponent of a zero
        for parts in ([norm(0, zero), norm(0.75, -900)], [norm(0.75, -900), norm(0, zero)]):
            assert log10(root_sum_square(parts)) == pytest.approx(np.log10(0.75) - 900 * LOG2, abs=1e-6)
        assert log10(root_sum_square([norm(0, zero), norm(0, 5)])) == -np.inf


def test_delta_of_a_batch_from_its_microbatches():
    # The mean loss over M parts has delta/M in each: sqrt(3^2 + 4^2 + 12^2) / 3 = 13 / 3, and the same at 2^-2000.
    stack = norm([[3, 3], [4, 4], [12, 12]], [[0, -2000], [0, -2000], [0, -2000]])
    expected = np.log10(13 / 3) + np.asarray([0, -2000 * LOG2])
    np.testing.assert_allclose(log10(root_mean_of_parts(stack)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4))),
        (RNG.normal(size=12), 1e-30 * RNG.normal(size=12)),
        (1e30 * RNG.normal(size=12), 1e30 * RNG.normal(size=12)),
        (1e-30 * RNG.normal(size=12), 1e-30 * RNG.normal(size=12)),
        (np.full(50, 3e38), np.full(50, -3e38)),
        (10.0 ** RNG.uniform(-18, 18, size=40), 10.0 ** RNG.uniform(-18, 18, size=40)),
    ],
)
def test_inner(a, b):
    a, b = float32(a), float32(b)
    expected = np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64))
    tolerance = 1e-6 * np.sum(np.abs(np.asarray(a, np.float64) * np.asarray(b, np.float64)))
    assert value(inner(a, b)) == pytest.approx(expected, abs=tolerance)
    shifted = inner(a, b, float32(-2000))
    assert np.sign(shifted.mantissa) == np.sign(expected)
    assert log10(shifted) == pytest.approx(np.log10(abs(expected)) - 2000 * LOG2, abs=1e-4)
    assert value(inner(float32([1, 0]), float32([0, 1]))) == 0 and value(inner(float32([1, 2]), float32([3, -4]))) == -5


def test_value_and_log10_on_the_host():
    # Values that float64 holds come out exactly; where it cannot, log10 still says what there is.
    actual = value(norm([0.75, -0.5, 0, 1], [-100, 3, 99, 1023]))
    np.testing.assert_array_equal(actual, [0.75 * 2.0**-100, -4, 0, 2.0**1023])
    assert actual.dtype == np.float64
    np.testing.assert_array_equal(value(norm([1, 1], [5000, -5000])), [np.inf, 0])
    logs = log10(norm([0.75, -0.5, 0, 1, np.nan], [-4000, 3, 99, 4000, 0]))
    expected = [np.log10(0.75) - 4000 * LOG2, np.log10(4), -np.inf, 4000 * LOG2, np.nan]
    np.testing.assert_allclose(logs, expected, rtol=1e-14)


def test_gains_are_ratios_of_neighbours():
    logs = np.asarray([-3.0, -1.0, -2.0, -400.0, -400.0])
    np.testing.assert_allclose(gains(logs), [1e-2, 10, np.inf, 1], rtol=1e-12)
    # Zero below: 0. Zero above something: inf. Zero at both: unknown.
    np.testing.assert_array_equal(gains(np.asarray([-np.inf, 0, -np.inf, -np.inf])), [0, np.inf, np.nan])
    # Their product telescopes.
    logs = RNG.normal(size=9)
    assert np.prod(gains(logs)) == pytest.approx(10 ** (logs[0] - logs[-1]), rel=1e-12, abs=0)


TREE = {
    "attn": {"q": {"kernel": 1, "bias": 2}, "o": {"kernel": 3}},
    "mlp": {"in_": {"kernel": 4}, "gate": {"kernel": 5}, "out": {"kernel": 6, "bias": 7}},
    "norm_1": {"gain": 8, "bias": 9},
}
TAGS = {"attn_q": 1, "attn_q_bias": 2, "attn_o": 3, "mlp_in": 4, "mlp_gate": 5, "mlp_out": 6, "mlp_out_bias": 7}
TAGS |= {"norm_1": 8, "norm_1_bias": 9}


def test_matrix_norms_and_the_whole_block():
    assert named(TREE) == TAGS and named({"kernel": 1}) == {"kernel": 1}
    leaves = {tag: RNG.normal(size=(2, 3, number)) for tag, number in TAGS.items()}
    blocks = jax.tree.map(lambda number: float32({v: leaves[k] for k, v in TAGS.items()}[number]), TREE)
    exponents = np.asarray([-700.0, 10.0])
    actual = matrix_norms(blocks, float32(exponents))
    assert set(actual) == {*TAGS, "layer"}
    for tag, leaf in leaves.items():
        expected = [np.log10(exact(float32(layer))) for layer in leaf] + exponents * LOG2
        np.testing.assert_allclose(log10(actual[tag]), expected, atol=1e-6)
    whole = [np.sqrt(sum(np.sum(leaf[layer] ** 2) for leaf in leaves.values())) for layer in range(2)]
    np.testing.assert_allclose(log10(actual["layer"]), np.log10(whole) + exponents * LOG2, atol=1e-6)


def test_norms_by_name_are_two_arrays_a_shape_whatever_axes_lead():
    blocks = {"q": {"kernel": np.full((3, 2, 2), 2.0, np.float32)}, "v": {"kernel": np.zeros((3, 4), np.float32)}}
    ends = {"embed": np.full((4,), 1e-30, np.float32), "head": np.ones((9,), np.float32)}

    @jax.jit
    def measured(scales, blocks, ends):
        def at(scale):
            grown = jax.tree.map(lambda leaf: leaf * scale, blocks)
            return norms.matrix_norms(grown).joined(norms.separate_norms(ends, {"head": jnp.float32(-200)}))

        return jax.vmap(at)(scales)

    result = measured(jnp.asarray([1.0, 2.0]), blocks, ends)
    assert len(jax.tree.leaves(result)) == 4
    assert list(result) == ["q", "v", "layer", "embed", "head"]
    assert len(result) == 5
    assert "k" not in result
    for name, norm in result.items():
        np.testing.assert_array_equal(result.log10()[name], log10(norm))
    np.testing.assert_allclose(value(result["q"]), [[4.0] * 3, [8.0] * 3])
    np.testing.assert_array_equal(value(result["layer"]), value(result["q"]))
    assert np.isneginf(log10(result["v"])).all()
    np.testing.assert_allclose(log10(result["embed"]), np.log10(2e-30), atol=1e-6)
    np.testing.assert_allclose(log10(result["head"]), np.log10(3) - 200 * LOG2, atol=1e-6)
