"""The start of a group of variants: finished, resumed or fresh, by what its run directories hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from data.source import Source

from ..config.checks import strides
from ..config.load import Variant, to_yaml
from ..config.schema import RunConfig
from ..config.yaml import unquoted
from ..core.schedule import learning_rate
from ..core.state import parameter_count
from ..device.platform import environment
from ..device.programs import VariantGroup, model_flops
from ..disk import read_json, write_atomically, write_json
from ..errors import UserError
from ..log.console import Console
from ..report.read import ENDED, summary_problem
from ..store.checkpoint import Checkpoints, newest_common
from ..store.provenance import environment_changes, same_config, same_data, saved_config
from ..store.rundir import (
    check_config,
    clear_failed_start,
    data_record,
    data_sums,
    differences,
    directory_of,
    has_begun,
)
from .dispatches import assumed_step_seconds, steps_per_call
from .transfer import PretrainedRun, open_pretrained


@dataclass
class Start:
    """The start of a group: its step, and the files that its run directories need.

    step: the steps done before. K: steps a dispatch. finished: a summary a variant when nothing is left to train, else
    None. pretrained: the run whose parameters a fresh one takes over. files: their contents, JSON or text.
    """

    step: int
    K: int
    finished: list[dict[str, Any]] | None
    pretrained: PretrainedRun | None
    files: dict[Path, Mapping[str, Any] | str]

    def write(self, directories: Sequence[Path]) -> None:
        """Writes the files, without those of a start that failed before its first step. Raises UserError."""
        for directory in directories:
            clear_failed_start(directory)
        for path, content in self.files.items():
            write_atomically(path, content) if isinstance(content, str) else write_json(path, content)


def decide_start(
    group: VariantGroup,
    source: Source,
    directories: Sequence[Path],
    kind: str,
    console: Console,
    allow_data_change: bool,
) -> Start:
    """Decides how a group starts on a device of some `kind`; changes nothing. The directories' locks are held.

    Raises UserError: a directory holds another run, or one of other data that `allow_data_change` does not admit; none
    of its checkpoints is whole; it is beyond `train.steps` already; a file of it cannot be read.
    """
    variants, config = group.variants, group.config
    K = recorded_steps_per_call(directories[0], config)  # those that go on together have the same
    K = K or steps_per_call(config, assumed_step_seconds(group, config.data.batch, kind))
    finished = [summary for variant in variants if (summary := finished_run(variant))]
    all_finished = len(finished) == len(variants)
    all_checkpoints = [Checkpoints(directory) for directory in directories]
    step = config.train.steps if all_finished else newest_common(all_checkpoints, console.warn) or 0
    if step > config.train.steps:
        raise UserError(f"{directories[0]}: has trained {step} steps already, and train.steps is {config.train.steps}")
    if not step and any(checkpoints.of_earlier_versions() for checkpoints in all_checkpoints):
        raise UserError(
            f"{directories[0].parent}: has checkpoints of an earlier version, which this one cannot read; choose "
            "another name (name=...) or delete that folder"
        )
    pretrained = None
    if config.train.init_from and not step:
        with variants[0].placing():
            pretrained = open_pretrained(Path(config.train.init_from))
    notes, warnings = [], []
    if not step and any(map(has_begun, directories)):
        notes.append("stopped before the first save of all variants: starting over at step 0")
    files: dict[Path, Mapping[str, Any] | str] = {}
    tokenizer = None if source.tokenizer is None else source.tokenizer.to_json()
    for variant, directory, checkpoints in zip(variants, directories, all_checkpoints, strict=True):
        check_config(variant)
        if saved := newest(variant) if all_finished else step:
            where, header = checkpoints.path(saved), checkpoints.header(saved)
            same_config(where, header, variant.config)  # also where config.yaml is lost, or was edited
            if not all_finished:
                same_data(where, header, {source.sha256, *data_sums(directory)})
                before = saved_config(where, header)
                if before is not None and (changes := changes_at(step, before, variant.config)):
                    notes.append(f"continues at step {step} with {changes}")
                if drift := environment_changes(header, environment()):
                    warnings.append(f"saved with {drift}: what follows is not bitwise what it would have been")
        if not (all_finished and allow_data_change):  # a finished run reads no more data
            record, line = data_record(directory, source.sha256, source.name, tokenizer, step, allow_data_change)
            files |= record
            warnings += [line] if line else []
        path = directory / "config.yaml"
        if not (all_finished and path.exists()):
            files[path] = to_yaml(variant.config)
    for line in warnings:
        console.warn(line)
    for line in dict.fromkeys(notes):
        console.note(line)
    if all_finished:
        console.note(f"{', '.join(variant.name for variant in variants)}: finished before; nothing to do")
    else:
        files |= {directory / "choices.json": {"steps_per_call": K} for directory in directories}
    return Start(step, K, finished if all_finished else None, pretrained, files)


def changes_at(step: int, before: RunConfig, now: RunConfig) -> str | None:
    """Returns the keys that were changed when a run went on, `train.steps 500 -> 2000`, None without any.

    A schedule that depends on `train.steps` is mentioned if it would have taken another way up to `step`.
    """
    keys = differences(before, now, changeable=True)
    if not keys:
        return None
    text = ", ".join(f"{key} {unquoted(old)} -> {unquoted(new)}" for key, (old, new) in keys.items())

    def rates(config: RunConfig, steps: np.ndarray) -> np.ndarray:
        rate, lowest = (jnp.asarray(value, jnp.float32) for value in (config.optimizer.lr, config.optimizer.min_lr))
        return np.asarray(learning_rate(config.optimizer, rate, lowest, jnp.asarray(steps), config.train.steps))

    past = np.unique(np.linspace(0, step - 1, 1000).astype(np.int32))
    if np.array_equal(rates(before, past), rates(now, past)):
        return text
    last, following = rates(before, past[-1:])[0], rates(now, past[-1:] + 1)[0]
    schedule = f"the {now.optimizer.schedule} schedule is re-drawn from here"
    return f"{text}; {schedule}, with a learning rate of {following:.3g} after {last:.3g}"


def resumable_parts(members: Sequence[Variant]) -> list[tuple[Variant, ...]]:
    """Returns the variants of a group in parts that can go on together, those that have come farthest first.

    A group saves its variants one after the other, so those that were killed together are one save apart at most. One
    that was finished, or stopped by a step that is not finite, or is farther apart, has trained without the others and
    does so again: nothing that it has saved is taken back for them, nor for one of a later wave, which has not begun.
    Raises UserError when all checkpoints of one are damaged.
    """
    finished = [member for member in members if finished_run(member)]
    steps = {id(member): newest(member) for member in members if member not in finished}

    def ended(variant: Variant) -> bool:
        path = directory_of(variant) / "summary.json"
        return path.exists() and read_json(path).get("exit_reason") in ENDED

    def begun(variant: Variant) -> bool:
        return steps[id(variant)] > 0 or (directory_of(variant) / "config.yaml").exists()

    def one_save_ahead(variant: Variant, step: int) -> bool:
        checkpoints = Checkpoints(directory_of(variant))
        saved = checkpoints.steps()
        whole = not step or (step in saved and checkpoints.damage(step) is None)
        return whole and sum(other > step for other in saved) == 1 and not ended(variant)

    parts: list[list[Variant]] = []
    for member in sorted((m for m in members if m not in finished), key=lambda m: steps[id(m)], reverse=True):
        step = steps[id(member)]
        if parts and all(
            steps[id(other)] == step or (begun(member) and not ended(member) and one_save_ahead(other, step))
            for other in parts[-1]
        ):
            parts[-1].append(member)
        else:
            parts.append([member])
    return [tuple(sorted(part, key=members.index)) for part in [finished, *parts] if part]


def newest(variant: Variant) -> int:
    """Returns the step of a variant's newest whole checkpoint, 0 without any. Raises UserError when all are damaged."""
    return Checkpoints(directory_of(variant)).newest(lambda _: None) or 0


