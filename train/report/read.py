"""The files of a run directory, read back: config.yaml, summary.json, metrics.jsonl."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from pydantic import BaseModel, ConfigDict, ValidationError

from data.files import content_of

from ..config.load import MAX_BYTES
from ..config.yaml import Place, clean, read, show
from ..disk import read_json
from ..errors import UserError
from ..gradflow.loss_history import Series
from ..store.rundir import no_run
from ..text import LAYER_INDEX

ENDED = ("done", "nonfinite", "verdict")  # exit reasons of runs that came to an end; a signal only interrupts
_MOST_LOG = 2**32  # bytes


@dataclass(frozen=True)
class Run:
    """One variant's run. `steps` maps a tag to its steps and values, in the order they were logged.

    A value that was not finite is NaN; a null (an exact zero on a log scale, say) is left out. `summary` is empty for a
    run that has not ended.
    """

    name: str
    directory: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    steps: dict[str, Series] = field(repr=False)

    @property
    def done(self) -> bool:
        """True for a run that came to its end."""
        return self.summary.get("exit_reason") == "done"

    @property
    def recovery(self) -> str | None:
        """The cause of the first step that was not finite, and the recovery from it; None when there was none."""
        summary = self.summary
        if summary.get("first_nonfinite_step") is None:
            return None
        parts = [f"step {summary['first_nonfinite_step']} was not finite: {summary.get('nonfinite')}"]
        if summary.get("exit_reason") == "nonfinite":
            parts.append(f"the run stopped at step {summary.get('steps')}")
        if skipped := summary.get("skipped_steps"):
            parts.append(f"{skipped} updates left out")
        return "; ".join(parts)

    @property
    def step(self) -> int:
        """The last optimizer step in the log."""
        return max((int(at[-1]) for at, _ in self.steps.values() if len(at)), default=0)

    def last(self, tag: str) -> float | None:
        """Returns the last value of a tag, NaN where it is not finite; None for a tag that was never logged."""
        return float(self.steps[tag][1][-1]) if tag in self.steps else None


def read_run(directory: str | Path) -> Run:
    """Reads a variant's run directory. A last line of metrics.jsonl that was cut short is left out.

    Raises:
        UserError: it is no run directory, or a file of it cannot be read.
    """
    directory = Path(directory)
    text = _text(directory / "config.yaml", MAX_BYTES)
    metrics = _text(directory / "metrics.jsonl", _MOST_LOG)
    root = read(text, Place(str(directory / "config.yaml"), 1), problems := [])
    if problems or not isinstance(root.value, dict):
        raise UserError(str(problems[0]) if problems else f"{directory / 'config.yaml'}: expected a mapping")
    path = directory / "summary.json"
    summary = read_json(path) if path.exists() else {}
    if wrong := summary_problem(summary):
        raise UserError(f"{path}: {wrong}")
    run = Run(directory.resolve().name, directory, root.plain, summary, _series(directory / "metrics.jsonl", metrics))
    planned = train.get("steps") if isinstance(train := root.plain.get("train"), dict) else None
    if summary and isinstance(planned, int) and min(run.step, planned) > (summary.get("steps") or 0):
        return replace(run, summary={})  # of before the run went on
    return run


def depth_series(
    steps: Mapping[str, Series], metric: str
) -> tuple[Int64[np.ndarray, " S"], Float64[np.ndarray, "S layers"]]:
    """Returns a logarithm of all depths, such as `delta/norm_log10`, as one matrix; `steps` as of a Run.

    A zero has no logarithm and is not logged, so -inf stands where a depth has no value at a step. No steps and no
    depths where there is no such metric.
    """
    pattern = re.compile(f"{re.escape(metric)}/{LAYER_INDEX}")
    depths = {int(match[1]): series for tag, series in steps.items() if (match := pattern.fullmatch(tag))}
    if not depths:
        return np.zeros(0, np.int64), np.zeros((0, 0))
    common = np.unique(np.concatenate([at for at, _ in depths.values()]))
    values = np.full((len(common), max(depths) + 1), -np.inf)
    for depth, (at, logged) in depths.items():
        values[np.searchsorted(common, at), depth] = logged
    return common, values


def _text(path: Path, at_most: int) -> str:
    try:
        return content_of(path, at_most).decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(no_run(path.parent, path.name)) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # no regular file, or too large
        raise UserError(f"{path}: {error}") from None


class _Verdict(BaseModel):
    """The keys of a summary's verdict that a report reads."""

    model_config = ConfigDict(strict=True)

    state: str
    why: str
    ratio: float | None = None
    log10_ratio: float | None = None
    per_layer_gain: float | None = None
    qk_share: float | None = None
    qk_rounded: int = 0


class _Summary(BaseModel):
    """The keys of summary.json that a report or a resumed run reads. Each may be missing, as in another version's."""

    model_config = ConfigDict(strict=True)

    variant: str = ""
    exit_reason: str = ""
    platform: str = ""
    dtype: str = ""
    command: str = ""
    ended: str = ""
    task: str = ""
    steps: int = 0
    wall_s: float | None = None
    steps_per_s: float | None = None
    loss_train: float | None = None
    loss_val: float | None = None
    accuracy_val: float | None = None
    first_nonfinite_step: int | None = None
    nonfinite: str | None = None
    skipped_steps: int = 0
    floors: dict[str, float | None] | None = None
    versions: dict[str, str] | None = None
    verdict: _Verdict | None = None
    verdict_start: _Verdict | None = None
    verdict_end: _Verdict | None = None


def summary_problem(summary: Mapping[str, Any]) -> str | None:
    """Returns one line about a value of summary.json with a wrong type, as after an edit by hand; None without one."""
    try:
        _Summary.model_validate(summary)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = clean(".".join(map(str, first["loc"])))
        return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {show(first['input'])}"
    return None


def _series(path: Path, text: str) -> dict[str, Series]:
    points: dict[str, list[tuple[int, float]]] = {}
    lines = text.split("\n")
    before = -1
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            step, nonfinite = row.pop("step"), row.pop("nonfinite", [])
            if type(step) is not int or not before < step < 2**63:
                raise ValueError
            values = {tag: float(value) for tag, value in row.items() if value is not None}
            values |= {tag: math.nan for tag in nonfinite}
            before = step
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            if number == len(lines):  # the rest after the last newline: nothing, or a line cut short
                break
            what = f"an object with step and numbers{'' if before < 0 else f', its step above {before}'}"
            raise UserError(f"{path}:{number}: expected {what}, got {line[:40]!r}") from None
        for tag, value in values.items():
            points.setdefault(tag, []).append((step, value))
    return {
        tag: (np.array([step for step, _ in logged], np.int64), np.array([value for _, value in logged], np.float64))
        for tag, logged in points.items()
    }
