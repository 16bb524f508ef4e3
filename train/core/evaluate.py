"""Held-out loss and accuracy as one scan over batches."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.network import Network, Params

from .batch import BatchInput, batch_of, weight_of, weighted_sum
from .loss import losses


class Scores(NamedTuple):
    """Means over all targets, by weight."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]  # fraction of targets that have the largest logit; 0 for regression


def evaluate(
    network: Network,
    params: Params,
    numbers: Mapping[str, Any],
    corpus: Int[Array, "n"] | None,
    batch_inputs: BatchInput,
    rows: Float[Array, "S B"],
) -> Scores:
    """Returns the scores over S batches, leaves [S, B, ...]. `rows` [S, B] weights each row: 0 for padding, else 1."""

    def add_batch(totals, item):
        batch_input, row = item
        batch = batch_of(batch_input, corpus, network.context)
        shape = batch.targets.shape[: 1 if network.pooled else 2]  # that of the weights
        row = jnp.broadcast_to(row.reshape(-1, *(1,) * (len(shape) - 1)), shape)
        batch = batch._replace(weights=row if batch.weights is None else batch.weights.astype(row.dtype) * row)

        def score(logits: Array, targets: Array) -> tuple[Array, Array]:
            correct = jnp.zeros(logits.shape[:1], logits.dtype)
            if network.task != "regression":
                likeliest = jnp.argmax(logits, axis=-1).astype(targets.dtype)
                correct = (likeliest == targets.reshape(-1)).astype(logits.dtype)
            return losses(network, logits, batch._replace(targets=targets)), correct

        (each, correct), _ = network.apply(params, batch.inputs, numbers=numbers, score=score, targets=batch.targets)
        sums = (weighted_sum(each, batch), weighted_sum(correct, batch), weight_of(batch, each.dtype))
        return jax.tree.map(lambda total, more: total + more.astype(total.dtype), totals, sums), None

    zero = jnp.zeros((), network.param_dtype)
    (loss, correct, weight), _ = jax.lax.scan(add_batch, (zero, zero, zero), (batch_inputs, rows))
    return Scores(loss / weight, correct / weight)
