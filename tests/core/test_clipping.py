"""Clipping of the global norm, of each matrix and of values, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_optimizers import decays, leaves, tree

from train.core import clipping
from train.core.clipping import clip_factor, clipped
from train.gradflow.norms import Norm, parameter_norms, total_norm


def global_norm(x) -> float:
    return math.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(x)))


by_matrix = jax.jit(clipping.by_matrix)
clip_by = jax.jit(
    lambda grads, params, limits: clipped(grads, params, total_norm(parameter_norms(grads), grads), limits)
)


def clip(grads, params, **limits):
    return clip_by(grads, params, jax.tree.map(np.float64, limits))[0]


def test_the_global_norm_is_clipped_and_the_direction_kept(x64):
    grads = tree(1)
    assert clipped(grads, tree(0), Norm(jnp.ones(()), jnp.zeros(())), {})[0] is grads
    got = clip(grads, tree(0), clip=0.5)
    assert global_norm(got) == pytest.approx(0.5, rel=1e-6)
    cosine = sum(np.sum(a * b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(grads), strict=True))
    assert cosine / global_norm(got) / global_norm(grads) == pytest.approx(1.0, rel=1e-12)


def test_clipping_by_value_is_entry_by_entry_and_turns_the_direction(x64):
    grads = tree(1)
    got = clip(grads, tree(0), clip_value=0.5)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.clip(b, -0.5, 0.5)), got, grads)


@pytest.mark.slow
def test_clips_work_in_the_order_global_matrix_value(x64):
    grads, params = tree(1, 100.0), tree(0)
    limits = {"clip": 10.0, "clip_matrix": 0.1, "clip_value": 0.05}
    step_by_step = grads
    for key, limit in limits.items():
        step_by_step = clip(step_by_step, params, **{key: limit})
    jax.tree.map(np.testing.assert_array_equal, clip(grads, params, **limits), step_by_step)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(step_by_step)) == 0.05


def test_a_matrix_s_clip_is_each_layer_s_own(x64):
    """|G| <= ratio |W| for every layer of every matrix; smaller gradients, gains and biases are unchanged."""
    params, grads = tree(0), tree(1)
    grads["blocks"] = jax.tree.map(lambda g: np.stack([1e-3 * g[0], 1e3 * g[1]]), grads["blocks"])
    got, before, weights = leaves(by_matrix(grads, params, np.float64(0.25))), leaves(grads), leaves(params)
    bound = set()
    for path, after in got.items():
        limit = 0.25 * np.linalg.norm(weights[path])
        if decays(path) and np.linalg.norm(before[path]) > limit:
            assert np.linalg.norm(after) == pytest.approx(limit, rel=1e-12), path
            np.testing.assert_allclose(after * np.linalg.norm(before[path]) / limit, before[path], rtol=1e-12)
            bound.add(path)
        else:
            np.testing.assert_array_equal(after, before[path], err_msg=path)
    assert bound == {path for path in got if "kernel@1" in path} | {"embed", "head", "positions"}


def test_a_matrix_of_zeros_may_still_grow_and_what_is_zero_or_not_finite_stays(x64):
    params, grads = tree(0), tree(1)
    for scale in (1e-150, 0.0):
        got = leaves(by_matrix(grads, tree(0, scale), np.float64(0.25)))
        assert np.linalg.norm(got["embed"]) == pytest.approx(0.25e-3, rel=1e-12)
    for bad in (math.nan, math.inf):
        grads["embed"][0, 0] = bad
        np.testing.assert_array_equal(by_matrix(grads, params, np.float64(0.25))["embed"], grads["embed"])
    still = by_matrix(tree(0, 0.0), params, np.float64(0.25))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(still))


@pytest.mark.parametrize(
    ("mantissa", "exponent", "clip", "expected"),
    [
        (0.5, 3.0, 1.0, 0.25),  # a norm of 4
        (0.5, 1.0, 1.0, 1.0),  # just at the bound
        (0.75, 0.0, 1.0, 1.0),
        (0.5, 3.0, 8.0, 1.0),
        (0.5, 1.0, 2.0**-100, 2.0**-100),  # tiny clip
        (0.5, 201.0, 1.0, 2.0**-126),  # a norm of 2^200 is beyond float32; so is 2^-200
        (0.5, 121.0, 1.0, 2.0**-120),
        (0.5, -400.0, 1e-30, 1.0),
        (0.0, 0.0, 1.0, 1.0),
        (0.0, 0.0, 1e-30, 1.0),
        (math.nan, 0.0, 1.0, 1.0),
        (math.inf, 0.0, 1.0, 1.0),
        (0.5, 3.0, None, 1.0),
    ],
)
def test_clip_factor_by_hand(mantissa, exponent, clip, expected):
    norm = Norm(jnp.float32(mantissa), jnp.float32(exponent))
    factor = clip_factor(norm, None if clip is None else np.float32(clip))
    assert factor.dtype == np.float32
    if expected == 2.0**-126:
        assert 0 <= float(factor) <= expected
    else:
        assert float(factor) == pytest.approx(expected, rel=2e-6)


def test_the_clip_factor_of_a_float64_gradient_is_not_rounded_to_float32(x64):
    grads = {"blocks": {"a": jnp.asarray([[3.0], [0.0]])}, "b": jnp.asarray([[4.0]])}
    clips, factor = clip_by(grads, grads, {"clip": np.float64(0.3)})
    assert factor.dtype == np.float64
    assert float(factor) == pytest.approx(0.3 / 5, rel=1e-14)
    np.testing.assert_allclose(clips["b"], [[4.0 * 0.3 / 5]], rtol=1e-14)
