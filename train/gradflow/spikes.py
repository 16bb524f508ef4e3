"""Online detection of loss spikes, with a state small enough for a checkpoint.

A spike begins when the median of the last LATEST losses exceeds that of the BEFORE losses before them by more than

    max(NOISE * 1.4826 * MAD of those, SHARE * the initial loss),

and ends when the excess is half of that limit. docs/verdict.md compares this with definitions in the literature.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LATEST = 8  # steps; the median of eight ignores up to three bad batches
BEFORE = 64  # steps of the baseline
FEWEST = 32  # baseline steps before anything is called a spike
# The median of eight losses has 0.44 times their standard deviation, so 3 of theirs are 7 of its own; OLMo 2 counts
# values 7 standard deviations above a running mean (2501.00656, section 3).
NOISE = 3.0
SHARE = 0.05  # of the initial loss


class SpikeDetector(NamedTuple):
    """State of the detector. `level` and `limit` belong to the current spike."""

    before: tuple[float, ...] = ()
    latest: tuple[float, ...] = ()
    first: float | None = None  # median of the first LATEST losses
    level: float | None = None  # None outside a spike
    limit: float = 0.0

    def as_json(self) -> list:
        """Returns a JSON list. Losses may be infinite, which Python's json module writes and reads."""
        return [list(self.before), list(self.latest), self.first, self.level, self.limit]

    @classmethod
    def from_json(cls, state: Sequence) -> "SpikeDetector":
        before, latest, *rest = state
        return cls(tuple(before), tuple(latest), *rest)


def follow(detector: SpikeDetector, losses: Float[np.ndarray, " K"]) -> tuple[SpikeDetector, Float[np.ndarray, " K"]]:
    """Returns the state after the losses of K steps, and the height above `level` after each, 0 outside a spike.

    Non-finite losses count as infinite.
    """
    heights = np.zeros(len(losses))
    for index, loss in enumerate(np.where(np.isfinite(losses), losses, math.inf).tolist()):
        detector = _after(detector, loss)
        if detector.level is not None:
            heights[index] = _median(detector.latest) - detector.level
    return detector, heights


def _after(detector: SpikeDetector, loss: float) -> SpikeDetector:
    latest = (*detector.latest, loss)
    if len(latest) > LATEST:
        if detector.level is None:  # the losses of a spike do not enter the baseline
            detector = detector._replace(before=(*detector.before, latest[0])[-BEFORE:])
        latest = latest[1:]
    detector = detector._replace(latest=latest)
    if detector.first is None:
        return detector if len(latest) < LATEST else detector._replace(first=_median(latest))
    if detector.level is not None:
        has_ended = _median(latest) - detector.level <= detector.limit / 2
        return detector._replace(level=None, limit=0.0) if has_ended else detector
    if len(detector.before) < FEWEST:
        return detector
    level, height = _median(detector.before), _median(latest) - _median(detector.before)
    least = SHARE * abs(detector.first)
    if not height > least:  # nearly always, which saves computing the spread
        return detector
    limit = max(NOISE * 1.4826 * _median([abs(loss - level) for loss in detector.before]), least)
    return detector._replace(level=level, limit=limit) if height > limit else detector


def _median(values: Sequence[float]) -> float:
    """Returns the median. (numpy takes twenty times as long on so few values.)"""
    ordered, half = sorted(values), len(values) // 2
    if len(values) % 2:
        return ordered[half]
    low, high = ordered[half - 1], ordered[half]
    return high if low == high else (low + high) / 2  # equal infinities stay as they are
