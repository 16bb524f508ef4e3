"""The base class of the synthetic tasks, and rows drawn under a condition."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .. import DataError
from ..batches import Draws
from ..config import DataConfig, declaration_of
from ..floors import prior
from ..source import Batch, BatchSource, DataSpec, counted, tiled

HELDOUT_ROWS = 4096  # of a task with endless rows
_TRAIN, _HELDOUT, TASK = 1, 2, 3  # streams, see Draws
_TRIES = 10_000


@dataclass(frozen=True, eq=False)
class Synthetic(BatchSource, ABC):
    """A task whose ideal predictor is known. Raises DataError at construction."""

    config: DataConfig

    @property
    def vocab_size(self) -> int:
        raise NotImplementedError

    @property
    def spec(self) -> DataSpec:
        return DataSpec("lm", self.config.context, self.vocab_size, self.vocab_size)

    @abstractmethod
    def rows(self, draws: Draws, heldout: bool) -> Batch:
        """A row for each row of the draws."""

    def heldout_rows(self) -> Batch:
        """All held-out rows, the same for every seed of a run."""
        return self.rows(Draws(self.config.task_seed, _HELDOUT, 0, 1, HELDOUT_ROWS), True)

    def known_losses(self, rows: Batch) -> dict[str, float]:
        """Losses on these rows, by name: "" is that of the ideal predictor, 0 where every answer is certain."""
        return {"": 0.0}

    @property
    def name(self) -> str:
        return self.config.kind

    @property
    def details(self) -> str:
        """Sizes of a window, and losses that are known in advance."""
        spec, unit = self.spec, "squared error" if self.spec.task == "regression" else "nats"
        size = f"{spec.channels} values" if spec.vocab_size is None else f"vocabulary {spec.vocab_size}"
        losses = ", ".join(f"{name or 'ideal predictor'} {loss:.4f}" for name, loss in self.losses.items())
        return f"{spec.context} tokens a window, {size}; on all held-out rows ({unit}): {losses}"

    @property
    def sha256(self) -> str:
        """Hash of the options that the task reads, and of the held-out rows; other kinds' options change nothing."""
        keys = {*declaration_of(self.config).options, "kind", "context", "val_fraction", "task_seed"}
        config = json.dumps(self.config.model_dump(mode="json", include=keys), sort_keys=True)
        parts = [np.ascontiguousarray(leaf).tobytes() for leaf in self.heldout if leaf is not None]
        return hashlib.sha256(b"".join([config.encode(), *parts])).hexdigest()

    @cached_property
    def heldout(self) -> Batch:
        """The whole held-out split, leaves [N, ...]."""
        return _compact(self.heldout_rows())

    @cached_property
    def losses(self) -> dict[str, float]:
        """The `floors` of all held-out rows."""
        return self._losses(self.heldout)

    def floors(self, batch: int, batches: int | None) -> dict[str, float]:
        """Losses on the rows of `heldout_batches`: `known_losses`, and for tokens that of the answers' frequencies."""
        rows, weights = self.heldout_batches(batch, batches)
        return self.losses if weights.sum() == len(self.heldout.inputs) else self._losses(counted(rows, weights))

    def _losses(self, rows: Batch) -> dict[str, float]:
        constant = {"unigram": prior(rows.targets, rows.weights)} if self.spec.task == "lm" else {}
        return self.known_losses(rows) | constant

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> Batch:
        """Leaves [steps, B, ...]."""
        rows = _compact(self.rows(Draws(seed, _TRAIN, first_step, steps, batch), False))
        return Batch(*(None if leaf is None else leaf.reshape(steps, batch, *leaf.shape[1:]) for leaf in rows))

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[Batch, np.ndarray]:
        return tiled(self.heldout, batch, batches)

    def drawn_once(self) -> Draws:
        """The numbers that are drawn once for all runs of the task."""
        return Draws(self.config.task_seed, TASK, 0, 1, 1)


def _compact(rows: Batch) -> Batch:
    """Leaves as int32 and float32, the dtypes of the device."""
    return Batch(*(None if x is None else x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for x in rows))


def next_token(strings: NDArray[np.integer], answers: NDArray[np.bool_] | None = None) -> Batch:
    """Rows [N, T+1] in which each token is to be predicted from those before it; only the `answers` [N, T+1] count."""
    weights = None if answers is None else answers[:, 1:].astype(np.float64)
    return Batch(strings[:, :-1], strings[:, 1:], weights)


def drawn_where(draws: Draws, good: Callable[[np.ndarray], np.ndarray], high: int, *shape: int) -> NDArray[np.integer]:
    """Integers [N, *shape] in [0, high), rows drawn again until `good(rows)` [N] is true for all; the last draws.

    Raises DataError when that takes too many tries.
    """
    rows = draws.integers(high, *shape)
    for _ in range(_TRIES):
        bad = ~good(rows)
        if not bad.any():
            return rows
        rows = np.where(bad.reshape(-1, *(1,) * len(shape)), draws.integers(high, *shape), rows)
    raise DataError(f"data.val_fraction: no row of one of the splits in {_TRIES:,} draws; take it further from 0 and 1")
