"""What the losses of a run say: whether they spike, and whether anything is learned. Rules: docs/verdict.md."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

Series = tuple[Int64[np.ndarray, " S"], Float64[np.ndarray, " S"]]  # steps and values of a tag; NaN is not finite

# Losses of an answer that never changes, by their names in `floors` (data/source.py).
CONSTANT = ("unigram", "prior", "zero")
MARGIN = 0.02  # of that loss: a run that has learned something is further below it
PATIENCE = 100  # steps before a run can be called one that does not learn; twice the warm-up where that is more
RECENT = 64  # steps whose mean is the training loss at the end


class Course(NamedTuple):
    """Losses in nats, or squared errors for regression."""

    steps: int
    train: float | None = None  # mean of about the last RECENT steps
    val: float | None = None  # held out, at the last step
    constant: float | None = None  # what the best answer that never changes costs
    best: float | None = None  # the best possible loss
    spikes: tuple[tuple[int, float], ...] = ()  # (step at which it was seen, greatest height)
    in_spike: bool = False  # at the end
    nonfinite: int | None = None  # the first step whose loss was not a finite number, or which ended the run
    update: float | None = None  # median over blocks of log10(|dW| / |W|), last watched step


def loss_history_of(series: Mapping[str, Series]) -> Course:
    """The course of a run from what it has logged under the tags of docs/tags.md."""
    steps, losses = series.get("loss/train", (np.zeros(0, np.int64), np.zeros(0)))
    ended, _ = series.get("optim/nonfinite", (steps[:0], losses[:0]))
    bad = np.sort(np.concatenate([steps[~np.isfinite(losses)], ended]))
    spikes, in_spike = _spikes(*series.get("loss/spike", (steps[:0], losses[:0])))
    known = {name: _last(series, f"loss/floor_{name}") for name in CONSTANT}
    return Course(
        int(steps[-1]) if steps.size else 0,
        _recent(steps, losses),
        _last(series, "loss/val", int(steps[-1]) if steps.size else 0),
        min((loss for loss in known.values() if loss is not None), default=None),
        _last(series, "loss/floor"),
        spikes,
        in_spike,
        int(bad[0]) if bad.size else None,
        _update(series),
    )


def instability(course: Course) -> str | None:
    """Why the losses are called unstable, or None: one spike that is over is none."""
    if course.nonfinite is not None:
        return f"the loss or its gradient is not a finite number at step {course.nonfinite}"
    if not course.spikes or (len(course.spikes) == 1 and not course.in_spike):
        return None
    step, height = course.spikes[-1]
    if course.in_spike:
        others = f", after {_count(len(course.spikes) - 1)} that passed" if course.spikes[1:] else ""
        return f"the loss rose by {_nats(height)} by step {step} and stayed up{others}"
    first, highest = course.spikes[0][0], max(height for _, height in course.spikes)
    return f"{_count(len(course.spikes))}, the first by step {first}, the highest of {_nats(highest)}"


def past_spike(course: Course) -> str | None:
    """The one spike of a run that is stable for all that."""
    if not course.spikes:
        return None
    step, height = course.spikes[0]
    return f"a loss spike of {_nats(height)} by step {step} has passed"


def standstill(course: Course, warmup: int) -> str | None:
    """Why a run is called one that does not learn, or None: also where that cannot be told.

    It can at an evaluation, where the loss of the best answer that never changes is known, and not itself as good as
    possible. A run that has learned the training data by heart has learned, whatever the held-out loss.
    """
    if course.constant is None or course.val is None or course.steps < max(PATIENCE, 2 * warmup):
        return None
    margin = MARGIN * course.constant
    if course.best is not None and course.constant - course.best < 2 * margin:
        return None
    if min(course.val, math.inf if course.train is None else course.train) < course.constant - margin:
        return None
    training = "" if course.train is None else f" (training {course.train:.4g})"
    least = f"{course.constant:.4g}, what the best unchanging answer costs"
    return f"after {course.steps} steps the loss is {course.val:.4g}{training}, not {MARGIN:.0%} below {least}"


def _spikes(steps: np.ndarray, heights: np.ndarray) -> tuple[tuple[tuple[int, float], ...], bool]:
    """Rows in a row above 0 are one spike; NaN stands for an infinite height."""
    found: list[tuple[int, float]] = []
    inside = False
    for step, height in zip(steps.tolist(), np.where(np.isnan(heights), np.inf, heights).tolist(), strict=True):
        if height > 0:
            found = [*found[:-1], (found[-1][0], max(found[-1][1], height))] if inside else [*found, (step, height)]
        inside = height > 0
    return tuple(found), inside


def _recent(steps: np.ndarray, losses: np.ndarray) -> float | None:
    """Each row is the mean over the steps since the one before it, so rows weigh as many."""
    if not losses.size or not math.isfinite(losses[-1]):
        return None
    lengths = np.diff(steps, prepend=0)
    kept = (steps > steps[-1] - RECENT) & np.isfinite(losses)
    return float(np.average(losses[kept], weights=lengths[kept]))


def _last(series: Mapping[str, Series], tag: str, step: int | None = None) -> float | None:
    """What was logged last, at `step` if that is given; None where it is not finite."""
    if tag not in series or step not in (None, series[tag][0][-1]):
        return None
    value = float(series[tag][1][-1])
    return value if math.isfinite(value) else None


def _update(series: Mapping[str, Series]) -> float | None:
    blocks = [values for tag, values in series.items() if tag.startswith("update/ratio_log10/") and tag.count("/") == 2]
    last = max((steps[-1] for steps, _ in blocks), default=None)
    ratios = [values[-1] for steps, values in blocks if steps[-1] == last and math.isfinite(values[-1])]
    return float(np.median(ratios)) if ratios else None


def _nats(height: float) -> str:
    return f"{height:.3g}" if math.isfinite(height) else "more than can be written"


def _count(spikes: int) -> str:
    return f"{spikes} loss spike{'' if spikes == 1 else 's'}"
