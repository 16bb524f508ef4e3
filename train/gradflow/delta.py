"""One backward pass that gives the gradients and delta at every depth, in unlimited range.

delta_l = dL/dx_l is the gradient of the mean loss at the residual stream entering block l; delta_L at the output of
the last block, before the final norm. (Textbooks write delta for dL/d pre-activation: this is not that.)
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from model.layers import root_mean_square, wide
from model.network import Params
from model.taps import exponent_limit, scaled
from model.transformer import StreamStats

from .norms import (
    Norm,
    Norms,
    flat,
    log10,
    matrix_norms,
    root_mean_of_parts,
    separate_norms,
)

TINY_WEIGHT = -5.0  # log10 of a norm: products of a few such weights leave float32's range

# loss(params, head, slots) -> (mean loss, (seen, aux)): head is the table that makes logits, slots are the taps'.
TappedLoss = Callable[[Params, Array, Array], tuple[Array, tuple[StreamStats, Any]]]


class Backward(NamedTuple):
    """Gradients as a tapped backward pass leaves them: each scaled by a known power of two."""

    params: Params  # true gradient = entry * 2^exponent, see `exponents_of`
    head: Float[Array, "V D"]  # of the head's use of its table, unscaled
    exponents: Float[Array, "L+1"]
    delta: Norm  # [L+1], true values
    seen: StreamStats


def backward(loss: TappedLoss, params: Params, depth: int) -> tuple[Float[Array, ""], Backward, Any]:
    """(loss, gradients and delta, aux) at `params`; `depth` is L. Take it inside vmap and a micro-batch: slots of
    several examples would add up."""
    table = head_table(params)
    slots = jnp.zeros((depth + 1, 2), wide(table.dtype))
    (value, (seen, aux)), (grads, head, slot_grads) = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
        params, table, slots
    )
    exponents = slot_grads[:, 1].astype(jnp.float32)
    delta = Norm(slot_grads[:, 0], exponents)
    return value, Backward(grads, head, exponents, delta, seen), aux


def delta_of(loss: Callable[[Array], Array], depth: int, dtype: jax.typing.DTypeLike = "float32") -> Norm:
    """|delta_l| at l = 0 to L of any network whose stream goes through taps, [L+1]; `depth` is L.

    loss: slots [L+1, 2] -> the loss, where the network hands slots[l] to the tap at depth l, and the exponent from tap
    to tap, starting at 0 (model/taps.py). `dtype`: of the stream, or float32 for a narrower one.
    """
    slots = jax.grad(loss)(jnp.zeros((depth + 1, 2), wide(dtype)))
    return Norm(slots[:, 0], slots[:, 1])


def head_table(params: Params) -> Float[Array, "V D"]:
    """The table the logits are made with: the head's own, or the embedding when they are tied."""
    return params.get("head", params["embed"])


def exponents_of(result: Backward) -> dict[str, Float[Array, "..."]]:
    """The power of two that each top-level entry of the gradients still lacks.

    A block's gradients come from the cotangent that the tap above it let through; the embeddings' from the lowest tap.
    """
    lowest, zero = result.exponents[0], jnp.zeros((), jnp.float32)
    above = {"blocks": result.exponents[1:], "embed": lowest, "positions": lowest}
    return {name: above.get(name, zero) for name in result.params}


def true_gradients(result: Backward) -> Params:
    """Gradients at their true scale, for the optimizer: a tied table gets both of its paths."""
    grads = _unscaled(result)
    owner = "head" if "head" in grads else "embed"
    return grads | {owner: grads[owner] + result.head}


def _unscaled(result: Backward) -> Params:
    """`params` of the result with its powers of two multiplied back."""
    exponents = exponents_of(result)
    return {
        name: jax.tree.map(partial(_shift, exponent=exponents[name]), leaves) for name, leaves in result.params.items()
    }


def _shift(x: Float[Array, "..."], exponent: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * 2^exponent; the exponents are of x's leading axes."""
    # In two halves: 2^exponent alone may be out of range where x * 2^exponent is not.
    limit = exponent_limit(x.dtype)
    half = jnp.clip(jnp.trunc(exponent / 2), -limit, limit)
    for k in (half, jnp.clip(exponent - half, -limit, limit)):
        # A quotient, which is exact here: XLA:CPU fuses whatever is cheaper into the kernel of every parameter.
        power = 1 / scaled(jnp.ones_like(k, wide(x.dtype)), -k)
        x = x * power.astype(x.dtype).reshape(k.shape + (1,) * (x.ndim - k.ndim))
    return x


class Flow(NamedTuple):
    """The flow of the gradient before clipping. Norms are Frobenius norms at their true scale."""

    delta: Norm  # [L+1]
    grad: Norms  # "layer" and each matrix [L]; "embed", "head", "lookup", "positions", "norm_f" []
    seen: StreamStats | None


def flow(result: Backward) -> Flow:
    """The norms of a backward pass.

    `embed` is the whole gradient of the embedding table; `lookup` and `head` are its two paths when the head is tied,
    which belong to the bottom and the top of the network.
    """
    exponents = exponents_of(result)
    single = {"lookup": result.params["embed"], "head": result.head, "embed": result.params["embed"]}
    single |= {name: flat(result.params[name]) for name in ("positions", "norm_f") if name in result.params}
    lacking = {name: exponents[name] for name in single if name in exponents} | {"lookup": exponents["embed"]}
    if "head" not in result.params:
        single["embed"] = _shift(result.params["embed"], lacking.pop("embed")) + result.head
    blocks = matrix_norms(result.params["blocks"], exponents["blocks"])
    return Flow(result.delta, blocks.joined(separate_norms(single, lacking)), result.seen)


def underflows(flow: Flow, weight: Mapping[str, Norm], parts: bool) -> bool:
    """True where an exact zero of this backward pass may only be too small for the dtype.

    Delta has no limit between blocks (model/taps.py), but the stream and what is made of it has: the gradient of Q is
    a product of three activations, and of weights, which may be tiny. (A stream of zeros is exact, as at rezero's
    alpha = 0 without the skip.) And where a carry has `parts` other than the stream, delta has the range between them.
    """
    assert flow.seen is not None
    rms = np.asarray(flow.seen.rms)
    small = (rms > 0) & (rms.astype(np.float64) < float(np.finfo(rms.dtype).tiny) ** (1 / 3))
    if small.any() or (parts and np.isneginf(log10(flow.delta)).any()):
        return True
    sizes = np.concatenate([log10(norm).ravel() for norm in weight.values()])
    return bool((np.isfinite(sizes) & (sizes < TINY_WEIGHT)).any())


def mean_of_microbatches(results: Backward) -> Backward:
    """The whole batch from stacked results [M, ...] of equal micro-batches, scaled like the largest of them."""
    delta = root_mean_of_parts(results.delta)
    common = delta.exponent
    grads = jax.vmap(_unscaled)(results._replace(exponents=results.exponents - common[None]))
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads)
    rms = jax.vmap(root_mean_square, in_axes=1)(results.seen.rms)
    seen = StreamStats(rms, jnp.mean(results.seen.rank, axis=0))
    return Backward(mean, jnp.mean(results.head, axis=0), common, delta, seen)
