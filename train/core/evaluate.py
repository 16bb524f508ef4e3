"""The held-out loss: one compiled scan over batches of windows."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.network import Network, Params
from train.core.loss import cross_entropy, split_windows


def heldout_loss(
    network: Network, params: Params, numbers: Mapping[str, Any], batches, windows_of, weights: Float[Array, "S B"]
) -> Float[Array, ""]:
    """Mean loss in nats over the tokens of all windows of weight 1. `windows_of(batch)` gives [B, T+1] tokens."""

    def one(total, item):
        batch, weight = item
        inputs, targets = split_windows(windows_of(batch))
        logits, _ = network.apply(params, inputs, numbers=numbers)
        losses = cross_entropy(logits, targets).reshape(inputs.shape)
        return total + jnp.sum(jnp.mean(losses, axis=1) * weight.astype(losses.dtype)), None

    total, _ = jax.lax.scan(one, jnp.zeros((), network.param_dtype), (batches, weights))
    return total / jnp.sum(weights).astype(network.param_dtype)
