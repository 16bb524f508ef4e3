"""Snapshots of finished runs, to compare two: parameters, logged values, and what TensorBoard shows."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.errors import UserError
from train.run.transfer import open_pretrained

CLOCK = ("perf/", "compile_s", "seconds_to_first_step", "steps_per_s", "tokens_per_s", "wall_s", "peak_bytes", "mfu")


@dataclass(frozen=True)
class Snapshot:
    """`params`: the sha256 of each parameter's dtype, shape and bytes, of the newest checkpoint. `rows`: metrics.jsonl,
    `events`: TensorBoard's scalars by tag, `summary`: summary.json; all without what depends on the clock."""

    step: int
    params: Mapping[str, str]
    rows: list[dict[str, Any]]
    events: Mapping[str, list[tuple[int, float]]]
    summary: Mapping[str, Any]


def snapshot_of(run: Path) -> Snapshot:
    """Reads a variant's run directory. Raises UserError, OSError or ValueError for what cannot be read."""
    source = open_pretrained(run)
    lines = (run / "metrics.jsonl").read_bytes().decode("utf-8").splitlines()
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return Snapshot(
        source.step,
        {path: _hash(leaf) for path, leaf in source.params.items()},
        [_timeless(json.loads(line)) for line in lines],
        _events(run),
        _timeless(summary),
    )


def differing(expected: Snapshot, got: Snapshot) -> list[str]:
    """What differs, a few words each; empty when nothing does. NaN equals NaN."""
    found = [] if expected.step == got.step else [f"ends at step {got.step} and not {expected.step}"]
    found += [f"parameter {path}" for path, value in expected.params.items() if got.params.get(path) != value]
    steps, wanted = [row["step"] for row in got.rows], [row["step"] for row in expected.rows]
    if steps != wanted:
        found.append(f"rows of steps {steps} and not {wanted}")
    elif json.dumps(got.rows) != json.dumps(expected.rows):
        bad = next(a["step"] for a, b in zip(expected.rows, got.rows, strict=True) if json.dumps(a) != json.dumps(b))
        found.append(f"values logged at step {bad}")
    for tag in sorted({*expected.events, *got.events}):
        if json.dumps(expected.events.get(tag)) != json.dumps(got.events.get(tag)):
            found.append(f"TensorBoard's {tag}: {got.events.get(tag)} and not {expected.events.get(tag)}")
    if json.dumps(expected.summary) != json.dumps(got.summary):
        keys = [key for key in expected.summary if expected.summary[key] != got.summary.get(key)]
        found.append(f"summary.json: {', '.join(keys)}")
    return found


def compared(expected: Mapping[str, Snapshot], root: Path) -> list[str]:
    """What differs in the runs of `root` (runs_dir/name) from `expected`, by variant."""
    found = []
    for variant, snapshot in expected.items():
        try:
            found += [f"{variant}: {what}" for what in differing(snapshot, snapshot_of(root / variant))]
        except (UserError, OSError, ValueError, KeyError) as error:
            found.append(f"{variant}: {type(error).__name__}: {error}")
    return found


def tree_of(folder: Path, pattern: str) -> dict[str, str]:
    """The sha256 of every file below a folder that fits the pattern, by its path there."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(CLOCK)}


def _hash(leaf: np.ndarray) -> str:
    return hashlib.sha256(f"{leaf.dtype} {leaf.shape} ".encode() + leaf.tobytes()).hexdigest()


def _events(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every restart that it sees
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if not tag.startswith(CLOCK)]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}
