"""A tap: the identity forwards; backwards it measures the cotangent that passes, and keeps it in range.

The gradient that reaches depth l of a plain network can be 1e-60: float32 flushes it to zero long before it reaches
the first layer, and a sum of squares does so at 1e-19. A tap therefore divides the passing cotangent by the power of
two of its largest entry and hands the exponent on, so the range is unlimited and, a power of two being exact,
nothing else changes. Gradients of what lies below a tap come out scaled by known powers of two
(train/gradflow/delta.py multiplies them back).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.layers import wide

# ldexp(1, k) must itself be a normal float32; what is left over is caught by the next tap.
_LIMIT = 126


def power_of_two(x: Array) -> Float[Array, ""]:
    """k with max|x| in [2^(k-1), 2^k), clipped to +-126, as float32; 0 when max|x| is 0 or not finite."""
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    k = jnp.frexp(jnp.where(jnp.isfinite(largest), largest, 0.0))[1]
    return jnp.clip(k, -_LIMIT, _LIMIT).astype(jnp.float32)


def scaled(x: Array, k: Float[Array, ""]) -> Array:
    """x * 2^k exactly, for an integer k within +-126."""
    return x * jnp.ldexp(jnp.ones((), x.dtype), k.astype(jnp.int32))


@jax.custom_vjp
def tap(x: Float[Array, "N D"], exponent: Float[Array, ""], slot: Float[Array, "2"]):
    """(x, exponent) unchanged. Under a gradient:

    - the cotangent of `slot` is (mantissa, e) with |delta|_F = mantissa * 2^e, delta the true cotangent of x;
    - the cotangent of x leaves scaled to a largest entry in [0.5, 1): delta * 2^-e;
    - the cotangent of `exponent` carries e to the taps below, so thread it from tap to tap, starting at 0.

    `slot` has the dtype of sums over x (float32, or float64 for a float64 x). It must be an input of the scan over
    blocks, one row a depth: closed over, the rows would add up.
    """
    del slot
    return x, exponent


def _forward(x, exponent, slot):
    del slot
    return (x, exponent), None


def _backward(_, cotangents):
    delta, above = cotangents
    k = power_of_two(delta)
    delta = scaled(delta, -k)
    mantissa = jnp.sqrt(jnp.sum(jnp.square(delta), dtype=wide(delta.dtype)))
    e = above + k
    return delta, e, jnp.stack([mantissa, e.astype(mantissa.dtype)])


tap.defvjp(_forward, _backward)
