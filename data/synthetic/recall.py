"""Recall of earlier tokens of the same row. Every answer is certain, so the floor is 0."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..source import Batch, DataSpec
from .base import Draws, Task, next_token

_OFTEN = 0.125  # probability of a trigger at each place where one may stand


class _Certain(Task):
    """A task whose answers all follow from the tokens before them."""

    extra = 0  # tokens in addition to the symbols

    @property
    def form(self) -> DataSpec:
        size = self.config.symbols + self.extra
        return DataSpec("lm", self.config.context, size, size)

    def floors(self, heldout: Batch) -> dict[str, float]:
        return {"": 0.0}


class _Answer(_Certain):
    """Padding, n random symbols, a separator, and an answer of n symbols, which alone counts.

    Each row draws its own n, 1 to T / 2, so that place and distance of the answer vary. The separator has the id after
    the symbols, padding the next.
    """

    extra = 2

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        symbols, width = self.config.symbols, self.config.context + 1
        n = 1 + draws.integers((width - 1) // 2)[:, None]
        drawn = draws.integers(symbols, (width - 1) // 2)
        place = np.arange(width)[None, :] - (width - 1 - 2 * n)  # 0 at the first symbol, n at the separator
        answers = self.answer(np.where(np.arange(drawn.shape[1]) < n, drawn, symbols), n)
        question = np.take_along_axis(drawn, np.clip(place, 0, drawn.shape[1] - 1), axis=1)
        answer = np.take_along_axis(answers, np.clip(place - n - 1, 0, drawn.shape[1] - 1), axis=1)
        strings = np.select([place < 0, place < n, place == n], [symbols + 1, question, symbols], answer)
        return next_token(strings, place > n)

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        """The answer to the first n [N, 1] of symbols [N, M], in its first n places; the other inputs are larger."""
        raise NotImplementedError


@dataclass(frozen=True)
class Copy(_Answer):
    """Copying: n random symbols, a separator, the same symbols."""

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        return symbols


@dataclass(frozen=True)
class Reverse(_Answer):
    """Reversal: n random symbols, a separator, the symbols in reverse order."""

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.take_along_axis(symbols, np.maximum(n - 1 - np.arange(symbols.shape[1]), 0), axis=1)


@dataclass(frozen=True)
class Sort(_Answer):
    """Sorting: n random symbols, a separator, the symbols in ascending order."""

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.sort(symbols, axis=1)


@dataclass(frozen=True)
class Induction(_Certain):
    """The symbol after a trigger is the same throughout a row (after Fu et al. 2022, 2212.14052, section 3.1).

    Random symbols, and at two or more places, the last of them at the end of the row, the trigger (the id after the
    symbols) followed by the answer, which counts from its second occurrence on.
    """

    extra = 1

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        symbols, width = self.config.symbols, self.config.context + 1
        slots = width // 2  # of two tokens, counted from the end
        strings = draws.integers(symbols, width)
        answer = draws.integers(symbols, 1)
        trigger: NDArray[np.bool_] = draws.uniform(slots) < _OFTEN
        trigger[:, 0] = True
        trigger[np.arange(len(trigger)), 1 + draws.integers(slots - 1)] = True
        places = width - 2 - 2 * np.arange(slots)
        strings[:, places] = np.where(trigger, symbols, strings[:, places])
        strings[:, places + 1] = np.where(trigger, answer, strings[:, places + 1])
        first = trigger & (np.cumsum(trigger[:, ::-1], axis=1)[:, ::-1] == 1)
        answers = np.zeros(strings.shape, bool)
        answers[:, places + 1] = trigger & ~first
        return next_token(strings, answers)
