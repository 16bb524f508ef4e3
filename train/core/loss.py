"""The training loss: mean cross-entropy over tokens, in nats."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from model.network import Network, Params
from model.transformer import Seen
from train.gradflow.delta import TappedLoss


def cross_entropy(logits: Float[Array, "N V"], targets: Int[Array, "N"]) -> Float[Array, "N"]:
    """-log softmax(logits)[target] of each token, in nats, in the dtype of the logits."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    shifted = logits - jax.lax.stop_gradient(top)
    chosen = jnp.take_along_axis(shifted, targets[:, None], axis=-1)[:, 0]
    return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - chosen


def split_windows(windows: Int[Array, "B T+1"]) -> tuple[Int[Array, "B T"], Int[Array, "N"]]:
    """(inputs, targets): each token is to be told from those before it."""
    windows = windows.astype(jnp.int32)
    return windows[:, :-1], windows[:, 1:].reshape(-1)


def tapped_loss(
    network: Network, windows: Int[Array, "B T+1"], numbers: Mapping[str, Any] | None, key: Key[Array, ""] | None
) -> TappedLoss:
    """The mean loss of windows as a function of (params, head table, slots), for train/gradflow/delta.py.

    `numbers`: the model's traced numbers; None for the config's own.
    """
    inputs, targets = split_windows(windows)

    def loss(params: Params, head: Array | None, slots: Array | None) -> tuple[Array, tuple[Seen | None, Array]]:
        logits, seen = network.apply(params, inputs, numbers=numbers, key=key, slots=slots, head=head)
        rms = jnp.sqrt(jnp.mean(jnp.square(jax.lax.stop_gradient(logits))))
        return jnp.mean(cross_entropy(logits, targets)), (seen, rms)

    return loss  # pyright: ignore[reportReturnType]  # None slots leave the taps out; `backward` always passes them
