"""Gradients and delta at every depth from one backward pass, with unlimited range.

delta_l = dL/dx_l is the gradient of the mean loss at the residual stream entering block l; delta_L is taken at the
output of the last block, before the final norm. (Textbooks write delta for the gradient at a pre-activation instead.)
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
from model.scaling import exponent_limit, scaled
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

# loss(params, head, slots) -> (mean loss, (stream statistics, aux)): head is the table that makes the logits, slots
# are those of the taps.
TappedLoss = Callable[[Params, Array, Array], tuple[Array, tuple[StreamStats, Any]]]


class Backward(NamedTuple):
    """Gradients of a tapped backward pass, each scaled by a known power of two."""

    params: Params  # true gradient = entry * 2^exponent, see `exponents_of`
    head: Float[Array, "V D"]  # gradient of the head's use of its table, at its true scale
    exponents: Float[Array, "L+1"]
    delta: Norm  # [L+1], true values
    stream: StreamStats


def backward(loss: TappedLoss, params: Params, depth: int) -> tuple[Float[Array, ""], Backward, Any]:
    """Returns (loss, gradients and delta, aux) at `params`; `depth` is L.

    Differentiate inside vmap and one micro-batch at a time: the slots of several examples would add up.
    """
    table = head_table(params)
    slots = jnp.zeros((depth + 1, 2), wide(table.dtype))
    (value, (stream, aux)), (grads, head, slot_grads) = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
        params, table, slots
    )
    exponents = slot_grads[:, 1].astype(jnp.float32)
    delta = Norm(slot_grads[:, 0], exponents)
    return value, Backward(grads, head, exponents, delta, stream), aux


def delta_of(loss: Callable[[Array], Array], depth: int, dtype: jax.typing.DTypeLike = "float32") -> Norm:
    """Returns |delta_l|, l = 0 to L, [L+1], of any network whose stream goes through taps; `depth` is L.

    loss: slots [L+1, 2] -> the loss. The network hands slots[l] to the tap at depth l, and the exponent from tap to
    tap, starting at 0 (model/taps.py). `dtype`: that of the stream, or float32 for a narrower one.
    """
    slots = jax.grad(loss)(jnp.zeros((depth + 1, 2), wide(dtype)))
    return Norm(slots[:, 0], slots[:, 1])


def head_table(params: Params) -> Float[Array, "V D"]:
    """Returns the table that makes the logits: the head's own, or the embedding when they are tied."""
    return params.get("head", params["embed"])


def exponents_of(result: Backward) -> dict[str, Float[Array, "..."]]:
    """Returns the exponents of two that bring each top-level entry of the gradients to its true scale.

    A block's gradients follow the cotangent that leaves the tap above it; the embeddings' that of the lowest tap.
    """
    lowest, zero = result.exponents[0], jnp.zeros((), jnp.float32)
    above = {"blocks": result.exponents[1:], "embed": lowest, "positions": lowest}
    return {name: above.get(name, zero) for name in result.params}


def true_gradients(result: Backward) -> Params:
    """Returns gradients at their true scale, for the optimizer; a tied table sums both of its paths."""
    grads = _unscaled(result)
    owner = "head" if "head" in grads else "embed"
    return grads | {owner: grads[owner] + result.head}


def _unscaled(result: Backward) -> Params:
    """Returns `params` of the result at their true scale."""
    exponents = exponents_of(result)
    return {
        name: jax.tree.map(partial(_shift, exponent=exponents[name]), leaves) for name, leaves in result.params.items()
    }


def _shift(x: Float[Array, "..."], exponent: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x * 2^exponent, with exponents over the leading axes of x."""
    # In two steps: 2^exponent may be out of range although x * 2^exponent is not.
    limit = exponent_limit(x.dtype)
    half = jnp.clip(jnp.trunc(exponent / 2), -limit, limit)
    for k in (half, jnp.clip(exponent - half, -limit, limit)):
        # Division by a power of two is exact; XLA:CPU would fuse a cheaper operation into every parameter's kernel.
        power = 1 / scaled(jnp.ones_like(k, wide(x.dtype)), -k)
        x = x * power.astype(x.dtype).reshape(k.shape + (1,) * (x.ndim - k.ndim))
    return x


class Flow(NamedTuple):
    """Gradient flow before clipping. Norms are Frobenius norms at their true scale."""

    delta: Norm  # [L+1]
    grad: Norms  # "layer" and each matrix [L]; "embed", "head", "lookup", "positions", "norm_f" []
    stream: StreamStats | None


def flow(result: Backward) -> Flow:
    """Returns the norms of a backward pass.

    `embed` is the whole gradient of the embedding table. With a tied head `lookup` and `head` are its two paths, at the
    bottom and at the top of the network.
    """
    exponents = exponents_of(result)
    single = {"lookup": result.params["embed"], "head": result.head, "embed": result.params["embed"]}
    single |= {name: flat(result.params[name]) for name in ("positions", "norm_f") if name in result.params}
    shifts = {name: exponents[name] for name in single if name in exponents} | {"lookup": exponents["embed"]}
    if "head" not in result.params:
        single["embed"] = _shift(result.params["embed"], shifts.pop("embed")) + result.head
    blocks = matrix_norms(result.params["blocks"], exponents["blocks"])
    return Flow(result.delta, blocks.joined(separate_norms(single, shifts)), result.stream)


def underflows(flow: Flow, weight: Mapping[str, Norm], parts: bool) -> bool:
    """True if exact zeros of this backward pass may have underflowed.

    Delta has unlimited range between blocks (model/taps.py); values within a block have the dtype's: the gradient of Q
    is a product of three activations and of weights, which may be tiny. A stream of exact zeros, as at rezero's
    alpha = 0 without the skip, is no underflow. If the carry has other `parts` than the stream, delta shares one scale
    with them and may underflow too.
    """
    assert flow.stream is not None
    rms = np.asarray(flow.stream.rms)
    small = (rms > 0) & (rms.astype(np.float64) < float(np.finfo(rms.dtype).tiny) ** (1 / 3))
    if small.any() or (parts and np.isneginf(log10(flow.delta)).any()):
        return True
    sizes = np.concatenate([log10(norm).ravel() for norm in weight.values()])
    return bool((np.isfinite(sizes) & (sizes < TINY_WEIGHT)).any())


def mean_of_microbatches(results: Backward) -> Backward:
    """Combines stacked results [M, ...] of equal micro-batches into that of the batch, at the scale of the largest."""
    delta = root_mean_of_parts(results.delta)
    common = delta.exponent
    grads = jax.vmap(_unscaled)(results._replace(exponents=results.exponents - common[None]))
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads)
    rms = jax.vmap(root_mean_square, in_axes=1)(results.stream.rms)
    stats = StreamStats(rms, jnp.mean(results.stream.rank, axis=0))
    return Backward(mean, jnp.mean(results.head, axis=0), common, delta, stats)
