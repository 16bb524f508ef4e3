"""Batches as pure functions of (seed, step), so that a resumed run needs only the step: windows, random numbers."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

_WORDS = 4  # 64-bit words that Philox gives per count
INT32_END = 2**31  # positions and ids below it fit an int32


def window_starts(n_tokens: int, context: int, batch: int, seed: int, first_step: int, steps: int) -> NDArray[np.int32]:
    """Starts of the training windows of some steps [steps, B], uniform over [0, n_tokens - context - 1].

    A step owns a fixed range of the counter of Philox 4x64-10 (Salmon et al., 2011, "Parallel random numbers: as easy
    as 1, 2, 3"), keyed by the seed, so its row depends neither on where a run was resumed nor on how many steps are
    drawn at a time. The words are the bit generator's own, whose stream numpy promises to keep; the modulo favours no
    start by more than n_tokens / 2^64.

    Raises ValueError when no window fits, or positions don't fit an int32.
    """
    _check_length(n_tokens, context)
    counts = -(-batch // _WORDS)
    philox = np.random.Philox(key=seed, counter=int(first_step) * counts)
    words = philox.random_raw(steps * counts * _WORDS).reshape(steps, counts * _WORDS)
    return (words[:, :batch] % np.uint64(n_tokens - context)).astype(np.int32)


def gather(tokens: NDArray[np.integer], starts: NDArray[np.int32], context: int) -> NDArray[np.integer]:
    """The windows `tokens[start : start + context + 1]`, copied, in the dtype of the tokens and this machine's bytes.

    Tokens [n], starts [...], windows [..., T+1]. Only the windows of a memory-mapped corpus are read. Raises ValueError
    when a window would leave the tokens.

    >>> gather(np.arange(10, 20), np.array([[0], [7]]), 2)
    array([[[10, 11, 12]],
    <BLANKLINE>
           [[17, 18, 19]]])
    """
    last = len(tokens) - context - 1
    if starts.size and not 0 <= starts.min() <= starts.max() <= last:
        raise ValueError(f"expected starts in 0 to {last}, got {starts.min()} to {starts.max()}")
    windows = sliding_window_view(np.asarray(tokens), context + 1)[starts]
    return windows.astype(tokens.dtype.newbyteorder("="), copy=False)


def heldout_starts(
    n_tokens: int, context: int, batch: int, batches: int | None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Starts of the windows of an evaluation [S, B], and their weights: 1, or 0 for padding of the last batch.

    The windows tile the split: window i reads [i T, (i + 1) T) and predicts each token's successor, so that no target
    counts twice, and with `batches` None all count but the first token and the last n - 1 mod T. With a number, that
    many batches of windows are spread evenly over the split, or all windows when there are fewer.

    Raises ValueError when no window fits, or positions don't fit an int32.

    >>> starts, weights = heldout_starts(n_tokens=8, context=2, batch=2, batches=None)
    >>> starts.tolist(), weights.tolist()
    ([[0, 2], [4, 0]], [[1.0, 1.0], [1.0, 0.0]])
    """
    _check_length(n_tokens, context)
    index, weights = spread((n_tokens - 1) // context, batch, batches)
    return (index * context).astype(np.int32), weights


def spread(n: int, batch: int, batches: int | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices of n rows as held-out batches [S, B], and their weights: 1, or 0 for padding of the last batch.

    With `batches` None all rows in order; with a number, at most that many batches of rows spread evenly over all.

    >>> index, weights = spread(3, batch=2, batches=None)
    >>> index.tolist(), weights.tolist()
    ([[0, 1], [2, 0]], [[1.0, 1.0], [1.0, 0.0]])
    """
    m = n if batches is None else min(n, batches * batch)
    index = np.zeros((-(-m // batch), batch), np.int64)
    # The middles of m equal parts: all rows, in order, when there are as many parts as rows.
    index.flat[:m] = (2 * np.arange(m, dtype=np.int64) + 1) * n // (2 * m)
    return index, (np.arange(index.size) < m).astype(np.float32).reshape(index.shape)


def _check_length(n_tokens: int, context: int) -> None:
    if not context < n_tokens <= INT32_END:
        raise ValueError(f"expected context + 1 = {context + 1} to 2^31 tokens, got {n_tokens}")


class Draws:
    """Random numbers for `rows` rows of each of some steps: every result has the axes [steps * rows, ...].

    A step owns 2^64 counts of Philox as above, keyed by (seed, stream); streams of one seed never meet.
    """

    def __init__(self, seed: int, stream: int, first_step: int, steps: int, rows: int):
        key = np.array([seed, stream], np.uint64)
        self._bits = [np.random.Philox(key=key, counter=(int(first_step) + index) << 64) for index in range(steps)]
        self._rows = rows
        self.count = steps * rows

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        """[N, *shape] in [0, 1), multiples of 2^-53: the raw words, whose stream numpy promises to keep."""
        size = self._rows * int(np.prod(shape, dtype=int))
        words = np.concatenate([bits.random_raw(size) for bits in self._bits])
        return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(self.count, *shape)

    def integers(self, high: int, *shape: int) -> NDArray[np.integer]:
        """[N, *shape] in [0, high)."""
        return np.minimum((self.uniform(*shape) * high).astype(np.int64), high - 1)

    def normal(self, *shape: int) -> NDArray[np.float64]:
        """[N, *shape], standard normal, by Box and Muller's transform."""
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(*shape)))
        return radius * np.cos(2.0 * np.pi * self.uniform(*shape))
