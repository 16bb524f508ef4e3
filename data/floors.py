"""Loss of the best constant prediction; a model that has learned anything is below it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def entropy(p: NDArray[np.floating]) -> NDArray[np.floating]:
    """-sum p ln p over the last axis of p [..., S], in nats [...], with 0 ln 0 = 0."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)


def counts(ids: NDArray[np.integer], block: int = 2**16, blocks: int = 256) -> NDArray[np.integer]:
    """Occurrences [m] of each id of ids [n]; of a longer sequence, within `blocks` blocks spread evenly over it.

    A memory-mapped corpus may be too large to be read at every start.
    """
    if len(ids) <= block * blocks:
        return np.bincount(ids.astype(np.int64))
    starts = np.arange(blocks) * (len(ids) - block) // (blocks - 1)
    parts = [np.bincount(ids[start : start + block].astype(np.int64)) for start in starts]
    return np.sum([_padded(part, max(map(len, parts))) for part in parts], axis=0)


def unigram(train: NDArray[np.integer], heldout: NDArray[np.integer], vocab_size: int) -> float:
    """Mean loss of predicting held-out tokens by their training frequencies, from the counts [m], [k]; nats a token.

    The cross-entropy -sum_i q_i ln p_i of the two distributions; p with one more of each id (Laplace's rule), so that
    an id that does not occur in `train` has a finite loss.
    """
    train, heldout = (_padded(each, max(len(train), len(heldout))) for each in (train, heldout))
    p = (train + 1.0) / (train.sum() + vocab_size)
    return float(-np.sum(heldout * np.log(p)) / heldout.sum())


def prior(targets: Any, weights: Any = None) -> float:
    """Mean loss of the best constant probabilities: the entropy of `targets` [...] under `weights`; nats a target."""
    share = np.bincount(np.ravel(targets), None if weights is None else np.ravel(weights)).astype(np.float64)
    return float(entropy(share / share.sum()))


def _padded(counted: np.ndarray, size: int) -> np.ndarray:
    return np.pad(counted, (0, size - len(counted)))
