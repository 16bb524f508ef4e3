"""Measurements inside the blocks of a model: attention, hidden units, and delta's two ways down a block.

Everything goes block by block through an `Anatomy` (model/network.py), so that nothing has to be kept that is not
asked for; the training step knows nothing of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.layers import wide
from model.network import Anatomy
from model.residual import Carry
from model.taps import power_of_two, scaled

from .norms import Norm, cosine, frobenius, inner

Looks = Mapping[str, Callable[[Array], Any]]  # functions of what an observer receives, by name


def observed(anatomy: Anatomy, looks: Looks) -> dict[str, Any]:
    """The results of `looks` in each block, stacked [L, ...]. Names: "attention", "mlp" (model/residual/base.py)."""

    def body(carry: Carry, inputs: tuple[Any, Array]) -> tuple[Carry, dict[str, Any]]:
        found: dict[str, Any] = {}

        def observe(name: str, value: Array) -> None:
            if name in looks:
                found[name] = looks[name](value)

        return anatomy.block(*inputs, carry, observe), found

    depth = jax.tree.leaves(anatomy.blocks)[0].shape[0]
    return jax.lax.scan(body, anatomy.carry, (anatomy.blocks, jnp.arange(depth)))[1]


class Attention(NamedTuple):
    """Statistics of every head; the entropy is nan where no query sees two keys."""

    entropy: Float[Array, "H"]  # mean over queries that see at least two keys; 1 = it looks at all alike, 0 = at one
    logit_max: Float[Array, "H"]  # the largest score that is not masked


def attention(scores: Float[Array, "B H T T"]) -> Attention:
    """Entropy of softmax(scores) over the visible keys divided by ln(their count), and the largest score.

    A collapsing entropy goes with training that breaks down (Zhai et al. 2023, 2303.06296), and so do growing scores
    (Dehghani et al. 2023, 2302.05442, section 2). Masked scores are the least finite number.
    """
    scores = scores.astype(wide(scores.dtype))
    visible = ~(scores <= jnp.finfo(scores.dtype).min)  # so that nan is seen
    logs = jax.nn.log_softmax(scores, axis=-1)
    entropy_BHT = -jnp.sum(jnp.where(visible, jnp.exp(logs) * logs, 0), axis=-1)
    count_BHT = jnp.sum(visible, axis=-1)
    counts = count_BHT > 1
    share = entropy_BHT / jnp.where(counts, jnp.log(count_BHT.astype(entropy_BHT.dtype)), 1)
    mean = jnp.sum(jnp.where(counts, share, 0), axis=(0, 2)) / jnp.sum(counts.astype(share.dtype), axis=(0, 2))
    top = jnp.max(jnp.where(visible, scores, -jnp.inf), axis=(0, 2, 3))
    unknown = jnp.any(jnp.isnan(scores), axis=(0, 2, 3))  # which the maximum loses on a CPU (docs/pitfalls.md)
    return Attention(mean, jnp.where(unknown, jnp.nan, top))


def dead_units(hidden: Float[Array, "N F"]) -> Float[Array, ""]:
    """The fraction of hidden units that are exactly zero for every token of the batch: ReLU units that no gradient
    reaches (Lu et al. 2019, 1903.06733). Smooth activations have none, unless they underflow."""
    return jnp.mean(jnp.all(hidden == 0, axis=0).astype(jnp.float32))


def carries(anatomy: Anatomy) -> Carry:
    """The carries that enter every block, and the last block's output, [L+1, ...]."""

    def body(carry: Carry, inputs: tuple[Any, Array]) -> tuple[Carry, Carry]:
        return anatomy.block(*inputs, carry), carry

    depth = jax.tree.leaves(anatomy.blocks)[0].shape[0]
    last, before = jax.lax.scan(body, anatomy.carry, (anatomy.blocks, jnp.arange(depth)))
    return jax.tree.map(lambda some, one: jnp.concatenate([some, one[None]]), before, last)


class Split(NamedTuple):
    """delta_l = skip + branch: what reaches x_l past the sublayers of block l, and what comes through them.

    |delta_l|^2 = |skip|^2 + 2 cosine |skip| |branch| + |branch|^2.
    """

    delta: Norm  # [L]
    skip: Norm  # [L]
    branch: Norm  # [L]; nan where it is below 1e-5 of delta in float32, whose rounding it is lost in
    cosine: Float[Array, "L"]  # of skip and branch; nan where one is exactly zero


def split(anatomy: Anatomy, loss: Callable[[Float[Array, "N V"]], Float[Array, ""]]) -> Split:
    """The skip and the branch part of delta at the input of every block.

    J^T delta_(l+1) with J = dx_(l+1) / dx_l. The skip part is the same with every branch F held fixed, so of pre_ln
    it is s^2 delta_(l+1), of post_ln what the norms let through. `loss`: of the logits.
    """
    entered = carries(anatomy)
    last = jax.tree.map(lambda leaf: leaf[-1], entered)
    cotangent = jax.grad(lambda carry: loss(anatomy.logits(carry)))(last)
    depth = jax.tree.leaves(anatomy.blocks)[0].shape[0]

    def body(state: tuple[Carry, Array], inputs: tuple[Any, Array, Carry]) -> tuple[tuple[Carry, Array], Split]:
        (cotangent, exponent), (parameters, layer, carry) = state, inputs

        def pulled(detached: bool) -> Carry:
            pull: Any = jax.vjp(lambda c: anatomy.block(parameters, layer, c, detached=detached), carry)[1]
            return pull(cotangent)[0]

        down, skip = pulled(False), pulled(True)
        k = _common_power(down)
        x, past = (scaled(anatomy.stream(part), -k) for part in (down, skip))
        through = x - past
        exponent = exponent + k
        # A difference that is lost in the rounding of what it is the difference of is not known, and not small.
        size = jnp.max(jnp.abs(through))
        lost = (size > 0) & (size < 100 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x)))
        through = jnp.where(lost, jnp.nan, through)
        angle = cosine(inner(past, through), inner(past, past), inner(through, through))
        found = Split(frobenius(x, exponent), frobenius(past, exponent), frobenius(through, exponent), angle)
        return (jax.tree.map(lambda leaf: scaled(leaf, -k), down), exponent), found

    k = _common_power(cotangent)
    start = (jax.tree.map(lambda leaf: scaled(leaf, -k), cotangent), k)
    below = jax.tree.map(lambda leaf: leaf[:-1], entered)
    return jax.lax.scan(body, start, (anatomy.blocks, jnp.arange(depth), below), reverse=True)[1]


def _common_power(tree: Carry) -> Float[Array, ""]:
    """The power of two of the largest entry of all leaves."""
    return power_of_two(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))
