"""Loss history of a run, and the rules for instability and standstill (docs/verdict.md)."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

# Steps and values of a tag; NaN stands for any non-finite value.
Series = tuple[Int64[np.ndarray, " S"], Float64[np.ndarray, " S"]]

# Losses of constant predictions, by their names in `floors` (data/source.py).
CONSTANT = ("unigram", "prior", "zero")
MARGIN = 0.02  # of that loss: a run that has learned anything is further below it
PATIENCE = 100  # steps before a run can be not_learning; twice the warm-up if that is more
RECENT = 64  # steps averaged for the final training loss


class LossHistory(NamedTuple):
    """Summary of a run's losses, in nats, or squared errors for regression."""

    steps: int
    train: float | None = None  # mean of about the last RECENT steps
    val: float | None = None  # held out, at the last step
    constant: float | None = None  # loss of the best constant prediction
    best: float | None = None  # that of the ideal predictor
    spikes: tuple[tuple[int, float], ...] = ()  # (step of detection, greatest height)
    in_spike: bool = False  # at the end
    nonfinite: int | None = None  # first step whose loss was not finite, or which ended the run
    update: float | None = None  # median over blocks of log10(|dW| / |W|), last watched step


def loss_history_of(series: Mapping[str, Series]) -> LossHistory:
    """Returns the loss history of a run from its logged series, by tag (docs/tags.md)."""
    steps, losses = series.get("loss/train", (np.zeros(0, np.int64), np.zeros(0)))
    ended, _ = series.get("optim/nonfinite", (steps[:0], losses[:0]))
    bad = np.sort(np.concatenate([steps[~np.isfinite(losses)], ended]))
    spikes, in_spike = _spikes(*series.get("loss/spike", (steps[:0], losses[:0])))
    constants = {name: _last(series, f"loss/floor_{name}") for name in CONSTANT}
    recent = None
    if losses.size and math.isfinite(losses[-1]):  # each row weighted by the number of steps that it averages
        last = (steps > steps[-1] - RECENT) & np.isfinite(losses)
        recent = float(np.average(losses[last], weights=np.diff(steps, prepend=0)[last]))
    return LossHistory(
        int(steps[-1]) if steps.size else 0,
        recent,
        _last(series, "loss/val", int(steps[-1]) if steps.size else 0),
        min((loss for loss in constants.values() if loss is not None), default=None),
        _last(series, "loss/floor"),
        spikes,
        in_spike,
        int(bad[0]) if bad.size else None,
        _update(series),
    )


def instability(history: LossHistory) -> str | None:
    """Returns the evidence that losses are unstable, or None. A single spike that has passed is not instability."""
    if history.nonfinite is not None:
        return f"the loss or its gradient is not a finite number at step {history.nonfinite}"
    if not history.spikes or (len(history.spikes) == 1 and not history.in_spike):
        return None
    step, height = history.spikes[-1]
    if history.in_spike:
        others = f", after {_count(len(history.spikes) - 1)} that passed" if history.spikes[1:] else ""
        return f"the loss rose by {_nats(height)} by step {step} and stayed up{others}"
    first, highest = history.spikes[0][0], max(height for _, height in history.spikes)
    return f"{_count(len(history.spikes))}, the first by step {first}, the highest of {_nats(highest)}"


def past_spike(history: LossHistory) -> str | None:
    """Returns a note on the one passed spike of a stable run, or None."""
    if not history.spikes:
        return None
    step, height = history.spikes[0]
    return f"a loss spike of {_nats(height)} by step {step} has passed"


def standstill(history: LossHistory, warmup: int) -> str | None:
    """Returns the evidence that a run does not learn, or None, also if there is none either way.

    Needs a held-out loss at the last step and the loss of the best constant prediction, which must be above the best
    possible loss. A run that has memorized its training data counts as learning, whatever its held-out loss.
    """
    if history.constant is None or history.val is None or history.steps < max(PATIENCE, 2 * warmup):
        return None
    margin = MARGIN * history.constant
    if history.best is not None and history.constant - history.best < 2 * margin:
        return None
    if min(history.val, math.inf if history.train is None else history.train) < history.constant - margin:
        return None
    training = "" if history.train is None else f" (training {history.train:.4g})"
    least = f"{history.constant:.4g}, the loss of the best constant prediction"
    return f"after {history.steps} steps the loss is {history.val:.4g}{training}, not {MARGIN:.0%} below {least}"


def _spikes(steps: np.ndarray, heights: np.ndarray) -> tuple[tuple[tuple[int, float], ...], bool]:
    """Merges consecutive rows above 0 into one spike; NaN stands for an infinite height."""
    spikes: list[tuple[int, float]] = []
    spiking = False
    for step, height in zip(steps.tolist(), np.where(np.isnan(heights), np.inf, heights).tolist(), strict=True):
        if height > 0:
            spikes = (
                [*spikes[:-1], (spikes[-1][0], max(spikes[-1][1], height))] if spiking else [*spikes, (step, height)]
            )
        spiking = height > 0
    return tuple(spikes), spiking


def _last(series: Mapping[str, Series], tag: str, step: int | None = None) -> float | None:
    """Returns the last logged value of a tag, or None if it is not finite or not of `step`."""
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
