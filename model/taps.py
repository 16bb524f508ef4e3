"""A tap: the identity forwards; backwards it measures the cotangent that passes, and keeps it in range.

The gradient that reaches depth l of a plain network can be 1e-60: float32 flushes it to zero long before it reaches
the first layer, and a sum of squares does so at 1e-19. A tap therefore divides the passing cotangent by the power of
two of its largest entry and hands the exponent on, so the range is unlimited and, a power of two being exact,
nothing else changes. (Of a carry of several parts the largest entry of all counts: the range between its parts is that
of the dtype.) Gradients of what lies below a tap come out scaled by known powers of two
(train/gradflow/delta.py multiplies them back).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.layers import wide


def exponent_limit(dtype: jax.typing.DTypeLike) -> int:
    """The largest k for which 2^k and 2^-k are both normal: 126 for float32, 1022 for float64."""
    return int(jnp.finfo(dtype).maxexp) - 2


def power_of_two(x: Array) -> Float[Array, ""]:
    """k with max|x| in [2^(k-1), 2^k), within the limit of x's dtype, as float32; 0 when max|x| is 0 or not finite.

    What the limit leaves over is caught by the next tap.
    """
    return exponent_of(jnp.max(jnp.abs(x)))


def exponent_of(largest: Float[Array, "..."]) -> Float[Array, "..."]:
    """`power_of_two` of each of several absolute values.

    Read from the bits: one shift, where jnp.frexp is a dozen operations.
    """
    mantissa, bias, integer = _layout(largest.dtype)
    bits = jax.lax.bitcast_convert_type(largest.astype(wide(largest.dtype)), integer)
    limit = exponent_limit(largest.dtype)
    k = jnp.clip((bits >> mantissa) - (bias - 1), -limit, limit)
    return jnp.where((bits == 0) | ~jnp.isfinite(largest), 0, k).astype(jnp.float32)


def scaled(x: Float[Array, "..."], k: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * 2^k exactly, for integers k within the limit of x's dtype."""
    mantissa, bias, integer = _layout(x.dtype)
    power = jax.lax.bitcast_convert_type((k.astype(integer) + bias) << mantissa, wide(x.dtype))
    return x * power.astype(x.dtype)


def _layout(dtype: jax.typing.DTypeLike) -> tuple[int, int, type]:
    """(bits of the mantissa, bias of the exponent, an integer as wide) of the IEEE type that sums over x run in."""
    return (52, 1023, jnp.int64) if wide(dtype) == jnp.dtype("float64") else (23, 127, jnp.int32)


def tap(
    carry: Any, exponent: Float[Array, ""], slot: Float[Array, "2"], stream: Callable[[Any], Array] | None = None
) -> tuple[Any, Float[Array, ""]]:
    """(carry, exponent) unchanged; `carry` is any tree of arrays. Under a gradient:

    - the cotangent of `slot` is (mantissa, e) with |delta|_F = mantissa * 2^e, delta the true cotangent of what
      `stream` picks from the carry (None: the carry is one array);
    - the cotangent of the carry leaves scaled to a largest entry in [0.5, 1), all leaves by the same 2^-e;
    - the cotangent of `exponent` carries e to the taps below, so thread it from tap to tap, starting at 0.

    `slot` has the dtype of sums over the stream (float32, or float64 for a float64 stream). It must be an input of the
    scan over blocks, one row a depth: closed over, the rows would add up.
    """
    return _tap(carry, exponent, slot, stream)


def _identity(carry, exponent, slot, stream):
    del slot, stream
    return carry, exponent


def _forward(carry, exponent, slot, stream):
    del slot, stream
    return (carry, exponent), None


def _backward(stream, _, cotangents):
    delta, above = cotangents
    leaves = jax.tree.leaves(delta)
    k = power_of_two(leaves[0]) if len(leaves) == 1 else _largest_power(leaves)
    delta = jax.tree.map(lambda leaf: scaled(leaf, -k), delta)
    seen = delta if stream is None else stream(delta)
    # The other parts may be far larger: squares of what is left of the stream are taken at its own scale.
    own = power_of_two(seen)
    mantissa = jnp.sqrt(jnp.sum(jnp.square(scaled(seen, -own).astype(wide(seen.dtype)))))
    mantissa = scaled(mantissa, own)
    e = above + k
    return delta, e, jnp.stack([mantissa, e.astype(mantissa.dtype)])


def _largest_power(leaves: list[Array]) -> Float[Array, ""]:
    tops = [jnp.max(jnp.abs(leaf)).astype(wide(leaf.dtype)) for leaf in leaves]
    return exponent_of(jnp.max(jnp.stack(tops)))


_tap: Any = jax.custom_vjp(_identity, nondiff_argnums=(3,))
_tap.defvjp(_forward, _backward)
