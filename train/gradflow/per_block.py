"""Measurements inside blocks: attention, hidden units, sublayers against their stream, parts of delta, ablations.

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

# Functions of observed arrays, by the names of model/residual/base.py's Observer; of `stream`, x_l, at a block's start.
Observers = Mapping[str, Callable[[Array], Any]]


def observed(anatomy: Anatomy, observers: Observers) -> dict[str, Any]:
    """Applies each observer to its array in every block; stacks the results [L, ...]."""

    def body(carry: Carry, inputs: tuple[Any, Array]) -> tuple[Carry, dict[str, Any]]:
        results: dict[str, Any] = {}

        def observe(name: str, value: Array) -> Array:
            if name in observers:
                results[name] = observers[name](value)
            return value

        observe("stream", anatomy.stream(carry))
        return anatomy.block(*inputs, carry, observe), results

    return jax.lax.scan(body, anatomy.carry, (anatomy.blocks, anatomy.layers))[1]


class Attention(NamedTuple):
    """Attention statistics of each head; entropy is nan where no query has two visible keys."""

    entropy: Float[Array, "H"]  # mean over queries with at least two visible keys; 1 = uniform, 0 = one key
    logit_max: Float[Array, "H"]  # largest unmasked score
    sink: Float[Array, "H"]  # mean weight of the first token, over the same queries


def attention(scores: Float[Array, "B H T T"]) -> Attention:
    """Returns the entropy of softmax(scores) divided by ln(number of visible keys), the largest score, and the sink.

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
    first = jnp.exp(logs[..., 0])
    total = jnp.sum(counts.astype(share.dtype), axis=(0, 2))
    mean, sink = (jnp.sum(jnp.where(counts, each, 0), axis=(0, 2)) / total for each in (share, first))
    top = jnp.max(jnp.where(visible, scores, -jnp.inf), axis=(0, 2, 3))
    unknown = jnp.any(jnp.isnan(scores), axis=(0, 2, 3))  # a maximum drops nan on a CPU (docs/pitfalls.md)
    return Attention(mean, jnp.where(unknown, jnp.nan, top), sink)


def dead_units(hidden: Float[Array, "N F"]) -> Float[Array, ""]:
    """Returns the fraction of hidden units that are exactly zero for every token of the batch.

    No gradient reaches such ReLU units (Lu et al. 2019, 1903.06733). Smooth activations have none, unless they
    underflow.
    """
    return jnp.mean(jnp.all(hidden == 0, axis=0).astype(jnp.float32))


def peak(x: Float[Array, "N ..."]) -> Float[Array, ""]:
    """Returns max|x| / rms(x), 1 to sqrt(x.size): massive activations (Sun et al. 2024, 2402.17762); nan for zeros."""
    unit = scaled(x.astype(wide(x.dtype)), -power_of_two(x))
    return jnp.max(jnp.abs(unit)) / jnp.sqrt(jnp.mean(jnp.square(unit)))


def carries(anatomy: Anatomy) -> Carry:
    """Returns the carry that enters each block and the one that leaves the last, [L+1, ...]."""

    def body(carry: Carry, inputs: tuple[Any, Array]) -> tuple[Carry, Carry]:
        return anatomy.block(*inputs, carry), carry

    last, before = jax.lax.scan(body, anatomy.carry, (anatomy.blocks, anatomy.layers))
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

    def of_block(parameters: Any, layer: Array, carry: Carry, cotangent: Carry, exponent: Array) -> tuple[Carry, Split]:
        def pulled(detached: bool) -> Carry:
            pull: Any = jax.vjp(lambda c: anatomy.block(parameters, layer, c, detached=detached), carry)[1]
            return pull(cotangent)[0]

        down, skip = pulled(False), pulled(True)
        x, skip_part = anatomy.stream(down), anatomy.stream(skip)
        branch_part = x - skip_part
        # A difference below the rounding error of its operands is unknown rather than small.
        size = jnp.max(jnp.abs(branch_part))
        lost = (size > 0) & (size < 100 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x)))
        branch_part = jnp.where(lost, jnp.nan, branch_part)
        angle = cosine(inner(skip_part, branch_part), inner(skip_part, skip_part), inner(branch_part, branch_part))
        whole, skip_size, branch_size = (frobenius(part, exponent) for part in (x, skip_part, branch_part))
        return down, Split(whole, skip_size, branch_size, angle)

    return _downwards(anatomy, loss, of_block)


class SublayerStats(NamedTuple):
    """A sublayer's output y = F(N(x)) against x, the stream that it reads, over the whole batch."""

    ratio: Norm  # |y| / |x|; nan where x is exactly zero
    cosine: Float[Array, ""]  # between y and x; nan where one is exactly zero
    delta: Norm  # |dL/dy|


