"""The one place where what the host sends becomes a batch."""

from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Int

from data.source import Batch

# A Batch; windows of tokens [B, T+1]; or, of a corpus on the device, where its windows start [B].
BatchInput: TypeAlias = Any


def batch_of(feed: BatchInput, corpus: Int[Array, "n"] | None = None, context: int = 0) -> Batch:
    """Inputs [B, T], targets and their weights. Of a window, each token is to be told from those before it.

    Starts are gathered from the corpus, `context` + 1 tokens each.
    """
    if isinstance(feed, Batch):
        return feed
    if corpus is not None:
        feed = corpus[feed[:, None] + jnp.arange(context + 1, dtype=feed.dtype)[None, :]]
    windows = jnp.asarray(feed).astype(jnp.int32)
    return Batch(windows[:, :-1], windows[:, 1:])
