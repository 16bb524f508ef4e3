"""Gradient statistics beyond the norm: inner products with weights, cosines, mean parts, ranks, histograms."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from model.layers import wide
from model.network import Params
from model.scaling import exponent_of, power_of_two, scaled

from .delta import Backward, exponents_of, head_table, true_gradients
from .norms import Norm, along, cosine, inner, named, root_sum_square, signed_sum, stacked_frobenius

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


class MeanShare(NamedTuple):
    """Sizes of two parts of a gradient, relative to it; they sum to it as matrices, not as norms."""

    mean: Norm  # |N dbar abar^T| / |G|; nan where G is exactly zero
    covariance: Norm  # |sum_t (delta_t - dbar)(a_t - abar)^T| / |G|; nan too where it is lost in the rounding of G


def mean_shares(
    gradients: Mapping[str, Float[Array, "L D F"]],
    totals: Mapping[str, Float[Array, "L F"]],
    inputs: Mapping[str, Float[Array, "L D"]],
) -> dict[str, MeanShare]:
    """Returns the shares [L] of the two parts of G = sum_t a_t delta_t^T, by tag, and of all matrices as "layer".

    delta_t is the gradient at the output of a linear map for token t of N, a_t its input. gradients: G, at any scale a
    layer; totals: N dbar, the gradient of the map's bias; inputs: abar. Tokens that are alike leave the mean part
    alone. K's is 0, since the softmax is blind to what all keys share (without rotation, norm or cap).
    """
    whole, mean, rest = {}, {}, {}
    for tag, g in gradients.items():
        part = inputs[tag][:, :, None] * totals[tag][:, None, :]
        left = g - part
        size, top = (jnp.max(jnp.abs(x), axis=(1, 2)) for x in (left, g))
        # A difference below the rounding error of its operands is unknown rather than small.
        lost = (size > 0) & (size < 100 * jnp.finfo(g.dtype).eps * top)
        whole[tag], mean[tag] = stacked_frobenius(g), stacked_frobenius(part)
        rest[tag] = stacked_frobenius(jnp.where(lost[:, None, None], jnp.nan, left))
    for norms in (whole, mean, rest):
        norms["layer"] = root_sum_square(list(norms.values()))
    return {tag: MeanShare(mean[tag].over(norm), rest[tag].over(norm)) for tag, norm in whole.items()}


def stable_rank(x: Float[Array, "... D F"]) -> Float[Array, "..."]:
    """Returns |x|_F^2 / |x|_2^2, from 1 to the rank (Rudelson & Vershynin 2007, math/0503442); nan for a zero x.

    The Gram matrix of the shorter side to the power 2^20, by squaring, projects on its top eigenvectors. (Batched eigh
    of several matrices at once hangs XLA:CPU on two cores.)
    """
    top = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    unit = x / jnp.where(top > 0, top, 1)
    if x.shape[-2] > x.shape[-1]:
        unit = jnp.swapaxes(unit, -2, -1)
    gram = unit @ jnp.swapaxes(unit, -2, -1)

    def trace(matrix: Array) -> Array:
        return jnp.trace(matrix, axis1=-2, axis2=-1)

    def squared(_: int, power: Array) -> Array:
        power = power @ power
        return power / trace(power)[..., None, None]

    power = jax.lax.fori_loop(0, 20, squared, gram / trace(gram)[..., None, None])
    return trace(gram) / jnp.sum(gram * power, axis=(-2, -1))


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
