"""What the best answer that never changes costs: who has learned anything at all is below it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK, BLOCKS = 2**16, 256  # tokens that are counted of a sequence: so many blocks, spread evenly over it


def entropy(p: NDArray[np.floating]) -> NDArray[np.floating]:
    """-sum p ln p of each of p [..., S] in nats, [...], with 0 ln 0 = 0."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)


def counts(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """How often each of ids [n] comes, [m] up to the largest one; of more than BLOCK * BLOCKS ids in that many of them.

    A memory-mapped corpus may be larger than what can be read at every start.
    """
    if len(ids) <= BLOCK * BLOCKS:
        return np.bincount(ids.astype(np.int64))
    starts = np.arange(BLOCKS) * (len(ids) - BLOCK) // (BLOCKS - 1)
    parts = [np.bincount(ids[start : start + BLOCK].astype(np.int64)) for start in starts]
    return np.sum([_padded(part, max(map(len, parts))) for part in parts], axis=0)


def unigram(train: NDArray[np.integer], heldout: NDArray[np.integer], vocab_size: int) -> float:
    """Mean loss, on tokens counted in heldout [k], of who knows only how often each came in train [m]; nats a token.

    The cross-entropy -sum_i q_i ln p_i of the two distributions; p with one more of each id (Laplace's rule), so that
    one which never came in `train` costs something finite.
    """
    seen, asked = (_padded(each, max(len(train), len(heldout))) for each in (train, heldout))
    p = (seen + 1.0) / (seen.sum() + vocab_size)
    return float(-np.sum(asked * np.log(p)) / asked.sum())


def prior(targets: Any, weights: Any = None) -> float:
    """Mean loss of the best fixed probabilities of the classes: the entropy of `targets` [...], those of weight 0 left
    out; nats a target."""
    share = np.bincount(np.ravel(targets), None if weights is None else np.ravel(weights)).astype(np.float64)
    return float(entropy(share / share.sum()))


def _padded(counted: np.ndarray, size: int) -> np.ndarray:
    return np.pad(counted, (0, size - len(counted)))
