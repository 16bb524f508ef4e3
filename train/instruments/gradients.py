"""Instruments on gradients: their entries, parts and ranks, angles between them, and their noise."""

from functools import partial

import jax
import jax.numpy as jnp

from data.source import Batch
from model.network import Params
from model.residual import without_skip

from ..core.batch import micro_total
from ..gradflow import gradients, noise, per_block
from ..gradflow.norms import Norm, named
from .readings import Reading, Signed
from .snapshot import Snapshot

# The matrices of a block, and the input of each by the name that an observer has for it (model/residual/base.py).
INPUT_OF = dict.fromkeys(("attn_q", "attn_k", "attn_v"), "attn/input") | {"attn_o": "attn/heads"}
INPUT_OF |= dict.fromkeys(("mlp_gate", "mlp_in"), "mlp/input") | {"mlp_out": "mlp/hidden"}


def entries(snapshot: Snapshot) -> dict[str, Reading]:
    """Zeros among the gradient's entries, and the histogram of their sizes."""
    result = snapshot.backward(snapshot.params)
    return {"grad/zero_fraction": gradients.zero_fraction(result), "grad/histogram": gradients.histogram(result)}


def weight_dot_grad(snapshot: Snapshot) -> dict[str, Reading]:
    """<W, dL/dW>."""
    dots = gradients.weight_dot_grad(snapshot.params, snapshot.backward(snapshot.params))
    return {"grad/dot_weight": {tag: Signed(dot) for tag, dot in dots.items()}}


def grad_mean(snapshot: Snapshot) -> dict[str, Reading]:
    """Shares of the mean and of the covariance part of each matrix's gradient."""
    biased = snapshot.biased
    result = biased.backward(biased.params)
    mean = partial(jnp.mean, axis=0)
    inputs = per_block.observed(biased.anatomy(), dict.fromkeys(INPUT_OF.values(), mean))
    grads = named(result.params["blocks"])
    shares = gradients.mean_shares(
        {tag: grads[tag] for tag in INPUT_OF if tag in grads},
        {tag: grads[f"{tag}_bias"] for tag in INPUT_OF if tag in grads},
        {tag: inputs[name] for tag, name in INPUT_OF.items()},
    )
    return {
        f"grad_mean/{part}": {tag: Signed(getattr(share, part)) for tag, share in shares.items()}
        for part in gradients.MeanShare._fields
    }


def stable_rank(snapshot: Snapshot) -> dict[str, Reading]:
    """Stable rank of each matrix and of its gradient, and the least of a layer."""

    def ranks(blocks: Params) -> Reading:
        matrices = {tag: leaf for tag, leaf in named(blocks).items() if tag in INPUT_OF}
        of = {tag: gradients.stable_rank(matrix) for tag, matrix in matrices.items()}
        return {"layer": jnp.nanmin(jnp.stack(list(of.values())), axis=0)} | of

    grads = snapshot.backward(snapshot.params).params["blocks"]
    return {"weight/stable_rank": ranks(snapshot.params["blocks"]), "grad/stable_rank": ranks(grads)}


def twins(snapshot: Snapshot) -> dict[str, Reading]:
    """Cosine to the gradient of the same weights at skip scale 0."""
    with_skip = snapshot.backward(snapshot.params)
    without = snapshot.backward(snapshot.params, without_skip(snapshot.hp.model))
    return _angles("cosine/without_skip", gradients.cosines(with_skip, without))


def successive(snapshot: Snapshot) -> dict[str, Reading]:
    """Cosine to the gradient of the next step, at its weights and on its batch."""
    this, following = snapshot.backward(snapshot.params), snapshot.backward(snapshot.updated(), index=1)
    return _angles("cosine/next_step", gradients.cosines(this, following))


def _angles(name: str, cosines: gradients.Cosines) -> dict[str, Reading]:
    return {name: {"layer": cosines.layer, "all": cosines.whole}}


def noise_scale(snapshot: Snapshot) -> dict[str, Reading]:
    """Trace of the gradient's covariance, its squared mean, and their ratio in windows: whole, and by block."""
    parts = noise_parts(snapshot.config.data.batch)

    def gradient(part: Batch, whole: Batch) -> Params:
        total = micro_total(whole, parts)  # so that the mean over parts is the whole batch's gradient
        return jax.grad(snapshot.loss_of)(snapshot.params, part, total)

    def at(part: Norm, index: int | slice) -> Signed:
        return Signed(jax.tree.map(lambda leaf: leaf[index], part))

    of = noise.noise(gradient, snapshot.batches, parts, noise.block_squares)
    scale = of.trace.over(of.gradient)
    return {
        "noise/scale": at(scale, -1),
        "noise/gradient_square": at(of.gradient, -1),
        "noise/trace": at(of.trace, -1),
        "noise/block_scale": at(scale, slice(-1)),
    }


def noise_parts(batch: int) -> int:
    """The number of parts that a batch is cut into: the largest divisor up to 8, or the smallest beyond.

    >>> [noise_parts(batch) for batch in (16, 12, 7, 22, 11, 121, 1)]
    [8, 6, 7, 2, 11, 11, 1]
    """
    few = max(parts for parts in range(1, min(8, batch) + 1) if batch % parts == 0)
    return few if few > 1 else next((parts for parts in range(9, batch + 1) if batch % parts == 0), 1)
