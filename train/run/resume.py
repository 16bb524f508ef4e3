"""How far the variants of a group have come, and what a run that goes on must do as it did when it started."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.config.load import Variant
from train.run.checkpoint import Checkpoints
from train.run.errors import RunError
from train.run.rundir import directory_of, read_json, write_json


def abreast(members: Sequence[Variant]) -> list[tuple[Variant, ...]]:
    """The variants of a group in parts that can go on together, those that have come farthest first.

    A group saves its variants one after the other, so those that were killed together are at most one save apart; a
    finished one, or one that is farther ahead, was trained before the others were added, and is left alone.
    """
    finished = [member for member in members if finished_run(directory_of(member))]
    parts: list[list[Variant]] = []
    ahead = 0  # of the part that is being gathered, the step of its first
    for member in sorted((member for member in members if member not in finished), key=newest, reverse=True):
        step = newest(member)
        if parts and ahead - step <= member.config.train.checkpoint_every:
            parts[-1].append(member)
        else:
            parts.append([member])
            ahead = step
    return [tuple(sorted(part, key=members.index)) for part in [finished, *parts] if part]


def newest(variant: Variant) -> int:
    """The step of the variant's newest checkpoint, 0 without one."""
    return max(Checkpoints(directory_of(variant)).steps(), default=0)


def standing(variants: Sequence[Variant]) -> list[str]:
    """Where each variant can go on from, those that stand alike together."""
    by_state: dict[str, list[str]] = {}
    for variant in variants:
        step = newest(variant)
        state = f"at step {step}" if step else "not begun"
        state = "finished" if finished_run(directory_of(variant)) else state
        by_state.setdefault(state, []).append(variant.name)
    return [f"{', '.join(names)} {state}" for state, names in by_state.items()]


def finished_run(directory: Path) -> dict[str, Any] | None:
    """The summary of a run that came to its end, else None. Raises RunError."""
    path = directory / "summary.json"
    summary = read_json(path) if path.exists() else {}
    return summary if summary.get("exit_reason") == "done" else None


def steps_per_call_of(directory: Path, guess: int) -> int:
    """K as it was when the run first started, so that its windows are cut at the same steps. Raises RunError."""
    path = directory / "choices.json"
    if not path.exists():
        return guess
    known = read_json(path).get("steps_per_call")
    if isinstance(known, int) and not isinstance(known, bool) and known > 0:
        return known
    raise RunError(f"{path}: cannot read: expected steps_per_call, a whole number >= 1")


def remember_choices(directory: Path, steps_per_call: int) -> None:
    write_json(directory / "choices.json", {"steps_per_call": steps_per_call})
