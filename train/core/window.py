"""K optimizer steps in one call: the unit of dispatch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from model.network import Network
from train.config.schema import RunConfig
from train.core.optimizer import HParams
from train.core.state import State
from train.core.step import Metrics, Watched, train_step


def windows_of(corpus: Int[Array, "n"] | None, batch: Int[Array, "B ..."], context: int) -> Int[Array, "B T+1"]:
    """The tokens of a batch: gathered at its starts [B] when the corpus is on the device, else the batch itself."""
    if corpus is None:
        return batch
    return corpus[batch[:, None] + jnp.arange(context + 1, dtype=batch.dtype)[None, :]]


def run_window(
    network: Network,
    config: RunConfig,
    watch_every: int,
    state: State,
    hp: HParams,
    corpus: Int[Array, "n"] | None,
    batches: Int[Array, "K B ..."],
) -> tuple[State, Metrics, Watched | None]:
    """Runs the K steps of `batches`; returns metrics [K], and what the watched steps measured, [ceil(K/every), ...].

    The first step of a window is watched, and then every `watch_every`-th; 0 watches none. Each watched step is
    peeled off the scan of plain steps, since a condition inside a vmapped scan would pay for both sides every time.
    """
    K = batches.shape[0]

    def one(state: State, batch: Array, watched: bool):
        return train_step(network, config, state, hp, windows_of(corpus, batch, network.context), watched)

    def plain(state: State, batches: Array) -> tuple[State, Metrics]:
        def body(state, batch):
            state, metrics, _ = one(state, batch, False)
            return state, metrics

        return jax.lax.scan(body, state, batches)

    def segment(state: State, batches: Array) -> tuple[State, tuple[Metrics, Watched | None]]:
        state, metrics, watched = one(state, batches[0], True)
        metrics = jax.tree.map(lambda leaf: leaf[None], metrics)
        if batches.shape[0] > 1:
            state, rest = plain(state, batches[1:])
            metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, rest)
        return state, (metrics, watched)

    if watch_every == 0:
        state, metrics = plain(state, batches)
        return state, metrics, None
    every = min(watch_every, K)
    whole = K // every
    split = batches[: whole * every].reshape(whole, every, *batches.shape[1:])
    state, (metrics, watched) = jax.lax.scan(segment, state, split)
    metrics = jax.tree.map(lambda leaf: leaf.reshape(-1), metrics)
    if whole * every < K:
        state, (last, last_watched) = segment(state, batches[whole * every :])
        metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, last)
        watched = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), watched, last_watched)
    return state, metrics, watched
