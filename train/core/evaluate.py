"""The held-out loss: one compiled scan over batches."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from data.source import Batch
from model.network import Network, Params

from .batch import BatchInput, batch_of
from .loss import losses, weight_of, weighted_sum


class Scores(NamedTuple):
    """Means over all targets that count."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]  # the fraction whose class is the likeliest one; 0 for regression


def evaluate(
    network: Network,
    params: Params,
    numbers: Mapping[str, Any],
    corpus: Int[Array, "n"] | None,
    feeds: BatchInput,
    rows: Float[Array, "S B"],
) -> Scores:
    """Scores of batches, leaves [S, B, ...], over the rows of weight 1."""

    def one(sums, item):
        feed, row = item
        batch = _weighted(batch_of(feed, corpus, network.context), row, 1 if network.pooled else 2)
        logits, _ = network.apply(params, batch.inputs, numbers=numbers)
        right = jnp.zeros(logits.shape[:1], logits.dtype)
        if network.task != "regression":
            likeliest = jnp.argmax(logits, axis=-1).astype(batch.targets.dtype)
            right = (likeliest == batch.targets.reshape(-1)).astype(logits.dtype)
        each = losses(network, logits, batch)
        found = (weighted_sum(each, batch), weighted_sum(right, batch), weight_of(batch, logits.dtype))
        return jax.tree.map(lambda total, more: total + more.astype(total.dtype), sums, found), None

    zero = jnp.zeros((), network.param_dtype)
    (loss, right, weight), _ = jax.lax.scan(one, (zero, zero, zero), (feeds, rows))
    return Scores(loss / weight, right / weight)


def _weighted(batch: Batch, row: Float[Array, "B"], axes: int) -> Batch:
    """The batch with its targets, counted by their first `axes`, weighted by their rows too."""
    row = jnp.broadcast_to(row.reshape(-1, *(1,) * (axes - 1)), batch.targets.shape[:axes])
    return batch._replace(weights=row if batch.weights is None else batch.weights.astype(row.dtype) * row)
