"""Measurements inside blocks: attention, hidden units, and the skip and branch parts of delta.

They walk block by block through an `Anatomy` (model/network.py), so that only requested values are stored and the
training step is unaffected.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.layers import wide
from model.network import Anatomy
from model.residual import Carry
from model.scaling import power_of_two, scaled

from .norms import Norm, cosine, frobenius, inner

Observers = Mapping[str, Callable[[Array], Any]]  # functions of observed arrays, by the names of model/residual/base.py


def observed(anatomy: Anatomy, observers: Observers) -> dict[str, Any]:
    """Applies each observer to its array in every block; stacks the results [L, ...]. Names: "attention", "mlp"."""

    def body(carry: Carry, inputs: tuple[Any, Array]) -> tuple[Carry, dict[str, Any]]:
        results: dict[str, Any] = {}

        def observe(name: str, value: Array) -> None:
            if name in observers:
                results[name] = observers[name](value)

        return anatomy.block(*inputs, carry, observe), results

    depth = jax.tree.leaves(anatomy.blocks)[0].shape[0]
    return jax.lax.scan(body, anatomy.carry, (anatomy.blocks, jnp.arange(depth)))[1]


class Attention(NamedTuple):
    """Attention statistics of each head; entropy is nan where no query has two visible keys."""

    entropy: Float[Array, "H"]  # mean over queries with at least two visible keys; 1 = uniform, 0 = one key
    logit_max: Float[Array, "H"]  # largest unmasked score


def attention(scores: Float[Array, "B H T T"]) -> Attention:
    """Returns the entropy of softmax(scores) divided by ln(number of visible keys), and the largest score.

    Collapsing entropy (Zhai et al. 2023, 2303.06296) and growing scores (Dehghani et al. 2023, 2302.05442, section 2)
    accompany unstable training. Masked scores are the lowest finite number.
    """
    scores = scores.astype(wide(scores.dtype))
    visible = ~(scores <= jnp.finfo(scores.dtype).min)  # true for nan
    logs = jax.nn.log_softmax(scores, axis=-1)
    entropy_BHT = -jnp.sum(jnp.where(visible, jnp.exp(logs) * logs, 0), axis=-1)
    count_BHT = jnp.sum(visible, axis=-1)
    counts = count_BHT > 1
    share = entropy_BHT / jnp.where(counts, jnp.log(count_BHT.astype(entropy_BHT.dtype)), 1)
    mean = jnp.sum(jnp.where(counts, share, 0), axis=(0, 2)) / jnp.sum(counts.astype(share.dtype), axis=(0, 2))
    top = jnp.max(jnp.where(visible, scores, -jnp.inf), axis=(0, 2, 3))
    unknown = jnp.any(jnp.isnan(scores), axis=(0, 2, 3))  # a maximum drops nan on a CPU (docs/pitfalls.md)
    return Attention(mean, jnp.where(unknown, jnp.nan, top))


def dead_units(hidden: Float[Array, "N F"]) -> Float[Array, ""]:
    """Returns the fraction of hidden units that are exactly zero for every token of the batch.

    No gradient reaches such ReLU units (Lu et al. 2019, 1903.06733). Smooth activations have none, unless they
    underflow.
    """
    return jnp.mean(jnp.all(hidden == 0, axis=0).astype(jnp.float32))


def carries(anatomy: Anatomy) -> Carry:
    """Returns the carry that enters each block and the one that leaves the last, [L+1, ...]."""

    def body(carry: Carry, inputs: tuple[Any, Array]) -> tuple[Carry, Carry]:
        return anatomy.block(*inputs, carry), carry

    depth = jax.tree.leaves(anatomy.blocks)[0].shape[0]
    last, before = jax.lax.scan(body, anatomy.carry, (anatomy.blocks, jnp.arange(depth)))
    return jax.tree.map(lambda some, one: jnp.concatenate([some, one[None]]), before, last)


class Split(NamedTuple):
    """delta_l = skip + branch: the parts of delta that go past the sublayers of block l and through them.

    |delta_l|^2 = |skip|^2 + 2 cosine |skip| |branch| + |branch|^2.
    """

    delta: Norm  # [L]
    skip: Norm  # [L]
    branch: Norm  # [L]; nan where it is lost in the rounding of delta, below 1e-5 of it in float32
    cosine: Float[Array, "L"]  # between skip and branch; nan where one is exactly zero


def split(anatomy: Anatomy, loss: Callable[[Carry], Float[Array, ""]]) -> Split:
    """Returns the skip and branch parts of delta_l = J^T delta_(l+1), J = dx_(l+1) / dx_l, for every block.

    The skip part is the same product with every branch F held constant: s^2 delta_(l+1) under pre_ln, what passes
    through the norms under post_ln. `loss` is a function of the last block's output.
    """
    entered = carries(anatomy)
    last = jax.tree.map(lambda leaf: leaf[-1], entered)
    cotangent = jax.grad(loss)(last)
    depth = jax.tree.leaves(anatomy.blocks)[0].shape[0]

    def body(state: tuple[Carry, Array], inputs: tuple[Any, Array, Carry]) -> tuple[tuple[Carry, Array], Split]:
        (cotangent, exponent), (parameters, layer, carry) = state, inputs

        def pulled(detached: bool) -> Carry:
            pull: Any = jax.vjp(lambda c: anatomy.block(parameters, layer, c, detached=detached), carry)[1]
            return pull(cotangent)[0]

        down, skip = pulled(False), pulled(True)
        k = power_of_two(down)
        x, skip_part = (scaled(anatomy.stream(part), -k) for part in (down, skip))
        branch_part = x - skip_part
        exponent = exponent + k
        # A difference below the rounding error of its operands is unknown rather than small.
        size = jnp.max(jnp.abs(branch_part))
        lost = (size > 0) & (size < 100 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x)))
        branch_part = jnp.where(lost, jnp.nan, branch_part)
        angle = cosine(inner(skip_part, branch_part), inner(skip_part, skip_part), inner(branch_part, branch_part))
        parts = Split(frobenius(x, exponent), frobenius(skip_part, exponent), frobenius(branch_part, exponent), angle)
        return (jax.tree.map(lambda leaf: scaled(leaf, -k), down), exponent), parts

    k = power_of_two(cotangent)
    start = (jax.tree.map(lambda leaf: scaled(leaf, -k), cotangent), k)
    below = jax.tree.map(lambda leaf: leaf[:-1], entered)
    return jax.lax.scan(body, start, (anatomy.blocks, jnp.arange(depth), below), reverse=True)[1]
