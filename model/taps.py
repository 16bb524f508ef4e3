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

from .layers import wide
from .scaling import exponent_limit, exponent_of, in_double, power_of_two, scaled


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


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _tap(carry, exponent, slot, stream):
    del slot, stream
    return carry, exponent


def _forward(carry, exponent, slot, stream):
    del slot, stream
    return (carry, exponent), None


def _backward(stream, _, cotangents):
    delta, above = cotangents
    leaves = jax.tree.leaves(delta)

    def selected(delta: Any) -> Array:
        return delta if stream is None else stream(delta)

    def by_norm() -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns the result of `by_largest` with the norm of delta in place of its largest entry; in float64."""
        limit = min(exponent_limit(leaf.dtype) for leaf in leaves)
        wider = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), delta)
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(wider)]
        k = jnp.clip(exponent_of(jnp.sqrt(sum(squares))), -limit, limit)
        return k, scaled(jnp.sqrt(jnp.sum(jnp.square(selected(wider)))), -k).astype(jnp.float32)

    def by_largest() -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns (k, |stream part of delta| * 2^-k), with k the power of two of delta's largest entry."""
        k = power_of_two(delta)
        part = selected(jax.tree.map(lambda leaf: scaled(leaf, -k), delta))
        # Other parts of the carry may be far larger, so the stream is squared at its own scale.
        shift = power_of_two(part)
        mantissa = jnp.sqrt(jnp.sum(jnp.square(scaled(part, -shift).astype(wide(part.dtype)))))
        return k, scaled(mantissa, shift)

    k, mantissa = in_double(jnp.result_type(*(leaf.dtype for leaf in leaves)), by_norm, by_largest)
    e = above + k
    return jax.tree.map(lambda leaf: scaled(leaf, -k), delta), e, jnp.stack([mantissa, e.astype(mantissa.dtype)])


_tap.defvjp(_forward, _backward)
