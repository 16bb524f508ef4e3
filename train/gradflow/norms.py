"""Norms that neither underflow nor overflow, whatever the gradient.

A float32 sum of squares is flushed to zero for entries below 1e-19, and the entries themselves at 1e-38. So a norm is
a pair (mantissa, exponent) with value mantissa * 2^exponent: the power of two of the largest entry is taken out
first, and exponents that a tap took out of the cotangent (model/taps.py) are simply added. Nothing is floored; an
exact zero is mantissa 0.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from model.layers import wide
from model.taps import power_of_two, scaled


class Norm(NamedTuple):
    """mantissa * 2^exponent, element by element; the exponent is integer-valued. Also used for signed values."""

    mantissa: Float[Array, "..."]
    exponent: Float[Array, "..."]


def frobenius(x: Array, exponent: Float[Array, ""] | float = 0.0) -> Norm:
    """Frobenius norm of x * 2^exponent; x of any shape and floating dtype. float32, float64 for a float64 x."""
    k = power_of_two(x)
    unit = scaled(x, -k).astype(wide(x.dtype))  # before squaring: a bfloat16 square keeps three digits
    return Norm(jnp.sqrt(jnp.sum(jnp.square(unit))), k + exponent)


def stacked_frobenius(x: Float[Array, "L ..."], exponents: Float[Array, "L"] | None = None) -> Norm:
    """One Frobenius norm a layer, [L], of x[l] * 2^exponents[l]: reduces over every axis but the first."""
    zeros = jnp.zeros((x.shape[0],), jnp.float32)
    return jax.vmap(frobenius)(x, zeros if exponents is None else exponents)


def inner(a: Array, b: Array, exponent: Float[Array, ""] | float = 0.0) -> Norm:
    """<a, b * 2^exponent>, signed, summed in at least float32."""
    k, m, dtype = power_of_two(a), power_of_two(b), wide(a.dtype)
    total = jnp.sum(scaled(a, -k).astype(dtype) * scaled(b, -m).astype(dtype))
    return Norm(total, k + m + exponent)


def root_sum_square(norms: Iterable[Norm]) -> Norm:
    """sqrt(sum of squares) of norms of one shape, element by element."""
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *norms)
    return _combined(Norm(stack.mantissa, stack.exponent))


def _combined(stack: Norm) -> Norm:
    """Root of the sum of squares over the leading axis."""
    # A zero has no say in the common exponent.
    top = jnp.max(jnp.where(stack.mantissa > 0, stack.exponent, -jnp.inf), axis=0)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    # Below 2^-126 nothing is left of a square; above 0 there are only zeros.
    parts = scaled(stack.mantissa, jnp.clip(stack.exponent - top[None], -126.0, 0.0))
    return Norm(jnp.sqrt(jnp.sum(jnp.square(parts), axis=0)), top)


def root_mean_of_parts(stack: Norm) -> Norm:
    """sqrt(sum |delta_m|^2 / M^2) over the leading axis: delta of a batch from those of its M micro-batches."""
    parts = stack.mantissa.shape[0]
    total = _combined(stack)
    return Norm(total.mantissa / parts, total.exponent)


def matrix_norms(blocks: Mapping[str, Any], exponents: Float[Array, "L"] | None = None) -> dict[str, Norm]:
    """Norms [L] of every stacked parameter of the blocks, by tag, and of the whole block as `layer`."""
    norms = {tag: stacked_frobenius(leaf, exponents) for tag, leaf in named(blocks).items()}
    return norms | {"layer": root_sum_square(norms.values())}


def named(tree: Mapping[str, Any]) -> dict[str, Array]:
    """Leaves by tag: `attn/q/kernel` is attn_q, `norm_1/gain` is norm_1, `attn/q/bias` is attn_q_bias."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tag_of(tuple(str(entry.key) for entry in path)): leaf for path, leaf in leaves}


def tag_of(path: tuple[str, ...]) -> str:
    """
    >>> tag_of(("mlp", "in_", "kernel"))
    'mlp_in'
    """
    parts = [part.strip("_") for part in path]
    return "_".join(parts[:-1] if len(parts) > 1 and parts[-1] in ("kernel", "gain") else parts)


def log10(norm: Norm) -> np.ndarray:
    """log10 of the absolute values on the host, in float64: -inf for an exact zero, nan for nan. Shape as given."""
    mantissa = np.abs(np.asarray(norm.mantissa, np.float64))
    with np.errstate(divide="ignore"):
        return np.log10(mantissa) + np.asarray(norm.exponent, np.float64) * np.log10(2.0)


def value(norm: Norm) -> np.ndarray:
    """The values on the host, in float64: exact wherever a float64 can hold them."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(np.asarray(norm.mantissa, np.float64), np.asarray(norm.exponent, np.int64))


def gains(delta_log10: np.ndarray) -> np.ndarray:
    """g_l = |delta_l| / |delta_(l+1)|, [L], from log10 norms [L+1]; nan where both are exactly zero."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        return 10.0 ** (delta_log10[:-1] - delta_log10[1:])
