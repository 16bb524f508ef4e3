"""Online detection of loss spikes, with a state small enough for a checkpoint, and the series that moved before one.

A spike begins when the median of the last LATEST losses exceeds that of the BEFORE losses before them by more than

    max(NOISE * 1.4826 * MAD of those, SHARE * the initial loss),

and ends when the excess is half of that limit. docs/verdict.md compares this with definitions in the literature.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..text import factor

LATEST = 8  # steps; the median of eight ignores up to three bad batches
BEFORE = 64  # steps of the baseline
FEWEST = 32  # baseline steps before anything is called a spike
# The median of eight losses has 0.44 times their standard deviation, so 3 of theirs are 7 of its own; OLMo 2 counts
# values 7 standard deviations above a running mean (2501.00656, section 3).
NOISE = 3.0
SHARE = 0.05  # of the initial loss

# Of what moved before a loss. Hundreds of series are compared, so their bands are wider than that of the loss: 7
# deviations name none of 76 series at 79 places of a healthy run without a spike, 5 do at 4 of them (docs/verdict.md).
MOVED = 7.0  # deviations of single steps
LEAST_FACTOR = 2.0
FEWEST_COMPARED = 16  # steps of the baseline
NAMED = 3  # series in a sentence


class Spike(NamedTuple):
    """The step at which a loss spike was detected, counted from 1, and its height; the detector's level and limit."""

    step: int
    height: float
    level: float
    limit: float


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


class Move(NamedTuple):
    """The index from which a series is outside its band, and the log10 of its factor over the baseline there."""

    name: str
    at: int
    log10: float


def first_moved(
    series: Mapping[str, Float[np.ndarray, " S"]], losses: Float[np.ndarray, " S"], spike: Spike, first_step: int
) -> str:
    """Returns the part of a sentence that says what moved before the loss rose into a spike.

    Args:
        series: log10 of sizes by their names in the sentence, one value a step (see `moved_before`).
        losses: of the same steps, the last of which is that of the spike.
        first_step: step of the first value, counted from 1.
    """
    rise = rise_of(losses, spike)
    if rise is None:
        return "the loss does not rise in the replay, so the spike depends on rounding"
    rose = f"the loss rose at step {first_step + rise}"
    if rise < 2 * FEWEST_COMPARED:
        return f"{rose}, too soon after step {first_step}, the first one replayed, to compare with"
    moves = moved_before(series, rise)
    if not moves:
        return f"{rose}, and nothing that is watched moved before it: a bad batch, or too large a step"
    sizes = ["×" * (move.log10 < math.inf) + factor(move.log10) for move in moves[:NAMED]]
    parts = [f"{m.name} ({size} at step {first_step + m.at})" for m, size in zip(moves, sizes, strict=False)]
    more = f" and {len(moves) - NAMED} more" if len(moves) > NAMED else ""
    return f"first moved {', '.join(parts)}{more}; {rose}"


def rise_of(losses: Float[np.ndarray, " S"], spike: Spike) -> int | None:
    """Returns the index from which the losses stay above the limit of the spike, single ones excepted, up to the last
    one; None if they do not end in a rise. (Half of the limit is 1.5 deviations of one loss: noise.)"""
    heights = np.where(np.isfinite(losses), losses, math.inf) - spike.level
    if not _median(heights[-LATEST:].tolist()) > spike.limit / 2:
        return None
    return _last_stretch(heights > spike.limit)


def moved_before(series: Mapping[str, Float[np.ndarray, " S"]], rise: int) -> list[Move]:
    """Returns the series that are outside their bands when the loss rises, since an earlier step: in order of time,
    then of the size of the factor.

    The band is the median of the first half of the steps before `rise`, +- max(MOVED * 1.4826 * MAD, log10 of
    LEAST_FACTOR). A steady drift does not leave it. A series counts from the first of the steps outside, on one side,
    that lead up to `rise`; single steps inside do not interrupt them. One step alone must be twice as far outside.

    Args:
        series: log10 of sizes; -inf for an exact zero, and not a number counts as infinite. A series whose median is
            not finite has no band.
        rise: index at which the loss rises, at least 2.
    """
    moves = []
    for name, logs in series.items():
        logs = np.where(np.isnan(logs), math.inf, logs)
        before, after = logs[: rise // 2], logs[rise // 2 : rise]
        level = _median(before.tolist())
        if not math.isfinite(level):
            continue
        limit = max(MOVED * 1.4826 * _median(np.abs(before - level).tolist()), math.log10(LEAST_FACTOR))
        for heights in (after - level, level - after):
            start = _last_stretch(heights > limit)
            if start is not None and (np.sum(heights[start:] > limit) > 1 or heights[start] > 2 * limit):
                moves.append(Move(name, rise // 2 + start, float(after[start]) - level))
    return sorted(moves, key=lambda move: (move.at, -abs(move.log10)))


def _last_stretch(outside: Bool[np.ndarray, " S"]) -> int | None:
    """Returns the first index after the last two values in a row that are False, None if there is none."""
    calm = np.flatnonzero(~outside[1:] & ~outside[:-1])
    start = int(calm[-1]) + 2 if calm.size else 0
    found = np.flatnonzero(outside[start:])
    return start + int(found[0]) if found.size else None
