"""Batches on the device: assembly from what the host sends, weights of targets, micro-batches."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from data.source import Batch

# A Batch; windows of tokens [B, T+1]; or, for a corpus on the device, the start of each window [B].
BatchInput: TypeAlias = Any


def batch_of(batch_input: BatchInput, corpus: Int[Array, "n"] | None = None, context: int = 0) -> Batch:
    """Returns inputs [B, T], targets and their weights. The targets of a window are its tokens shifted by one.

    With `corpus`, `batch_input` holds the starts of windows of `context` + 1 tokens, which are gathered from it.
    """
    if isinstance(batch_input, Batch):
        return batch_input
    if corpus is not None:
        batch_input = corpus[batch_input[:, None] + jnp.arange(context + 1, dtype=batch_input.dtype)[None, :]]
    windows = jnp.asarray(batch_input).astype(jnp.int32)
    return Batch(windows[:, :-1], windows[:, 1:])


def weight_of(batch: Batch, dtype: Any) -> Float[Array, ""]:
    """Returns the sum of the weights of a batch's targets."""
    if batch.weights is None:
        return jnp.asarray(batch.targets.size, dtype)
    return jnp.sum(batch.weights.astype(dtype))


def weighted_sum(values: Float[Array, "N"], batch: Batch) -> Float[Array, ""]:
    """Returns the weighted sum of one value a target. Targets of weight 0 are masked, even where the value is nan."""
    if batch.weights is None:
        return jnp.sum(values)
    weights = batch.weights.reshape(-1).astype(values.dtype)
    return jnp.sum(jnp.where(weights > 0, values, 0) * weights)


def micro(parts: int, batch: Batch, key: Key[Array, ""] | None) -> tuple[Batch, Key[Array, "parts"] | None]:
    """Returns micro-batches, leaves [parts, B / parts, ...], and their dropout keys.

    Each takes every `parts`-th row, so that the rows of a device stay there.
    """
    split = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
    return split, None if key is None else jax.random.split(key, parts)


def micro_total(batch: Batch, parts: int) -> Float[Array, ""] | None:
    """Returns the divisor of a micro-batch's weighted sum that makes the mean over `parts` of them the batch's mean.

    A mean of means would overweight the targets of micro-batches that have few. None if every target has weight 1.
    """
    return None if batch.weights is None else jnp.sum(batch.weights) / parts
