"""Clipping of gradients: by the global norm, by each matrix's own norm, by value; in this order, each one optional."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..gradflow.norms import Norm, frobenius, stacked_frobenius
from .parameters import by_path, is_matrix
from .update_rules import Numbers

SMALLEST_WEIGHT = 1e-3  # least norm of a matrix that clip_matrix assumes, so that zeros can grow


def clipped(grads: Any, params: Any, norm: Norm, hp: Numbers) -> tuple[Any, Float[Array, ""]]:
    """Returns the clipped gradient, and the factor of the global clip alone; `norm` is the gradient's."""
    factor = clip_factor(norm, hp.get("clip"))
    if "clip" in hp:
        grads = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
    if "clip_matrix" in hp:
        grads = by_matrix(grads, params, hp["clip_matrix"])
    if "clip_value" in hp:
        most = jnp.asarray(hp["clip_value"])
        grads = jax.tree.map(lambda g: jnp.clip(g, -most.astype(g.dtype), most.astype(g.dtype)), grads)
    return grads, factor


def clip_factor(norm: Norm, clip: Any) -> Float[Array, ""]:
    """Returns min(1, clip / norm) (Pascanu et al. 2013, 1211.5063), 1 for a zero or non-finite norm, in its dtype.

    A non-finite gradient must stay visible, not be scaled into something that looks healthy.
    """
    dtype = norm.mantissa.dtype
    if clip is None:
        return jnp.ones((), dtype)
    return _factor(norm, jnp.log2(jnp.asarray(clip, dtype)))


def _factor(norm: Norm, log2_limit: Float[Array, "..."]) -> Float[Array, "..."]:
    log2 = log2_limit - _log2(norm)
    return jnp.where((norm.mantissa > 0) & jnp.isfinite(norm.mantissa), jnp.exp2(jnp.minimum(log2, 0.0)), 1.0)


def _log2(norm: Norm) -> Float[Array, "..."]:
    return jnp.log2(norm.mantissa) + norm.exponent.astype(norm.mantissa.dtype)


def by_matrix(grads: Any, params: Any, ratio: Any) -> Any:
    """Returns gradients in which no matrix of a layer has a norm above `ratio` times that of its weights.

    Adaptive gradient clipping (Brock et al. 2021, 2102.06171, eq. 3) with whole matrices as units. Gains, biases and
    scalars are unchanged.
    """

    def clipped_leaf(path: str, grad: Array, weight: Array) -> Array:
        if not is_matrix(path):
            return grad
        norm_of = stacked_frobenius if path.startswith("blocks/") else frobenius
        size = jnp.maximum(_log2(norm_of(weight)), math.log2(SMALLEST_WEIGHT))
        factor = _factor(norm_of(grad), jnp.log2(jnp.asarray(ratio, size.dtype)) + size).astype(grad.dtype)
        return grad * factor.reshape(factor.shape + (1,) * (grad.ndim - factor.ndim))

    return by_path(clipped_leaf, grads, params)
