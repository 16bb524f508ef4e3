"""What follows a step that is not finite: `train.on_nonfinite`, told in docs/stopping.md."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

# Steps in a row that may be skipped: a run that has skipped more stands still, and is stopped.
MOST_SKIPPED = 100
# From one and the same checkpoint: where three other stretches of data lead to the same end, it is not the data.
MOST_REWINDS = 3


@dataclass(frozen=True)
class Rewind:
    """From step `step` on, batches are taken from `batches` further on than before."""

    step: int
    batches: int


@dataclass(frozen=True)
class History:
    """What a variant remembers of such steps; in the meta of each checkpoint, so that a resumed run goes on the same.

    Steps are counted from 1 here: step n leads from the weights after n - 1 updates to those after n.
    """

    first: int | None = None  # the first of them
    cause: str | None = None  # and what was found about it
    skipped: int = 0  # updates left out so far
    in_a_row: int = 0  # of them, up to the last step
    rewinds: tuple[Rewind, ...] = ()

    def offset(self, step: int) -> int:
        """How much further on than `step` the batch lies that is trained on after `step` updates."""
        return sum(rewind.batches for rewind in self.rewinds if rewind.step <= step)

    def skipping(self, finite: Bool[np.ndarray, " K"], start: int) -> "History":
        """After the steps of a window from `start` on, the bad ones of which were left out."""
        bad = np.flatnonzero(~finite)
        if not bad.size:
            return replace(self, in_a_row=0)
        good = np.flatnonzero(finite)
        row = self.in_a_row + len(finite) if not good.size else len(finite) - 1 - int(good[-1])
        return replace(self, skipped=self.skipped + bad.size, in_a_row=row)

    def bad_at(self, step: int, cause: str) -> "History":
        """A step that was bad, and what was found about it; kept of the first one."""
        return self if self.cause is not None else replace(self, first=step, cause=cause)

    def rewound(self, checkpoint: int, bad: int) -> "History | None":
        """Back at `checkpoint` and past the batches up to that of step `bad`; None when that was tried often enough."""
        if sum(rewind.step == checkpoint for rewind in self.rewinds) == MOST_REWINDS:
            return None
        return replace(self, rewinds=(*self.rewinds, Rewind(checkpoint, bad - checkpoint)))

    def as_json(self) -> dict[str, Any]:
        rewinds = [[rewind.step, rewind.batches] for rewind in self.rewinds]
        return {**vars(self), "rewinds": rewinds}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "History":
        return cls(**{**saved, "rewinds": tuple(Rewind(*pair) for pair in saved["rewinds"])})


def first_bad(finite: Bool[np.ndarray, " K"], start: int) -> int | None:
    """The first step, counted from 1, of a window from `start` on that is not finite."""
    bad = np.flatnonzero(~np.asarray(finite))
    return start + int(bad[0]) + 1 if bad.size else None
