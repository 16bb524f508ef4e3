"""Gradient statistics beyond the norm: inner products with weights, cosines, zeros and histograms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from model.layers import wide
from model.network import Params
from model.scaling import exponent_of, power_of_two, scaled

from .delta import Backward, exponents_of, head_table, true_gradients
from .norms import Norm, along, cosine, inner, named, signed_sum

OCTAVES = 64  # buckets of a histogram


def weight_dot_grad(params: Params, result: Backward) -> dict[str, Norm]:
    """Returns <W, dL/dW> under the names of `flow`: [L] for each matrix and the whole block, [] for other entries.

    It is 0 for a W whose scale a norm without epsilon removes.
    """
    weights, grads, exponents = named(params["blocks"]), named(result.params["blocks"]), exponents_of(result)
    dots = {tag: jax.vmap(inner)(weights[tag], grads[tag], exponents["blocks"]) for tag in weights}
    dots["layer"] = signed_sum(dots.values())
    dots["lookup"] = inner(params["embed"], result.params["embed"], exponents["embed"])
    dots["head"] = inner(head_table(params), result.head)
    dots["embed"] = dots["lookup"] if "head" in params else signed_sum([dots["lookup"], dots["head"]])
    for name in ("positions", "norm_f"):
        if name in params:
            pairs = zip(jax.tree.leaves(params[name]), jax.tree.leaves(result.params[name]), strict=True)
            dots[name] = signed_sum([inner(w, g, exponents[name]) for w, g in pairs])
    return dots


class Cosines(NamedTuple):
    """Cosines between two gradients; nan where one of them is exactly zero."""

    layer: Float[Array, "L"]
    whole: Float[Array, ""]  # over all parameters


def cosines(a: Backward, b: Backward) -> Cosines:
    """Returns <a, b> / (|a| |b|) of two gradients, for each block and over all parameters, at any scale."""

    def products(a: Backward, b: Backward) -> tuple[Norm, Norm]:
        """Returns <a, b> for each block [L], and over all parameters []."""
        a_blocks, b_blocks = named(a.params["blocks"]), named(b.params["blocks"])
        exponents = a.exponents[1:] + b.exponents[1:]
        blocks = signed_sum([jax.vmap(inner)(a_blocks[tag], b_blocks[tag], exponents) for tag in a_blocks])
        ends = [{k: v for k, v in true_gradients(result).items() if k != "blocks"} for result in (a, b)]
        rest = signed_sum([inner(x, y) for x, y in zip(*map(jax.tree.leaves, ends), strict=True)])
        return blocks, signed_sum([along(blocks, 0), rest])

    layer, whole = zip(products(a, b), products(a, a), products(b, b), strict=True)
    return Cosines(cosine(*layer), cosine(*whole))


def zero_fraction(result: Backward) -> dict[str, Float[Array, "L"]]:
    """Returns the fraction of exactly zero entries in the gradient of each matrix, by tag, and of the block, "layer".

    A ReLU unit that is never active leaves a column of zeros; so does an underflow inside the branch.
    """
    grads = named(result.params["blocks"])
    zeros = {tag: jnp.sum(grad == 0, axis=tuple(range(1, grad.ndim))) for tag, grad in grads.items()}
    sizes = {tag: grad[0].size for tag, grad in grads.items()}
    total = jnp.sum(jnp.stack(list(zeros.values())), axis=0) / sum(sizes.values())
    return {tag: zeros[tag] / sizes[tag] for tag in grads} | {"layer": total}


class Histogram(NamedTuple):
    """Counts of entries by octave: bucket i holds 2^(top-1-i) <= |g| < 2^(top-i), the last also all smaller ones."""

    counts: Float[Array, "L octaves"]
    zeros: Float[Array, "L"]
    top: Float[Array, "L"]  # exponent, at the true scale


def histogram(result: Backward) -> Histogram:
    """Returns the histogram of |dL/dW| over all entries of each block, computed on the device."""

    def of_block(g: Float[Array, "N"], exponent: Float[Array, ""]) -> Histogram:
        k = power_of_two(g)
        size = jnp.abs(scaled(g, -k)).astype(wide(g.dtype))
        alive = size > 0
        octave = jnp.clip(-exponent_of(size), 0, OCTAVES - 1).astype(jnp.int32)
        counts = jnp.zeros(OCTAVES, jnp.float32).at[octave].add(alive.astype(jnp.float32))
        return Histogram(counts, jnp.sum(~alive).astype(jnp.float32), k + exponent)

    leaves = jax.tree.leaves(result.params["blocks"])
    flat_LN = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
    return jax.vmap(of_block)(flat_LN, result.exponents[1:])


def edges(top: float) -> np.ndarray:
    """Returns log10 of the bucket edges, largest first, [octaves + 1]. The last bucket is open below."""
    return (top - np.arange(OCTAVES + 1)) * np.log10(2.0)
