"""Taps: identities whose backward pass measures the cotangent and rescales it into the range of its dtype.

Without skips and norms the gradient at depth l can be 1e-60: float32 flushes it to zero long before the first layer,
and its square below 1e-19. A tap therefore divides the cotangent by the power of two of its norm, or of its largest
entry, and passes the exponent on. The range is then unlimited, and since powers of two are exact nothing else changes.
(The parts of a carry share one exponent, so the range between them is that of the dtype.) Gradients below a tap are
scaled by known powers of two; train/gradflow/delta.py multiplies them back.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .float64_sums import in_double
from .layers import wide


def exponent_limit(dtype: jax.typing.DTypeLike) -> int:
    """Returns the largest k for which 2^k and 2^-k are both normal: 126 for float32, 1022 for float64."""
    return int(jnp.finfo(dtype).maxexp) - 2


def power_of_two(x: Array) -> Float[Array, ""]:
    """Returns k with max|x| in [2^(k-1), 2^k) as float32; 0 if max|x| is 0 or not finite.

    k is clipped to the limit of x's dtype; the next tap removes the rest.
    """
    return exponent_of(jnp.max(jnp.abs(x)))


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


def tap(
    carry: Any, exponent: Float[Array, ""], slot: Float[Array, "2"], stream: Callable[[Any], Array] | None = None
) -> tuple[Any, Float[Array, ""]]:
    """Returns (carry, exponent) unchanged; `carry` is any tree of arrays. In the backward pass:

    - the cotangent of `slot` is (mantissa, e) with |delta|_F = mantissa * 2^e, where delta is the true cotangent of
      the part of the carry that `stream` selects (None: the carry is one array);
    - the cotangent of the carry is scaled to a norm or largest entry in [0.5, 1), all leaves by the same 2^-e;
    - the cotangent of `exponent` is e for the taps below, so thread it from tap to tap, starting at 0.

    `slot` has the dtype of sums over the stream (float32, or float64 for a float64 stream). It must be an input of the
    scan over blocks, one row a depth: if it is closed over, the rows add up.
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
    dtype = jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(delta)))
    k, mantissa = in_double(dtype, partial(_by_norm, delta, stream), partial(_by_largest, delta, stream))
    e = above + k
    return jax.tree.map(lambda leaf: scaled(leaf, -k), delta), e, jnp.stack([mantissa, e.astype(mantissa.dtype)])


def _by_norm(delta: Any, stream: Callable[[Any], Array] | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the result of `_by_largest` with the norm of delta in place of its largest entry; traced in float64."""
    limit = min(exponent_limit(leaf.dtype) for leaf in jax.tree.leaves(delta))
    delta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), delta)
    selected = delta if stream is None else stream(delta)
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(delta)]
    k = jnp.clip(exponent_of(jnp.sqrt(sum(squares))), -limit, limit)
    return k, scaled(jnp.sqrt(jnp.sum(jnp.square(selected))), -k).astype(jnp.float32)


def _by_largest(delta: Any, stream: Callable[[Any], Array] | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns (k, |stream part of delta| * 2^-k), with k the power of two of delta's largest entry."""
    leaves = jax.tree.leaves(delta)
    k = power_of_two(leaves[0]) if len(leaves) == 1 else _largest_power(leaves)
    delta = jax.tree.map(lambda leaf: scaled(leaf, -k), delta)
    selected = delta if stream is None else stream(delta)
    # Other parts of the carry may be far larger, so the stream is squared at its own scale.
    shift = power_of_two(selected)
    mantissa = jnp.sqrt(jnp.sum(jnp.square(scaled(selected, -shift).astype(wide(selected.dtype)))))
    return k, scaled(mantissa, shift)


def _largest_power(leaves: list[Array]) -> Float[Array, ""]:
    tops = [jnp.max(jnp.abs(leaf)).astype(wide(leaf.dtype)) for leaf in leaves]
    return exponent_of(jnp.max(jnp.stack(tops)))


_tap: Any = jax.custom_vjp(_identity, nondiff_argnums=(3,))
_tap.defvjp(_forward, _backward)