def resume_points(variants: Sequence[Variant]) -> str:
    """Returns where each variant can go on from, grouped: `saved: a, b at step 4; c not begun`."""
    by_state: dict[str, list[str]] = {}
    saved = False
    for variant in variants:
        state = "not begun"
        try:
            if finished_run(variant):
                state = "finished"
            elif step := newest(variant):
                state = f"at step {step}"
            saved = saved or state != "not begun"
        except UserError:  # the next command says why
            state = "cannot be resumed"
        by_state.setdefault(state, []).append(variant.name)
    where = "; ".join(f"{', '.join(names)} {state}" for state, names in by_state.items())
    return f"{'saved' if saved else 'nothing saved'}: {where}"


def finished_run(variant: Variant) -> dict[str, Any] | None:
    """Returns the summary of a run that has come to its `train.steps`, or to a verdict in `train.stop_when`; else None.

    One whose last checkpoint is damaged has to go on from the one before, to the same end. One whose checkpoints were
    all deleted is finished. Raises UserError: summary.json cannot be used, or the run cannot come to that step.
    """
    directory, steps = directory_of(variant), variant.config.train.steps
    path = directory / "summary.json"
    summary = read_json(path) if path.exists() else {}
    stops = variant.config.train.stop_when
    early = summary.get("exit_reason") == "verdict" and (summary.get("verdict") or {}).get("state") in stops
    if summary.get("exit_reason") != "done" and not early:
        return None
    lacks = [key for key in ("variant", "steps", "first_nonfinite_step", "verdict") if key not in summary]
    wrong = f"{lacks[0]}: missing" if lacks else summary_problem(summary)
    wrong = wrong or ("" if summary["variant"] == directory.name else f"variant: expected {directory.name}")
    if wrong:
        raise UserError(f"{path}: {wrong}; without that file the same command writes it again")
    if summary["steps"] > steps:
        raise UserError(f"{directory}: has trained {summary['steps']} steps already, and train.steps is {steps}")
    checkpoints = Checkpoints(directory)
    saved = checkpoints.steps()
    if summary["steps"] < steps and not early:
        if not saved:
            raise UserError(
                f"{directory}: was finished at step {summary['steps']}, and has no checkpoint to go on from"
            )
        return None
    return summary if not saved or checkpoints.damage(saved[-1]) is None else None


