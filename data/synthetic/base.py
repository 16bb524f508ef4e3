"""Common parts of the synthetic tasks: random numbers as pure functions of (seed, step), and a task as a source."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..config import OPTIONS, DataConfig
from ..errors import DataError
from ..floors import prior
from ..source import Batch, DataSpec, Whole, tiled

HELDOUT_ROWS = 4096  # of a task with endless rows
_TRAIN, _HELDOUT, TASK = 1, 2, 3  # streams of one seed that never meet
_TRIES = 10_000


class Draws:
    """Uniform numbers for `rows` rows of each of some steps: every result has the axes [steps * rows, ...].

    A step owns 2^64 counts of Philox 4x64-10 (Salmon et al. 2011), keyed by (seed, stream), so its numbers depend
    neither on where a run was resumed nor on how many steps are drawn at a time.
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


@dataclass(frozen=True)
class Task(ABC):
    """A task whose best possible loss is known. Raises DataError at construction."""

    config: DataConfig

    @property
    @abstractmethod
    def form(self) -> DataSpec: ...

    @abstractmethod
    def rows(self, draws: Draws, heldout: bool) -> Batch:
        """A row for each row of the draws."""

    @abstractmethod
    def floors(self, heldout: Batch) -> dict[str, float]:
        """Losses that are known in advance, by name: "" is that of the ideal predictor."""

    def every_heldout_row(self) -> Batch | None:
        """All held-out rows if they are few; None if they are drawn."""
        return None

    def _once(self) -> Draws:
        """The numbers that are drawn once for all runs of the task."""
        return Draws(self.config.task_seed, TASK, 0, 1, 1)


@dataclass(frozen=True, eq=False)
class Synthetic(Whole):
    """A task as a source of batches."""

    task: Task

    @property
    def form(self) -> DataSpec:
        return self.task.form

    @property
    def source(self) -> str:
        return self.task.config.kind

    @property
    def details(self) -> str:
        """Sizes of a window, and the losses that are known in advance."""
        form, unit = self.form, "squared error" if self.form.task == "regression" else "nats"
        size = f"{form.channels} values" if form.vocab_size is None else f"vocabulary {form.vocab_size}"
        floors = ", ".join(f"{name or 'best possible'} {floor:.4f}" for name, floor in self.floors.items())
        return f"{form.context} tokens a window, {size}; loss floors ({unit}): {floors}"

    @property
    def sha256(self) -> str:
        """Hash of the options that the task reads, and of the held-out rows; other kinds' options change nothing."""
        kind = self.task.config.kind
        keys = {key for key, kinds in OPTIONS.items() if kind in kinds}
        keys |= {"kind", "context", "val_fraction", "task_seed"}
        config = json.dumps(self.task.config.model_dump(mode="json", include=keys), sort_keys=True)
        parts = [np.ascontiguousarray(leaf).tobytes() for leaf in self.heldout if leaf is not None]
        return hashlib.sha256(b"".join([config.encode(), *parts])).hexdigest()

    @cached_property
    def heldout(self) -> Batch:
        """The whole held-out split, leaves [N, ...], the same for every seed of a run."""
        rows = self.task.every_heldout_row()
        if rows is None:
            rows = self.task.rows(Draws(self.task.config.task_seed, _HELDOUT, 0, 1, HELDOUT_ROWS), True)
        return _compact(rows)

    @property
    def floors(self) -> dict[str, float]:
        return self._floors

    @cached_property
    def _floors(self) -> dict[str, float]:
        """The task's own, and for tokens `unigram`, the loss of the frequencies of the answers."""
        floors = self.task.floors(self.heldout)
        if self.form.task == "lm" and "unigram" not in floors:
            floors["unigram"] = prior(self.heldout.targets, self.heldout.weights)
        return floors

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> Batch:
        """Leaves [steps, B, ...]."""
        rows = _compact(self.task.rows(Draws(seed, _TRAIN, first_step, steps, batch), False))
        return Batch(*(None if leaf is None else leaf.reshape(steps, batch, *leaf.shape[1:]) for leaf in rows))

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[Batch, np.ndarray]:
        return tiled(self.heldout, batch, batches)


def _compact(rows: Batch) -> Batch:
    """Leaves as int32 and float32, the dtypes of the device."""
    return Batch(*(None if x is None else x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for x in rows))


def next_token(strings: NDArray[np.integer], answers: NDArray[np.bool_] | None = None) -> Batch:
    """Rows [N, T+1] in which each token is to be predicted from those before it; only the `answers` [N, T+1] count."""
    weights = None if answers is None else answers[:, 1:].astype(np.float64)
    return Batch(strings[:, :-1], strings[:, 1:], weights)


def drawn_where(draws: Draws, good, high: int, *shape: int) -> NDArray[np.integer]:
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


def mixed(values: NDArray[np.integer], seed: int) -> NDArray[np.floating]:
    """A hash in [0, 1) of each whole number (SplitMix64: Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = np.asarray(values).astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
