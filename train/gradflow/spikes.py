"""Loss spikes, found step by step: what is remembered is small, so that a resumed run goes on where it was.

A spike is the median of the last LATEST losses standing above the median of the BEFORE losses before them by more than

    max(NOISE * 1.4826 * MAD of those, SHARE * the loss that training began with),

and it lasts until half of that is left. docs/verdict.md compares this with the definitions in the literature.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LATEST = 8  # steps; one bad batch, or three, is no spike: the median of eight does not see them
BEFORE = 64  # steps that say what is usual
FEWEST = 32  # of them, before anything is said
# A median of eight losses spreads 0.44 times as widely as they do, so 3 of theirs are 7 of its own: OLMo 2 counts what
# lies 7 standard deviations above a running mean (2501.00656, section 3).
NOISE = 3.0
SHARE = 0.05  # of the first loss: what is lost of what was learned


class Watch(NamedTuple):
    """What the losses so far have left behind. `level` and `limit` are those of the spike that training is in."""

    before: tuple[float, ...] = ()
    latest: tuple[float, ...] = ()
    first: float | None = None  # median of the first LATEST losses
    level: float | None = None  # None outside a spike
    limit: float = 0.0

    def as_json(self) -> list:
        """The losses of a spike may be infinite; Python's json reads back what it writes."""
        return [list(self.before), list(self.latest), self.first, self.level, self.limit]

    @classmethod
    def from_json(cls, saved: Sequence) -> "Watch":
        before, latest, *rest = saved
        return cls(tuple(before), tuple(latest), *rest)


def follow(watch: Watch, losses: Float[np.ndarray, " K"]) -> tuple[Watch, Float[np.ndarray, " K"]]:
    """The watch after the losses of K steps, and after each of them the height above `level`: 0 outside a spike.

    A loss that is not a finite number counts as infinite.
    """
    heights = np.zeros(len(losses))
    for index, loss in enumerate(np.where(np.isfinite(losses), losses, math.inf).tolist()):
        watch = _after(watch, loss)
        if watch.level is not None:
            heights[index] = _median(watch.latest) - watch.level
    return watch, heights


def _after(watch: Watch, loss: float) -> Watch:
    latest = (*watch.latest, loss)
    if len(latest) > LATEST:
        if watch.level is None:  # the losses of a spike say nothing about what is usual
            watch = watch._replace(before=(*watch.before, latest[0])[-BEFORE:])
        latest = latest[1:]
    watch = watch._replace(latest=latest)
    if watch.first is None:
        return watch if len(latest) < LATEST else watch._replace(first=_median(latest))
    if watch.level is not None:
        over = _median(latest) - watch.level <= watch.limit / 2
        return watch._replace(level=None, limit=0.0) if over else watch
    if len(watch.before) < FEWEST:
        return watch
    level, height = _median(watch.before), _median(latest) - _median(watch.before)
    least = SHARE * abs(watch.first)
    if not height > least:  # nearly always, and then the spread need not be known
        return watch
    limit = max(NOISE * 1.4826 * _median([abs(loss - level) for loss in watch.before]), least)
    return watch._replace(level=level, limit=limit) if height > limit else watch


def _median(values: Sequence[float]) -> float:
    """Plain Python: numpy's takes twenty times as long for so few."""
    ordered, half = sorted(values), len(values) // 2
    if len(values) % 2:
        return ordered[half]
    low, high = ordered[half - 1], ordered[half]
    return high if low == high else (low + high) / 2  # of two infinities, no sum
