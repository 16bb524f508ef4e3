"""The figures that a run ends with, and the table of them with intervals over seeds."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..gradflow.verdict import log10_gain
from ..text import MISSING, layer, number, plus_minus
from .groups import SEEDS, Group, flat
from .interval import estimate
from .read import Run, depth_series
from .tables import Table

_UNITS = {"lm": "nats per token", "classification": "nats per target", "regression": "squared error"}


def best_val(run: Run) -> float | None:
    """The lowest held-out loss that is finite."""
    values = run.steps["loss/val"][1] if "loss/val" in run.steps else np.zeros(0)
    return min((float(value) for value in values if math.isfinite(value)), default=None)


def last_delta(run: Run) -> np.ndarray:
    """log10 |δ_l| [L+1] of the last watched step, -inf for an exact zero; [0] when none was watched."""
    steps, values = depth_series(run, "delta/norm_log10")
    if not len(steps):
        return np.zeros(0)
    # A zero has no logarithm and is not logged; a value that is not finite is, as NaN.
    tags = [run.steps.get(f"delta/norm_log10/{layer(depth)}") for depth in range(values.shape[1])]
    there = [tag is not None and steps[-1] in tag[0] for tag in tags]
    return np.where(there, values[-1], -np.inf)


def log10_ratio(run: Run) -> float | None:
    """log10 of |δ_0| / |δ_L| at the last watched step."""
    delta = last_delta(run)
    with np.errstate(invalid="ignore"):
        return float(delta[0] - delta[-1]) if delta.size else None


def gain(run: Run) -> float | None:
    """The per-layer gain at the last watched step; None where a δ is zero or not finite, or no float can hold it."""
    delta = last_delta(run)
    if delta.size < 2 or not np.isfinite(delta).all():
        return None
    slope = log10_gain(delta)
    return 10.0**slope if abs(slope) < 300 else None


def steps_per_s(run: Run) -> float | None:
    """In steady state: as the run says at its end, or the median of what it has logged."""
    known = (run.summary or {}).get("steps_per_s")
    if isinstance(known, int | float):
        return float(known)
    return float(np.median(run.steps["perf/steps_per_s"][1])) if "perf/steps_per_s" in run.steps else None


# Title -> figure of a run. Those that no run has are left out of the table.
FIGURES: dict[str, Callable[[Run], float | None]] = {
    "loss/train": lambda run: run.last("loss/train"),
    "loss/val": lambda run: run.last("loss/val"),
    "best loss/val": best_val,
    "loss/floor": lambda run: run.last("loss/floor"),
    "accuracy/val": lambda run: run.last("accuracy/val"),
    "log10 |δ_0|/|δ_L|": log10_ratio,
    "per-layer gain": gain,
    "steps/s": steps_per_s,
}


# What all seeds have in common: a constant of the data, and of those that are trained together one measurement.
_ALIKE = (FIGURES["loss/floor"], steps_per_s)
ABOVE = "above best, by seed"


def final_table(groups: Sequence[Group]) -> Table:
    """A row for each group: the mean over its finished seeds ± half the 95 % interval; one seed has no interval."""
    seeded = any(len(group.runs) > 1 for group in groups)
    found = {title: [_cell(group, figure) for group in groups] for title, figure in FIGURES.items()}
    if cells := above_best(groups):
        places = list(found.items())
        at = list(found).index("loss/val") + 1
        found = dict([*places[:at], (ABOVE, cells), *places[at:]])
    found = {title: cells for title, cells in found.items() if set(cells) != {MISSING}}
    columns = ["run", *(["seeds"] if seeded else []), "steps", "verdict", *found]
    rows = [
        [
            group.name,
            *([str(len(group.shown))] if seeded else []),
            steps_of(group),
            verdicts_of(group),
            *(cells[index] for cells in found.values()),
        ]
        for index, group in enumerate(groups)
    ]
    return columns, rows


def above_best(groups: Sequence[Group]) -> list[str]:
    """Each group's held-out loss minus the best group's, seed by seed; no cells when no two groups share two seeds.

    Where variants see the same batches and start from the same weights, most of what a seed changes it changes for
    all of them; so the mean of the differences is known far better than the difference of the means.
    """
    losses = [{_seed(run): run.last("loss/val") for run in group.shown} for group in groups]
    losses = [{seed: loss for seed, loss in each.items() if loss is not None} for each in losses]
    means = [float(np.mean(list(each.values()))) if each else math.nan for each in losses]
    if len(groups) < 2 or not np.isfinite(means).any():
        return []
    best = int(np.nanargmin(means))
    cells = []
    for index, each in enumerate(losses):
        shared = [seed for seed in each if seed in losses[best]]
        if index == best or len(shared) < 2:
            cells.append("0" if index == best else MISSING)
            continue
        mean, half = estimate(np.array([each[seed] - losses[best][seed] for seed in shared], np.float64))
        cells.append(plus_minus(float(mean), None if half is None else float(half)))
    return cells if any("±" in cell for cell in cells) else []


def _seed(run: Run) -> str:
    config = flat(run.config)
    return repr([config.get(key) for key in SEEDS])


def _cell(group: Group, figure: Callable[[Run], float | None]) -> str:
    values = [figure(run) for run in group.shown]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return MISSING
    if len(known) > 1 and (bad := sum(not math.isfinite(value) for value in known)):
        return f"not finite in {bad} of {len(known)}"
    mean, half = estimate(np.array(known))
    if figure in _ALIKE:
        half = None
    return plus_minus(float(mean), None if half is None else float(half))


def steps_of(group: Group) -> str:
    """Optimizer steps; of an unfinished run, out of how many; of a group, how many of its seeds are unfinished."""
    if not group.done:
        return ", ".join(f"{run.step} of {number(_planned(run))}, {_left_at(run)}" for run in group.runs)
    steps = str(group.done[0].step)
    left = len(group.runs) - len(group.done)
    return steps if not left else f"{steps} ({left} more unfinished)"


def _left_at(run: Run) -> str:
    stopped = run.summary is not None and run.summary.get("exit_reason") == "nonfinite"
    return "stopped, not finite" if stopped else "unfinished"


def _planned(run: Run) -> int | None:
    steps = flat(run.config).get("train.steps")
    return steps if isinstance(steps, int) else None


def verdict_of(run: Run) -> dict:
    """The verdict of its summary; empty when there is none."""
    verdict = (run.summary or {}).get("verdict")
    return verdict if isinstance(verdict, dict) else {}


def verdicts_of(group: Group) -> str:
    """`healthy`, or `healthy 2, vanishing 1` where the seeds differ."""
    states = Counter(str(verdict_of(run).get("state", MISSING)) for run in group.shown)
    if len(states) == 1:
        return next(iter(states))
    return ", ".join(f"{state} {count}" for state, count in states.items())


def verdict_table(groups: Sequence[Group]) -> Table:
    """A row for each run: its verdict and what it rests on; and what to try, where a run says so."""
    found = [(group, run, verdict_of(run)) for group in groups for run in group.runs]
    tries = any(verdict.get("try") for _, _, verdict in found)
    rows = [
        [
            group.name if len(group.runs) == 1 else f"{group.name}, seed {number(flat(run.config).get('seed'))}",
            str(verdict.get("state", MISSING)),
            _why(run, verdict),
            *([str(verdict.get("try") or MISSING)] if tries else []),
        ]
        for group, run, verdict in found
    ]
    return ["run", "verdict", "why", *(["what to try"] if tries else [])], rows


def _why(run: Run, verdict: Mapping[str, Any]) -> str:
    evidence = str(verdict.get("why") or ("nothing was watched" if run.done else f"no verdict yet: {_left_at(run)}"))
    return evidence if run.setback is None else f"{evidence}; {run.setback}"


def loss_unit(groups: Sequence[Group]) -> str:
    """The unit of the losses, when all runs that say so have the same one; else empty."""
    tasks = {(run.summary or {}).get("task") for group in groups for run in group.runs} - {None}
    return _UNITS.get(str(tasks.pop()), "") if len(tasks) == 1 else ""
