"""Tables of text: the end of training, final figures over seeds, and verdicts."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..gradflow.verdict import log10_gain, with_plain_name
from ..text import MISSING, factor, layer, number, plus_minus, right_aligned
from .finding import ratio_log10
from .groups import Group, dotted, estimate, seed_of
from .read import Run, depth_series

Table = tuple[list[str], list[list[str]]]  # column titles, and rows of as many cells

UNITS = {"lm": "nats per token", "classification": "nats per target", "regression": "squared error"}  # by task
ABOVE = "above best, by seed"


def closing_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the end of training: a row for each variant's summary.json; a missing figure is `-`.

    The columns of the loss floor and of the accuracy are there if one variant at least has such a figure.
    """
    floors = [summary.get("floors") or {} for summary in summaries]
    with_floor = any("floor" in each for each in floors)
    with_accuracy = with_floor or any(summary.get("task") == "classification" for summary in summaries)
    columns = ["variant", "steps", "loss/train", "loss/val"]
    columns += ["loss/floor"] * with_floor + ["accuracy/val"] * with_accuracy
    # At the first and the last watched step: the effect of the design, and of training.
    columns += ["|δ_0|/|δ_L|: start → end", "per-layer gain: start → end", "q,k share: start → end", "verdict"]
    rows = []
    for summary, floor in zip(summaries, floors, strict=True):
        row = [str(summary.get("variant", MISSING))]
        row += [number(summary.get(key)) for key in ("steps", "loss_train", "loss_val")]
        row += [number(floor.get("floor"))] * with_floor + [number(summary.get("accuracy_val"))] * with_accuracy
        ends = [summary.get(key) or {} for key in ("verdict_start", "verdict_end")]
        pairs = [
            [MISSING if (ratio := ratio_log10(end)) is None else factor(ratio) for end in ends],
            [number(end.get("per_layer_gain"), digits=3) for end in ends],
            [share(end) for end in ends],
        ]
        row += [from_to(*pair) for pair in pairs]
        rows.append([*row, with_plain_name((summary.get("verdict") or {}).get("state", MISSING))])
    return columns, rows


def from_to(start: str, end: str) -> str:
    """Returns a cell for a figure at the first and at the last watched step."""
    return MISSING if start == end == MISSING else f"{start} → {end}"


def share(verdict: Mapping[str, Any]) -> str:
    """The gradient of Q and K over that of V and O, with ≤ where rounding may have added to it."""
    text = number(verdict.get("qk_share"), digits=2)
    return f"≤{text}" if verdict.get("qk_rounded") and text != MISSING else text


def verdict_lines(variant: str, verdict: Mapping[str, Any]) -> list[str]:
    """Returns state and evidence of a verdict, and advice where something is wrong."""
    lines = [f"{variant}: {with_plain_name(verdict['state'])}: {verdict['why']}"]
    return lines + ([f"  try {verdict['try']}"] if verdict.get("try") else [])


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """Returns a verdict as markdown, for TensorBoard."""
    advice = f"\n\nTry {verdict['try']}" if verdict.get("try") else ""
    return f"**{with_plain_name(verdict['state'])}**: {verdict['why']}{advice}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a GitHub table with columns of numbers right-aligned."""
    marks = ["---:" if right else "---" for right in right_aligned(columns, rows)]
    lines = [columns, marks, *rows]
    return "".join("| " + " | ".join(map(markdown_text, line)) + " |\n" for line in lines)


