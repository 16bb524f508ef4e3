"""Training losses: mean cross-entropy in nats, or mean squared error, over weighted targets."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from data.source import Batch
from model.layers import root_mean_square
from model.network import Network, Params
from model.transformer import StreamStats

from ..gradflow.delta import TappedLoss
from .batch import BatchInput, batch_of, weight_of, weighted_sum


def cross_entropy(logits: Float[Array, "N V"], targets: Int[Array, "N"]) -> Float[Array, "N"]:
    """Returns -log softmax(logits)[target] for each token, in nats and in the dtype of the logits."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    shifted = logits - jax.lax.stop_gradient(top)
    chosen = jnp.take_along_axis(shifted, targets[:, None], axis=-1)[:, 0]
    return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - chosen


def losses(
    network: Network, logits: Float[Array, "N V"], batch: Batch, numbers: Mapping[str, Any] | None = None
) -> Float[Array, "N"]:
    """Returns the loss of each target: cross-entropy in nats, or for regression the mean squared error of its values.

    `numbers` may hold `task.label_smoothing` e (targets (1 - e) one-hot + e / V; Szegedy et al. 2016, 1512.00567,
    section 7) and `task.z_loss` (Chowdhery et al. 2022, 2204.02311, section 5).
    """
    if network.task == "regression":
        values = batch.targets.reshape(logits.shape).astype(logits.dtype)
        return jnp.mean(jnp.square(logits - values), axis=-1)
    loss, numbers = cross_entropy(logits, batch.targets.reshape(-1)), numbers or {}
    smoothing, factor = numbers.get("task.label_smoothing"), numbers.get("task.z_loss")
    if smoothing is None and factor is None:
        return loss
    log_z = jax.nn.logsumexp(logits, axis=-1)
    if smoothing is not None:
        smoothing = jnp.asarray(smoothing, loss.dtype)
        loss = (1 - smoothing) * loss + smoothing * (log_z - jnp.mean(logits, axis=-1))
    return loss if factor is None else loss + jnp.asarray(factor, loss.dtype) * jnp.square(log_z)


def mean_loss(each: Float[Array, "N"], batch: Batch, total: Float[Array, ""] | None = None) -> Float[Array, ""]:
    """Returns the weighted mean of a batch's losses; `total` replaces the sum of the weights as the divisor."""
    if batch.weights is None:
        return jnp.mean(each)
    weight = weight_of(batch, each.dtype) if total is None else total.astype(each.dtype)
    return weighted_sum(each, batch) / weight


def tapped_loss(
    network: Network,
    batch_input: BatchInput,
    numbers: Mapping[str, Any] | None,
    key: Key[Array, ""] | None,
    total: Float[Array, ""] | None = None,
) -> TappedLoss:
    """Returns the mean loss of a batch as a function of (params, head table, slots), for train/gradflow/delta.py.

    `numbers`: the model's traced numbers; None takes those of the config. `key`: dropout; None turns it off. `total`:
    divisor of the weighted sum in place of the batch's own weight (see `micro_total`).
    """
    batch = batch_of(batch_input)

    def loss(params: Params, head: Array | None, slots: Array | None) -> tuple[Array, tuple[StreamStats | None, Array]]:
        def score(logits: Array, targets: Array) -> tuple[Array, Array]:
            rms = jax.vmap(root_mean_square)(jax.lax.stop_gradient(logits))
            return losses(network, logits, batch._replace(targets=targets), numbers), rms

        (each, rms), stats = network.apply(
            params,
            batch.inputs,
            numbers=numbers,
            key=key,
            slots=slots,
            head=head,
            score=score,
            targets=jnp.asarray(batch.targets),
        )
        return mean_loss(each, batch, total), (stats, root_mean_square(rms))

    return loss  # pyright: ignore[reportReturnType]  # None slots leave the taps out; `backward` always passes them