def ledger(anatomy: Anatomy, loss: Callable[[Carry], Float[Array, ""]]) -> dict[str, SublayerStats]:
    """Returns the stats [L] of the sublayers, by name: "attn", "mlp".

    x is the argument of the sublayer's input norm, or of the sublayer itself where no norm comes before it: the mix
    of the streams or sources that is read if a rule has several. y is taken before the rule scales or norms it. Under
    pre_ln |x + y|^2 = |x|^2 (1 + 2 cosine ratio + ratio^2) is |x|^2 of the next sublayer. `loss` is a function of the
    last block's output.
    """

    def of_block(
        parameters: Any, layer: Array, carry: Carry, cotangent: Carry, exponent: Array
    ) -> tuple[Carry, dict[str, SublayerStats]]:
        def block(carry: Carry, slots: dict[str, Array]) -> tuple[Carry, dict[str, tuple[Norm, Array]]]:
            x: dict[str, Array] = {}
            against: dict[str, tuple[Norm, Array]] = {}

            def observe(name: str, value: Array) -> Array:
                part, _, place = name.partition("/")
                y = jax.lax.stop_gradient(value)  # sums in float64 have no derivative in jax 0.7
                if place == "norm":
                    x[part] = y
                elif place == "input":
                    x.setdefault(part, y)
                elif place == "output":
                    against[part] = (
                        frobenius(y).over(frobenius(x[part])),
                        cosine(inner(y, x[part]), inner(y, y), inner(x[part], x[part])),
                    )
                    return _metered(value, slots[part])
                return value

            return anatomy.block(parameters, layer, carry, observe), against

        dtype = wide(anatomy.stream(carry).dtype)
        slots = {part: jnp.zeros(2, dtype) for part in ("attn", "mlp")}
        _, pull, against = jax.vjp(block, carry, slots, has_aux=True)
        down, delta = pull(cotangent)
        sizes = {part: Norm(size, k.astype(jnp.float32)).times(exponent) for part, (size, k) in delta.items()}
        return down, {part: SublayerStats(*against[part], sizes[part]) for part in slots}

    return _downwards(anatomy, loss, of_block)


@jax.custom_vjp
def _metered(x: Array, slot: Float[Array, "2"]) -> Array:
    """Returns x; the cotangent of `slot` is the norm (mantissa, exponent) of the cotangent of x."""
    del slot
    return x


def _meter(_: None, cotangent: Array) -> tuple[Array, Array]:
    norm, dtype = frobenius(cotangent), wide(cotangent.dtype)
    return cotangent, jnp.stack([norm.mantissa.astype(dtype), norm.exponent.astype(dtype)])


_metered.defvjp(lambda x, _: (x, None), _meter)


def _downwards(
    anatomy: Anatomy, loss: Callable[[Carry], Float[Array, ""]], of_block: Callable[..., tuple[Carry, Any]]
) -> Any:
    """Walks from the loss down with the cotangent of the carry, at any scale; stacks the results of `of_block`.

    of_block: (parameters, layer, carry that enters, cotangent of what leaves, its exponent) -> (cotangent of what
    enters, result). The true cotangent is `cotangent` times 2^exponent.
    """
    entered = carries(anatomy)
    cotangent = jax.grad(loss)(jax.tree.map(lambda leaf: leaf[-1], entered))

    def normed(cotangent: Carry, exponent: Array) -> tuple[Carry, Array]:
        k = power_of_two(cotangent)
        return jax.tree.map(lambda leaf: scaled(leaf, -k), cotangent), exponent + k

    def body(state: tuple[Carry, Array], inputs: tuple[Any, Array, Carry]) -> tuple[tuple[Carry, Array], Any]:
        down, result = of_block(*inputs, *state)
        return normed(down, state[1]), result

    below = jax.tree.map(lambda leaf: leaf[:-1], entered)
    start = normed(cotangent, jnp.zeros((), jnp.float32))
    return jax.lax.scan(body, start, (anatomy.blocks, anatomy.layers, below), reverse=True)[1]


class DepthLoss(NamedTuple):
    """Losses of parts of a network."""

    lens: Float[Array, "L+1"]  # with the head (and the final norm) on the stream of each depth
    ablated: Float[Array, "L"]  # without block l: its input goes on to block l + 1


def depth_loss(anatomy: Anatomy, loss: Callable[[Carry], Float[Array, ""]]) -> DepthLoss:
    """Returns the loss by depth (logit lens, nostalgebraist 2020), the last being the loss, and without each block.

    `loss` is a function of the last block's output.
    """
    entered = carries(anatomy)

    def without(missing: Array) -> Float[Array, ""]:
        def body(carry: Carry, inputs: tuple[Any, Array]) -> tuple[Carry, None]:
            return jax.lax.cond(inputs[1] > missing, lambda: anatomy.block(*inputs, carry), lambda: carry), None

        start = jax.tree.map(lambda leaf: leaf[missing], entered)
        return loss(jax.lax.scan(body, start, (anatomy.blocks, anatomy.layers))[0])

    return DepthLoss(jax.lax.map(loss, entered), jax.lax.map(without, anatomy.layers))