def markdown_text(content: str) -> str:
    """Escapes text for a cell of markdown, on one line.

    >>> markdown_text("a|b <i> [x](y)")
    'a\\\\|b &lt;i> \\\\[x](y)'
    """
    for mark, instead in (("\\", "\\\\"), ("|", "\\|"), ("&", "&amp;"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\[")):
        content = content.replace(mark, instead)
    return " ".join(content.split())


def best_val(run: Run) -> float | None:
    """Returns the lowest held-out loss that is finite."""
    _, values = run.steps.get("loss/val", ((), ()))
    return min((float(value) for value in values if math.isfinite(value)), default=None)


def delta_at(run: Run, which: int = -1) -> np.ndarray:
    """Returns log10 |δ_l| [L+1] of the last watched step (the first: `which` 0), -inf for an exact zero.

    [0] when none was watched.
    """
    steps, delta = depth_series(run.steps, "delta/norm_log10")
    if not len(steps):
        return np.zeros(0)
    # Where every δ is zero none is logged, but the rms is.
    watched, _ = run.steps.get(f"act/rms/{layer(0)}", (steps, None))
    return delta[which] if watched[which] == steps[which] else np.full(delta.shape[1], -np.inf)


def log10_ratio(run: Run, which: int = -1) -> float | None:
    """Returns log10 of |δ_0| / |δ_L| at a watched step."""
    delta = delta_at(run, which)
    if not delta.size:
        return None
    return -math.inf if np.isneginf(delta[0]) else float(delta[0] - delta[-1])  # also where both are zero


def gain(run: Run, which: int = -1) -> float | None:
    """Returns the per-layer gain at a watched step; None where a δ is zero or not finite, or it overflows."""
    delta = delta_at(run, which)
    if delta.size < 2 or not np.isfinite(delta).all():
        return None
    slope = log10_gain(delta)
    return 10.0**slope if abs(slope) < 300 else None


def steps_per_s(run: Run) -> float | None:
    """Returns the steady speed: from the summary, or the median of the log."""
    if (at_the_end := run.summary.get("steps_per_s")) is not None:
        return float(at_the_end)
    return float(np.median(run.steps["perf/steps_per_s"][1])) if "perf/steps_per_s" in run.steps else None


# Title -> figure of a run. One that no run has is not in the table.
FIGURES: dict[str, Callable[..., float | None]] = {
    "loss/train": lambda run: run.last("loss/train"),
    "loss/val": lambda run: run.last("loss/val"),
    "best loss/val": best_val,
    "loss/floor": lambda run: run.last("loss/floor"),
    "accuracy/val": lambda run: run.last("accuracy/val"),
    "log10 |δ_0|/|δ_L|": log10_ratio,
    "per-layer gain": gain,
    "steps/s": steps_per_s,
}
# Also shown at the first watched step: the effect of the design, next to that of training.
_WATCHED = (log10_ratio, gain)
# The same for all seeds: a constant of the data, and one measurement of those that are trained together.
_ALIKE = (FIGURES["loss/floor"], steps_per_s)


def final_table(groups: Sequence[Group]) -> Table:
    """Returns a row for each group: means over its finished seeds ± half of the 95 % interval, if more than one."""
    seeded = any(len(group.runs) > 1 for group in groups)
    figures: dict[str, list[str]] = {}
    for title, figure in FIGURES.items():
        log10 = figure is log10_ratio and not seeded  # over seeds logarithms are averaged
        cells = [_cell(group, figure, log10) for group in groups]
        if figure in _WATCHED:
            title = f"{title.removeprefix('log10 ') if log10 else title}: start → end"
            starts = [_cell(group, partial(figure, which=0), log10) for group in groups]
            cells = [from_to(*pair) for pair in zip(starts, cells, strict=True)]
        figures[title] = cells
        if title == "loss/val":
            figures[ABOVE] = above_best(groups)
    figures = {title: cells for title, cells in figures.items() if not set(cells) <= {MISSING}}
    rows = []
    for index, group in enumerate(groups):
        states = Counter(with_plain_name(verdict_of(run).get("state", MISSING)) for run in group.counted)
        verdicts = (state if len(states) == 1 else f"{state} {count}" for state, count in states.items())
        seeds = [str(len(group.counted))] if seeded else []
        cells = (cells[index] for cells in figures.values())
        rows.append([group.name, *seeds, steps_of(group), ", ".join(verdicts), *cells])
    return ["run", *(["seeds"] if seeded else []), "steps", "verdict", *figures], rows


def _cell(group: Group, figure: Callable[[Run], float | None], log10: bool) -> str:
    """Returns a group's figure; `log10`: that of what is shown."""
    values = [value for run in group.counted if (value := figure(run)) is not None]
    if len(values) < len(group.counted):
        return MISSING
    if len(values) > 1 and (bad := np.count_nonzero(~np.isfinite(values))):
        return f"not finite in {bad} of {len(values)}"
    if log10:
        return factor(values[0])
    return number(float(np.mean(values))) if figure in _ALIKE else _interval(values)


def above_best(groups: Sequence[Group]) -> list[str]:
    """Returns each group's held-out loss minus the best group's, seed by seed; empty without two common seeds.

    Variants that see the same batches and start from the same weights vary together over seeds, so that the mean of
    the differences is far more precise than the difference of the means.
    """
    losses = [{seed_of(run): run.last("loss/val") for run in group.counted} for group in groups]
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
        cells.append(_interval([each[seed] - losses[best][seed] for seed in shared]))
    return cells if any("±" in cell for cell in cells) else []


def _interval(values: Sequence[float]) -> str:
    mean, half = estimate(np.array(values))
    return plus_minus(float(mean), None if half is None else float(half))


def steps_of(group: Group) -> str:
    """Returns the number of optimizer steps, with the steps planned of unfinished runs, or their number in a group."""
    if not group.done:
        planned = [dotted(run.config).get("train.steps") for run in group.runs]
        planned = [steps if isinstance(steps, int) else None for steps in planned]
        cells = zip(group.runs, planned, strict=True)
        return ", ".join(f"{run.step} of {number(steps)}, {_unfinished(run)}" for run, steps in cells)
    more = len(group.runs) - len(group.done)
    return f"{group.done[0].step}" + (f" ({more} more unfinished)" if more else "")


def _unfinished(run: Run) -> str:
    reasons = {"nonfinite": "stopped, not finite", "verdict": "stopped by its verdict"}
    return reasons.get(run.summary.get("exit_reason", ""), "unfinished")


def verdict_of(run: Run) -> dict[str, Any]:
    """Returns the verdict of a run's summary; empty when there is none."""
    return run.summary.get("verdict") or {}


def verdict_table(groups: Sequence[Group]) -> Table:
    """Returns a row for each run: its verdict and the evidence, and advice where a run has some."""
    rows = []
    for group in groups:
        for run in group.runs:
            verdict = verdict_of(run)
            seed = number(dotted(run.config).get("seed"))
            name = group.name if len(group.runs) == 1 else f"{group.name}, seed {seed}"
            why = verdict.get("why") or ("nothing was watched" if run.done else f"no verdict yet: {_unfinished(run)}")
            why = "; ".join(part for part in (why, run.recovery) if part)
            rows.append([name, with_plain_name(verdict.get("state", MISSING)), why, str(verdict.get("try") or MISSING)])
    columns = ["run", "verdict", "why", "what to try"]
    if all(row[3] == MISSING for row in rows):
        columns, rows = columns[:3], [row[:3] for row in rows]
    return columns, rows


def loss_unit(groups: Sequence[Group]) -> str:
    """Returns the unit of the losses where all runs have the same one, else ""."""
    tasks = {run.summary.get("task") for group in groups for run in group.runs} - {None}
    return UNITS.get(str(tasks.pop()), "") if len(tasks) == 1 else ""
