"""Gradient noise scale: the batch size beyond which more examples hardly improve a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .norms import Norm, along, inner, signed_sum


class Noise(NamedTuple):
    """Unbiased estimates, of the shape of the squares; from few batches either may be negative."""

    gradient: Norm  # |G|^2 of the true gradient G
    trace: Norm  # S, the trace of the covariance of one example's gradient


def square(tree: Any) -> Norm:
    """Returns |g|^2 over all leaves."""
    return signed_sum([inner(leaf, leaf) for leaf in jax.tree.leaves(tree)])


def block_squares(gradient: Any) -> Norm:
    """Returns |g|^2 of each block, and in the last place of all parameters, [L+1]."""
    blocks = signed_sum([jax.vmap(inner)(leaf, leaf) for leaf in jax.tree.leaves(gradient["blocks"])])
    rest = square({name: leaves for name, leaves in gradient.items() if name != "blocks"})
    whole = signed_sum([along(blocks, 0), rest])
    return jax.tree.map(lambda some, one: jnp.append(some, one), blocks, whole)


def noise(
    gradient: Callable[[Any, Any], Any], batches: Any, parts: int, squares: Callable[[Any], Norm] = square
) -> Noise:
    """Estimates |G|^2 and S from the gradients of batches and of `parts` equal parts of each.

    Both are averaged over the batches; the noise scale is then S / |G|^2, in examples (McCandlish et al. 2018,
    1812.06162, appendix A.1). gradient: (part of a batch, leaves [b, ...]; the batch) -> the gradient of the part's
    loss, weighted so that the mean over parts is the batch's. batches: leaves [J, B, ...]. squares: a gradient -> its
    |g|^2, whole or by parts. Raises ValueError unless parts > 1 divides B.
    """
    B = jax.tree.leaves(batches)[0].shape[1]
    if parts < 2 or B % parts:
        raise ValueError(f"expected a number of parts, at least 2, that divides the batch {B}, got {parts}")
    small = B // parts

    def squares_of_batch(_: None, batch: Any) -> tuple[None, tuple[Norm, Norm]]:
        split = jax.tree.map(lambda leaf: leaf.reshape(parts, small, *leaf.shape[1:]), batch)

        def part(total: Any, examples: Any) -> tuple[Any, Norm]:
            g = gradient(examples, batch)
            return jax.tree.map(jnp.add, total, g), squares(g)

        shapes = jax.eval_shape(gradient, jax.tree.map(lambda leaf: leaf[0], split), batch)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, each = jax.lax.scan(part, zero, split)
        return None, (squares(jax.tree.map(lambda leaf: leaf / parts, total)), _mean(each))

    _, (big, little) = jax.lax.scan(squares_of_batch, None, batches)
    big, little = _mean(big), _mean(little)
    gradient_square = signed_sum([_times(big, B / (B - small)), _times(little, -small / (B - small))])
    trace = signed_sum([_times(little, small * B / (B - small)), _times(big, -small * B / (B - small))])
    return Noise(gradient_square, trace)


def _mean(values: Norm) -> Norm:
    return _times(along(values, 0), 1 / values.mantissa.shape[0])


def _times(norm: Norm, factor: float | Float[Array, ""]) -> Norm:
    return Norm(norm.mantissa * factor, norm.exponent)
