"""K optimizer steps in one call: the unit of dispatch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from model.network import Network

from ..config.schema import RunConfig
from .batch import BatchInput, batch_of
from .finite import sound
from .optimizer import HParams
from .state import State
from .step import Metrics, StepStats, train_step


def run_window(
    network: Network,
    config: RunConfig,
    watch_every: int,
    state: State,
    hp: HParams,
    corpus: Int[Array, "n"] | None,
    batches: BatchInput,
) -> tuple[State, Metrics, StepStats | None]:
    """Runs the K steps of `batches`, leaves [K, B, ...] (train/core/batch.py).

    Returns the state, metrics [K], and what the watched steps measured, [ceil(K/every), ...]. The last step counts as
    finite only if it leaves a finite state: an optimizer's averages may overflow where no gradient did.

    The first step of a window is watched, and then every `watch_every`-th; 0 watches none. Each watched step is
    peeled off the scan of plain steps, since a condition inside a vmapped scan would pay for both sides every time.
    """
    K = jax.tree.leaves(batches)[0].shape[0]

    def one(state: State, feed: BatchInput, watched: bool):
        return train_step(network, config, state, hp, batch_of(feed, corpus, network.context), watched)

    def plain(state: State, batches: BatchInput) -> tuple[State, Metrics]:
        def body(state, batch):
            state, metrics, _ = one(state, batch, False)
            return state, metrics

        return jax.lax.scan(body, state, batches)

    def segment(state: State, batches: BatchInput) -> tuple[State, tuple[Metrics, StepStats | None]]:
        state, metrics, watched = one(state, jax.tree.map(lambda leaf: leaf[0], batches), True)
        metrics = jax.tree.map(lambda leaf: leaf[None], metrics)
        if jax.tree.leaves(batches)[0].shape[0] > 1:
            state, rest = plain(state, jax.tree.map(lambda leaf: leaf[1:], batches))
            metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, rest)
        return state, (metrics, watched)

    if watch_every == 0:
        state, metrics = plain(state, batches)
        return state, _checked(config, metrics, state), None
    every = min(watch_every, K)
    whole = K // every
    split = jax.tree.map(lambda leaf: leaf[: whole * every].reshape(whole, every, *leaf.shape[1:]), batches)
    state, (metrics, watched) = jax.lax.scan(segment, state, split)
    metrics = jax.tree.map(lambda leaf: leaf.reshape(-1), metrics)
    if whole * every < K:
        state, (last, last_watched) = segment(state, jax.tree.map(lambda leaf: leaf[whole * every :], batches))
        metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, last)
        watched = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), watched, last_watched)
    return state, _checked(config, metrics, state), watched


def _checked(config: RunConfig, metrics: Metrics, state: State) -> Metrics:
    if config.train.on_nonfinite == "skip":  # no step left a state that is not finite
        return metrics
    return metrics._replace(finite=metrics.finite.at[-1].set(metrics.finite[-1] & sound(state)))
