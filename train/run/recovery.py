"""Ends before the last step: non-finite steps, their record and cause by a replay; verdicts of `train.stop_when`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Bool

from ..core.batch import batch_of
from ..core.nonfinite_cause import Cause, cause_of, examine
from ..core.state import State
from ..device.mesh import fetched
from ..device.programs import Programs, called_once
from ..errors import UserError, first_line
from ..gradflow.advice import advice_for
from ..gradflow.verdict import with_plain_name
from .dispatches import dispatches, watched_steps

if TYPE_CHECKING:
    from .loop import GroupRun

# Consecutive steps that may be skipped; a run that skips more makes no progress and is stopped.
MOST_SKIPPED = 100


@dataclass(frozen=True)
class NonfiniteSteps:
    """Record of a variant's non-finite steps, stored in each checkpoint so that a resumed run continues it.

    Steps are counted from 1: step n leads from the weights after n - 1 updates to those after n.
    """

    first: int | None = None
    cause: str | None = None  # of the first one
    skipped: int = 0  # updates left out so far
    in_a_row: int = 0  # of them, up to the last step

    def skipping(self, finite: Bool[np.ndarray, " K"], start: int) -> "NonfiniteSteps":
        """Returns the record after a dispatch from `start` on whose bad updates were skipped."""
        bad = np.flatnonzero(~finite)
        if not bad.size:
            return replace(self, in_a_row=0)
        good = np.flatnonzero(finite)
        row = self.in_a_row + len(finite) if not good.size else len(finite) - 1 - int(good[-1])
        return replace(self, skipped=self.skipped + bad.size, in_a_row=row)

    def diagnosed(self, step: int, cause: str) -> "NonfiniteSteps":
        """Returns the record after a diagnosis; only the first one is stored."""
        return self if self.cause is not None else replace(self, first=step, cause=cause)


def first_nonfinite(finite: Bool[np.ndarray, " K"], start: int) -> int | None:
    """Returns the first non-finite step, counted from 1, of a dispatch from `start` on; None without any."""
    bad = np.flatnonzero(~np.asarray(finite))
    return start + int(bad[0]) + 1 if bad.size else None


def find_cause(
    programs: Programs,
    index: int,
    state: State,
    replayed: Iterable[tuple[int, int]],
    batches: Callable[[int, int], list[Any]],
    bad: int,
    stopping: Callable[[], bool],
) -> tuple[int, Cause] | None:
    """Replays one variant from its last good state up to the bad step, and examines that step.

    Args:
        index: of the variant in its group.
        state: of the variant, where the first of the dispatches starts.
        replayed: the dispatches from there on. Those before the bad one run as they did; the bad one goes step by step.
        batches: (start, end) -> leaves [end - start, B, ...], one entry a variant.
        bad: the step that was not finite, counted from 1.

    Returns the first bad step at or before `bad` and its cause; None when `stopping`. Needs memory for a second state.
    """
    group, every = programs.group, programs.group.config.watch.every
    states = programs.joined([state] * len(group.variants))  # in one call of all the others repeat this one
    if not group.vmapped:
        states = [states[0] if other == index else None for other in range(len(group.variants))]
    for start, end in replayed:
        if stopping():
            return None
        if end < bad:
            states, _ = programs.dispatch(states, batches(start, end), bool(watched_steps(start, end, every)))
            continue
        before, step, watched = states, start, watched_steps(start, end, every)
        for step in range(start, bad):
            if stopping():
                return None
            before = jax.tree.map(lambda leaf: leaf.copy(), states)  # a dispatch donates its states
            states, measured = programs.dispatch(states, batches(step, step + 1), step in watched)
            metrics = programs.each(jax.device_get(measured))[index][0]
            if not metrics.finite[0]:
                break
        before = programs.each(fetched(before))[index]
        network, config = group.network, group.variants[index].config
        feed = jax.tree.map(lambda leaf: leaf[0], batches(step, step + 1)[index])
        batch = batch_of(feed, programs.corpus, network.context)
        examined = called_once(partial(examine, network, config), before, group.hparams[index], batch)
        return step + 1, cause_of(jax.device_get(examined), network.param_dtype)
    raise AssertionError("no dispatch holds the bad step")


def handle_nonfinite(run: "GroupRun", index: int, step: int, end: int) -> bool:
    """Reports the cause of a variant's non-finite step; ends the variant if `train.on_nonfinite` asks for it.

    Args:
        step: the non-finite one, counted from 1.
        end: of its dispatch.

    Returns true if the variant has ended.
    """
    metrics, checkpoints, warn = run.metrics[index], run.checkpoints[index], run.console.warn
    name, config, programs = metrics.variant.name, metrics.variant.config, run.programs
    warn(f"{name}: step {step} is not finite; replaying from the last good state to find the cause")
    since, at, cause = max(checkpoints.steps(), default=0), step, "interrupted before the cause was found"
    try:
        since = checkpoints.newest(warn) or 0
        if since:
            good = checkpoints.restore(since, programs.abstract_single)
        else:
            good = programs.each(fetched(run.initial(None)))[index]
        replayed = dispatches(since, config.train.steps, run.start.K, config.watch.every)
        origin = find_cause(programs, index, good, replayed, run.batches, step, lambda: run.stop.signal is not None)
        if origin is not None:  # perhaps earlier: single steps may round differently
            at, cause = origin[0], str(origin[1])
    except (UserError, RuntimeError, ValueError, MemoryError) as error:  # a diagnosis that fails changes nothing
        cause = f"the replay failed: {first_line(error)[:200]}"
    metrics.nonfinite = metrics.nonfinite.diagnosed(at, cause)
    warn(f"{name}: step {at}: {cause}")
    advice = advice_for("unstable", config)
    metrics.tracker.text("verdict/nonfinite", at, f"step {at}: {cause}\n\nTry {advice}")
    why = ""
    if config.train.on_nonfinite == "skip":
        if metrics.nonfinite.in_a_row < MOST_SKIPPED:
            warn(f"{name}: the update of step {step} is left out; further ones are counted as optim/skipped")
            return False
        why, step = f", {MOST_SKIPPED} in a row skipped", end  # its rows are written up to there
    standing = f"the checkpoint of step {since} is kept" if since else "there was no checkpoint yet"
    warn(f"{name}: stops at step {step}{why}; {standing}")
    metrics.end(step, "nonfinite")
    run.console.stopped(name, step)
    return True


def stop_early(run: "GroupRun", step: int) -> None:
    """Ends, saved, each variant whose verdict so far is one of `train.stop_when`. Waits for the last dispatch."""
    run.settle()
    verdicts = {index: verdict for index, metrics in run.live() if (verdict := metrics.verdict()) is not None}
    met = {index: v for index, v in verdicts.items() if v.state in run.config.train.stop_when}
    if not met or step == run.config.train.steps:
        return
    run.save(step, only=met)
    for index, verdict in met.items():
        name, state = run.group.variants[index].name, with_plain_name(verdict.state)
        run.console.note(f"{name}: stops at step {step}, saved (train.stop_when): {state}: {verdict.why}")
        run.metrics[index].end(step, "verdict")
        run.console.stopped(name, step)
        if not run.group.vmapped:
            run.states[index] = None  # a vmapped call still computes it; its results are discarded
