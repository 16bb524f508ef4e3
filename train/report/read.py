"""Reads back what a run left in its directory: config.yaml, summary.json, metrics.jsonl."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from train.config.yaml12 import Place, read
from train.gradflow.course import Series

# What json, and taking apart what it gives, may raise of a line that is no row: deep nesting and huge numbers too.
_NO_ROW = (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError)


class ReportError(Exception):
    """A run that cannot be read, in one line: what, where, and what there is instead."""


@dataclass(frozen=True)
class Run:
    """One variant's run. `steps` maps a tag to its steps and values, in the order they were logged.

    A value that was not finite is NaN; a null (an exact zero on a log scale, say) is left out.
    """

    name: str
    directory: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    steps: dict[str, Series] = field(repr=False)

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.summary is not None and self.summary.get("exit_reason") == "done"

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as is logged."""
        return max((int(at[-1]) for at, _ in self.steps.values() if len(at)), default=0)

    def last(self, tag: str) -> float | None:
        """What was logged last, NaN where that is not finite; None when it never was."""
        return float(self.steps[tag][1][-1]) if tag in self.steps else None


def read_run(directory: str | Path) -> Run:
    """Reads a variant's run directory. A last line of metrics.jsonl that was cut short is left out.

    Raises:
        ReportError: it is no run directory, or a file of it cannot be read.
    """
    directory = Path(directory)
    text = _text(directory / "config.yaml")
    metrics = _text(directory / "metrics.jsonl")
    root, problems = read(text, Place(str(directory / "config.yaml"), 1))
    if root is None or problems or not isinstance(root.value, dict):
        raise ReportError(str(problems[0]) if problems else f"{directory / 'config.yaml'}: expected a mapping")
    summary = directory / "summary.json"
    return Run(
        name=directory.resolve().name,
        directory=directory,
        config=root.plain,
        summary=_summary(summary) if summary.exists() else None,
        steps=_series(directory / "metrics.jsonl", metrics),
    )


def depth_series(
    run: Run, metric: str, leaf: str = ""
) -> tuple[Int64[np.ndarray, " S"], Float64[np.ndarray, "S layers"]]:
    """A metric of all depths as one matrix, NaN where a depth has no value at a step.

    Args:
      metric: the tag up to the layer, such as `delta/norm_log10`.
      leaf: what follows the layer, such as `attn_q`; empty for a metric of the whole layer.

    A run that logged no such metric gives no steps and no depths.
    """
    pattern = re.compile(re.escape(metric) + r"/layer_(\d+)" + (re.escape("/" + leaf) if leaf else ""))
    depths = {int(match[1]): run.steps[tag] for tag in run.steps if (match := pattern.fullmatch(tag))}
    if not depths:
        return np.zeros(0, np.int64), np.zeros((0, 0))
    steps = np.unique(np.concatenate([at for at, _ in depths.values()]))
    values = np.full((len(steps), max(depths) + 1), np.nan)
    for depth, (at, logged) in depths.items():
        values[np.searchsorted(steps, at), depth] = logged
    return steps, values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        runs = sorted(found.parent.name for found in path.parent.glob(f"*/{path.name}"))
        instead = f"; the runs in it are {', '.join(runs[:12])}" if runs else ""
        raise ReportError(f"{path.parent}: not a run directory (no {path.name} in it{instead})") from None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from None


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: not JSON: {error}") from None
    if not isinstance(summary, dict):
        raise ReportError(f"{path}: expected an object, got {type(summary).__name__}")
    return summary


def _series(path: Path, text: str) -> dict[str, Series]:
    points: dict[str, list[tuple[int, float]]] = {}
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            step, nonfinite = int(np.int64(row.pop("step"))), row.pop("nonfinite", [])
            values = {tag: float(value) for tag, value in row.items() if value is not None}
            values |= {tag: math.nan for tag in nonfinite}
        except _NO_ROW:
            if number == len(lines):  # the rest after the last newline: nothing, or a line cut short
                break
            raise ReportError(f"{path}:{number}: expected an object with step and numbers, got {line[:40]!r}") from None
        for tag, value in values.items():
            points.setdefault(tag, []).append((step, value))
    return {
        tag: (np.array([step for step, _ in logged], np.int64), np.array([value for _, value in logged], np.float64))
        for tag, logged in points.items()
    }
