"""Arithmetic of unlimited range: powers of two factored out of arrays, and sums in float64 on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .layers import wide

try:
    _enabled = partial(jax.enable_x64, True)
except AttributeError:  # jax 0.7
    from jax.experimental import enable_x64 as _enabled  # pyright: ignore[reportAttributeAccessIssue]

Result = TypeVar("Result")


def exponent_limit(dtype: jax.typing.DTypeLike) -> int:
    """Returns the largest k for which 2^k and 2^-k are both normal: 126 for float32, 1022 for float64."""
    return int(jnp.finfo(dtype).maxexp) - 2


def power_of_two(x: Any) -> Float[Array, ""]:
    """Returns k with max|x| in [2^(k-1), 2^k) as float32; 0 if max|x| is 0 or not finite. x: an array, or a tree.

    k is clipped to the limit of the dtype of x, in a tree of the widest one's.
    """
    tops = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(x)]
    return exponent_of(tops[0] if len(tops) == 1 else jnp.max(jnp.stack([top.astype(wide(top.dtype)) for top in tops])))


def exponent_of(largest: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the `power_of_two` of each absolute value, elementwise.

    It is read from the bits with one shift, where jnp.frexp takes a dozen operations.
    """
    mantissa, bias, integer = _layout(largest.dtype)
    bits = jax.lax.bitcast_convert_type(largest.astype(wide(largest.dtype)), integer)
    limit = exponent_limit(largest.dtype)
    k = jnp.clip((bits >> mantissa) - (bias - 1), -limit, limit)
    return jnp.where((bits == 0) | ~jnp.isfinite(largest), 0, k).astype(jnp.float32)


def scaled(x: Float[Array, "..."], k: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x * 2^k exactly, for integers k within the limit of x's dtype."""
    mantissa, bias, integer = _layout(x.dtype)
    power = jax.lax.bitcast_convert_type((k.astype(integer) + bias) << mantissa, wide(x.dtype))
    return x * power.astype(x.dtype)


def rooted(sums: Float[Array, "..."]) -> tuple[Array, Array]:
    """Returns (mantissa, k), float32, with mantissa * 2^k = sqrt(sums) and mantissa in [0.5, 1) or 0."""
    root = jnp.sqrt(sums)
    k = exponent_of(root)
    return scaled(root, -k).astype(jnp.float32), k


def _layout(dtype: jax.typing.DTypeLike) -> tuple[int, int, type]:
    """Returns (mantissa bits, exponent bias, integer type of that width) of the IEEE type `wide(dtype)`."""
    return (52, 1023, jnp.int64) if wide(dtype) == jnp.dtype("float64") else (23, 127, jnp.int32)


def in_double(dtype: jax.typing.DTypeLike, result: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
    """Returns `result()`, traced with float64 enabled, on a CPU; `otherwise()` on accelerators and for float64 entries.

    `dtype` is that of the entries; `result` must not return float64 arrays. The square of every float32 is in float64's
    range, so one pass over the entries is enough, where float32 needs a second one to factor out the largest. (GPUs
    are slow at float64, TPUs lack it.)
    """

    def enabled() -> Result:
        with _enabled():
            return result()

    if wide(dtype) == jnp.dtype("float64"):
        return otherwise()
    return jax.lax.platform_dependent(cpu=enabled, default=otherwise)
