"""Assembly of a batch on the device from the arrays that the host sends."""

from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Int

from data.source import Batch

# A Batch; windows of tokens [B, T+1]; or, for a corpus on the device, the start of each window [B].
BatchInput: TypeAlias = Any


def batch_of(feed: BatchInput, corpus: Int[Array, "n"] | None = None, context: int = 0) -> Batch:
    """Returns inputs [B, T], targets and their weights. The targets of a window are its tokens shifted by one.

    With `corpus`, `feed` holds the starts of windows of `context` + 1 tokens, which are gathered from it.
    """
    if isinstance(feed, Batch):
        return feed
    if corpus is not None:
        feed = corpus[feed[:, None] + jnp.arange(context + 1, dtype=feed.dtype)[None, :]]
    windows = jnp.asarray(feed).astype(jnp.int32)
    return Batch(windows[:, :-1], windows[:, 1:])
