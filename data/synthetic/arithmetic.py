"""Arithmetic, with a part of the pairs held out: a training loss below the held-out loss is memorization."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..source import Batch, DataSpec
from .base import Draws, Task, drawn_where, mixed, next_token


@dataclass(frozen=True)
class Addition(Task):
    """a + b = c, digit by digit, the highest first: k digits of a, `+`, k of b, `=`, k + 1 of c. Only c counts.

    Tokens 0 to 9 are the digits, 10 is `+`, 11 is `=`. `val_fraction` of the pairs (a, b), chosen by a hash, are never
    trained on; held-out rows have only these.
    """

    @property
    def form(self) -> DataSpec:
        return DataSpec("lm", 3 * self.config.digits + 2, 12, 12)

    def heldout(self, pairs: NDArray[np.integer]) -> np.ndarray:
        """True [...] for those of pairs [..., 2] that are held out."""
        flat = pairs[..., 0] * 10**self.config.digits + pairs[..., 1]
        return mixed(flat, self.config.task_seed) < self.config.val_fraction

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        k = self.config.digits
        pairs = drawn_where(draws, lambda rows: self.heldout(rows) == heldout, 10**k, 2)
        a, b = pairs[:, :1], pairs[:, 1:]

        def digits(x: np.ndarray, count: int) -> np.ndarray:
            return x // 10 ** np.arange(count - 1, -1, -1) % 10

        plus, equals = np.full_like(a, 10), np.full_like(a, 11)
        strings = np.concatenate([digits(a, k), plus, digits(b, k), equals, digits(a + b, k + 1)], axis=1)
        return next_token(strings, np.broadcast_to(np.arange(strings.shape[1]) > 2 * k + 1, strings.shape))

    def floors(self, heldout: Batch) -> dict[str, float]:
        return {"": 0.0}


@dataclass(frozen=True)
class Modular(Task):
    """a (op) b = c modulo p: the tokens a, b, `=` and c; only c counts (Power et al. 2022, 2201.02177, grokking).

    All p^2 pairs are shuffled once; `val_fraction` of them are held out, training draws from the others. `=` is p.
    """

    @property
    def form(self) -> DataSpec:
        return DataSpec("lm", 3, self.config.modulus + 1, self.config.modulus + 1)

    @cached_property
    def split(self) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """The pairs (a, b) to train on [n, 2], and those held out [m, 2]."""
        p = self.config.modulus
        order = np.argsort(self._once().uniform(p * p)[0], kind="stable")
        pairs = np.stack([order // p, order % p], axis=1)
        n = round(p * p * (1 - self.config.val_fraction))
        if not 0 < n < p * p:
            raise DataError(f"data.val_fraction: {self.config.val_fraction} of {p * p} pairs leaves a split empty")
        return pairs[:n], pairs[n:]

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        pairs = self.split[heldout]
        return self._strings(pairs[draws.integers(len(pairs))])

    def every_heldout_row(self) -> Batch:
        return self._strings(self.split[1])

    def _strings(self, pairs: NDArray[np.integer]) -> Batch:
        p = self.config.modulus
        a, b = pairs[:, 0], pairs[:, 1]
        c = {"add": a + b, "subtract": a - b, "multiply": a * b}[self.config.operation] % p
        strings = np.stack([a, b, np.full_like(a, p), c], axis=1)
        return next_token(strings, np.broadcast_to(np.arange(4) == 3, strings.shape))

    def floors(self, heldout: Batch) -> dict[str, float]:
        return {"": 0.0}