def recorded_steps_per_call(directory: Path, config: RunConfig) -> int | None:
    """Returns K as it was when the run first started, so that its dispatches end at the same steps.

    None for a new run, and where the recorded K does not divide the intervals of the config any more. Raises UserError.
    """
    path = directory / "choices.json"
    if not path.exists():
        return None
    advice = "without that file the same command chooses the steps of a dispatch again"
    try:
        recorded = read_json(path).get("steps_per_call")
    except UserError as error:
        raise UserError(f"{error}; {advice}") from None
    if not isinstance(recorded, int) or isinstance(recorded, bool) or recorded < 1:
        raise UserError(f"{path}: cannot read: expected steps_per_call, a whole number >= 1; {advice}")
    fits = recorded in strides(config, recorded) and config.train.steps_per_call in ("auto", recorded)
    return recorded if fits else None


def overview(
    group: VariantGroup, start: Start, compile_s: float, memory: str, folder: Path
) -> tuple[str, list[tuple[str, str]]]:
    """Returns title and rows of the block that the console shows before the first step."""
    config, several = group.config, len(group.variants) > 1
    mode = " (vmapped in one call)" if group.vmapped else " (called in turn)"
    count = parameter_count(group.network.shapes())
    flops = model_flops(group.network, config.data.batch)
    steps = f"{config.train.steps - start.step:,}, {start.K} a dispatch, scan unroll {group.network.unroll}"
    return f"group of {len(group.variants)}" if several else "variant", [
        ("variants", ", ".join(v.name for v in group.variants) + (mode if several else "")),
        ("parameters", f"{count:,} ({group.network.param_dtype}), compute in {group.network.dtype}"),
        ("work a step", f"{flops / 1e9:.3g} GFLOP, {config.data.batch * config.data.context:,} tokens"),
        ("steps", steps),
        ("compiled in", f"{compile_s:.1f} s"),
        ("memory", memory),
        ("run directory", str(folder)),
    ]
