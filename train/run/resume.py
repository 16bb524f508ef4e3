"""How far the variants of a group have come, and what a run that goes on must do as it did when it started."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.load import Variant
from ..device.platform import environment
from ..disk import read_json, write_json
from ..errors import UserError
from ..report.read import summary_problem
from ..store.checkpoint import Checkpoints
from ..store.provenance import environment_changes, same_config, same_data
from ..store.rundir import data_sums, directory_of


def abreast(members: Sequence[Variant]) -> list[tuple[Variant, ...]]:
    """The variants of a group in parts that can go on together, those that have come farthest first.

    A group saves its variants one after the other, so those that were killed together are at most one save apart; a
    finished one, or one that is farther ahead, was trained before the others were added, and is left alone. So is one
    whose newest whole checkpoint is at a step that the others have no whole one of. Raises UserError when all
    checkpoints of one are damaged.
    """
    finished = [member for member in members if finished_run(directory_of(member))]
    steps = {id(member): newest(member) for member in members if member not in finished}
    parts: list[list[Variant]] = []
    ahead = 0  # of the part that is being gathered, the step of its first
    for member in sorted((m for m in members if m not in finished), key=lambda m: steps[id(m)], reverse=True):
        step = steps[id(member)]
        near = bool(parts) and ahead - step <= member.config.train.checkpoint_every
        if near and (not step or all(_has(other, step) for other in parts[-1])):
            parts[-1].append(member)
        else:
            parts.append([member])
            ahead = step
    return [tuple(sorted(part, key=members.index)) for part in [finished, *parts] if part]


def newest(variant: Variant) -> int:
    """The step of the variant's newest whole checkpoint, 0 without any. Raises UserError when all are damaged."""
    return Checkpoints(directory_of(variant)).newest(lambda _: None) or 0


def _has(variant: Variant, step: int) -> bool:
    checkpoints = Checkpoints(directory_of(variant))
    return step in checkpoints.steps() and checkpoints.damage(step) is None


def standing(variants: Sequence[Variant]) -> str:
    """Where each variant can go on from, those that stand alike together: `saved: a, b at step 4; c not begun`."""
    by_state: dict[str, list[str]] = {}
    for variant in variants:
        step = newest(variant)
        state = f"at step {step}" if step else "not begun"
        state = "finished" if finished_run(directory_of(variant)) else state
        by_state.setdefault(state, []).append(variant.name)
    where = "; ".join(f"{', '.join(names)} {state}" for state, names in by_state.items())
    return f"{'nothing saved' if set(by_state) == {'not begun'} else 'saved'}: {where}"


def finished_run(directory: Path) -> dict[str, Any] | None:
    """The summary of a run that came to its end, else None. Raises UserError.

    One whose last checkpoint is damaged has to go on from the one before, to the same end. One whose checkpoints were
    all deleted is finished.
    """
    path = directory / "summary.json"
    summary = read_json(path) if path.exists() else {}
    if summary.get("exit_reason") != "done":
        return None
    lacks = [key for key in ("variant", "first_nonfinite_step", "verdict") if key not in summary]
    wrong = f"{lacks[0]}: missing" if lacks else summary_problem(summary)
    wrong = wrong or ("" if summary["variant"] == directory.name else f"variant: expected {directory.name}")
    if wrong:
        raise UserError(f"{path}: {wrong}; without that file the same command writes it anew")
    checkpoints = Checkpoints(directory)
    steps = checkpoints.steps()
    return summary if not steps or checkpoints.damage(steps[-1]) is None else None


def same_origin(variant: Variant, step: int) -> str | None:
    """What to warn of before a run goes on from its checkpoint of `step`. Raises UserError when that is of another
    config, or of data that the run was never trained on."""
    directory = directory_of(variant)
    checkpoints = Checkpoints(directory)
    header, where = checkpoints.header(step), checkpoints.path(step)
    same_config(where, header, variant.config)
    same_data(where, header, data_sums(directory))
    changed = environment_changes(header, environment())
    return changed and f"saved with {changed}: what follows is not bitwise what it would have been"


def saved_alike(variant: Variant) -> None:
    """Where config.yaml is lost the newest checkpoint knows the config. Raises UserError when it is another."""
    if step := newest(variant):
        checkpoints = Checkpoints(directory_of(variant))
        same_config(checkpoints.path(step), checkpoints.header(step), variant.config)


def steps_per_call_of(directory: Path, guess: int) -> int:
    """K as it was when the run first started, so that its windows are cut at the same steps. Raises UserError."""
    path = directory / "choices.json"
    if not path.exists():
        return guess
    advice = "without that file the same command chooses the steps of a dispatch anew"
    try:
        known = read_json(path).get("steps_per_call")
    except UserError as error:
        raise UserError(f"{error}; {advice}") from None
    if isinstance(known, int) and not isinstance(known, bool) and known > 0:
        return known
    raise UserError(f"{path}: cannot read: expected steps_per_call, a whole number >= 1; {advice}")


def remember_choices(directory: Path, steps_per_call: int) -> None:
    write_json(directory / "choices.json", {"steps_per_call": steps_per_call})
