"""Tasks that ask for what was seen before in the same row, and nothing that could not be known: floor 0."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..source import Batch, DataSpec
from .base import Draws, Task, next_token

_OFTEN = 0.125  # of the places where a trigger may stand


class _Certain(Task):
    """Every target that counts follows from what stands before it."""

    extra = 0  # tokens beside the symbols

    @property
    def form(self) -> DataSpec:
        size = self.config.symbols + self.extra
        return DataSpec("lm", self.config.context, size, size)

    def floors(self, heldout: Batch) -> dict[str, float]:
        return {"": 0.0}


class _Answer(_Certain):
    """Padding, n random symbols, a separator, and the answer: n symbols too. n is drawn anew for each row, 1 to T / 2,

    so the answer stands at another place and its symbols at another distance every time. Only the answer counts.
    The separator has the id after the symbols, padding the next.
    """

    extra = 2

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        symbols, width = self.config.symbols, self.config.context + 1
        n = 1 + draws.integers((width - 1) // 2)[:, None]
        drawn = draws.integers(symbols, (width - 1) // 2)
        place = np.arange(width)[None, :] - (width - 1 - 2 * n)  # 0 at the first symbol, n at the separator
        answered = self.answer(np.where(np.arange(drawn.shape[1]) < n, drawn, symbols), n)
        question = np.take_along_axis(drawn, np.clip(place, 0, drawn.shape[1] - 1), axis=1)
        answer = np.take_along_axis(answered, np.clip(place - n - 1, 0, drawn.shape[1] - 1), axis=1)
        strings = np.select([place < 0, place < n, place == n], [symbols + 1, question, symbols], answer)
        return next_token(strings, place > n)

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        """The answer to the first n [N, 1] of symbols [N, M], in its first n places; what follows is above any."""
        raise NotImplementedError


@dataclass(frozen=True)
class Copy(_Answer):
    """Say it again: n random symbols, a separator, the same symbols."""

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        return symbols


@dataclass(frozen=True)
class Reverse(_Answer):
    """Say it backwards."""

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.take_along_axis(symbols, np.maximum(n - 1 - np.arange(symbols.shape[1]), 0), axis=1)


@dataclass(frozen=True)
class Sort(_Answer):
    """Say it in order, the smallest first."""

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.sort(symbols, axis=1)


@dataclass(frozen=True)
class Induction(_Certain):
    """What followed the trigger the first time follows it every time (after Fu et al. 2022, 2212.14052, section 3.1).

    Random symbols; at two or more places, the last one at the end of the row, the trigger (the id after the symbols)
    and behind it one symbol, the same throughout the row. It counts from the second time on.
    """

    extra = 1

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        symbols, width = self.config.symbols, self.config.context + 1
        slots = width // 2  # of two tokens, counted from the end
        strings = draws.integers(symbols, width)
        answer = draws.integers(symbols, 1)
        used: NDArray[np.bool_] = draws.uniform(slots) < _OFTEN
        used[:, 0] = True
        used[np.arange(len(used)), 1 + draws.integers(slots - 1)] = True
        triggers = width - 2 - 2 * np.arange(slots)
        strings[:, triggers] = np.where(used, symbols, strings[:, triggers])
        strings[:, triggers + 1] = np.where(used, answer, strings[:, triggers + 1])
        first = used & (np.cumsum(used[:, ::-1], axis=1)[:, ::-1] == 1)
        known = np.zeros(strings.shape, bool)
        known[:, triggers + 1] = used & ~first
        return next_token(strings, known)
