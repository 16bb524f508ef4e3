"""A dispatch: K optimizer steps as one program."""

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


def run_dispatch(
    network: Network,
    config: RunConfig,
    watch_every: int,
    state: State,
    hp: HParams,
    corpus: Int[Array, "n"] | None,
    batches: BatchInput,
) -> tuple[State, Metrics, StepStats | None]:
    """Runs the K steps of `batches`, leaves [K, B, ...] (train/core/batch.py).

    Returns the state, metrics [K], and the measurements of watched steps, [ceil(K/every), ...]. The last step counts as
    finite only if the state after it is: an optimizer's averages may overflow where no gradient did.

    The first step of a dispatch and every `watch_every`-th after it are watched; 0 watches none. Watched steps are
    peeled off the scan over the others, since a conditional inside a vmapped scan computes both branches every time.
    """
    K = jax.tree.leaves(batches)[0].shape[0]

    def step(state: State, batch_input: BatchInput, watched: bool):
        return train_step(network, config, state, hp, batch_of(batch_input, corpus, network.context), watched)

    def unwatched_steps(state: State, batches: BatchInput) -> tuple[State, Metrics]:
        def body(state, batch):
            state, metrics, _ = step(state, batch, False)
            return state, metrics

        return jax.lax.scan(body, state, batches)

    def segment(state: State, batches: BatchInput) -> tuple[State, tuple[Metrics, StepStats | None]]:
        state, metrics, watched = step(state, jax.tree.map(lambda leaf: leaf[0], batches), True)
        metrics = jax.tree.map(lambda leaf: leaf[None], metrics)
        if jax.tree.leaves(batches)[0].shape[0] > 1:
            state, rest = unwatched_steps(state, jax.tree.map(lambda leaf: leaf[1:], batches))
            metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, rest)
        return state, (metrics, watched)

    if watch_every == 0:
        state, metrics = unwatched_steps(state, batches)
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
    if config.train.on_nonfinite == "skip":  # non-finite states were discarded step by step
        return metrics
    return metrics._replace(finite=metrics.finite.at[-1].set(metrics.finite[-1] & sound(state)))
