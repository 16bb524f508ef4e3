"""Steps that went wrong, replayed from a checkpoint: the causes of non-finite ones and of loss spikes. Early ends."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float64

from data import first_line

from ..config.instruments import INSTRUMENTS
from ..core.batch import batch_of
from ..core.nonfinite_cause import Cause, cause_of, examine
from ..core.step import Metrics, StepStats
from ..core.tags import Scalars, watched_scalars
from ..device.mesh import fetched
from ..device.programs import called_once
from ..errors import UserError
from ..gradflow.advice import advice_for
from ..gradflow.spikes import Spike, first_moved
from ..gradflow.verdict import mean_parts, with_plain_name
from ..instruments.readings import json_of, scalars_of
from ..text import LAYER_INDEX
from .dispatches import dispatches, watched_steps

if TYPE_CHECKING:
    from .loop import GroupRun

# Consecutive steps that may be skipped; a run that skips more makes no progress and is stopped.
MOST_SKIPPED = 100
# Steps from a checkpoint to a spike: at most, for the time that a replay takes; of which the last, at least, go one by
# one; and at least, as many as the detector needs.
FARTHEST, WINDOW, NEAREST = 1000, 128, 40
# Series that a spike is traced to: tags of watched steps and instruments, and their names in a sentence. Other sizes
# that instruments log as log10 have their tags for names; what may be negative, such as a cosine, has none to compare.
_SERIES = {
    rf"delta/norm_log10/{LAYER_INDEX}": "δ at depth {}",
    rf"grad/norm_log10/{LAYER_INDEX}/(\w+)": "the gradient of {1} in block {0}",
    r"grad/norm_log10/(?!layer_)(\w+)": "the gradient of {}",
    rf"update/ratio_log10/{LAYER_INDEX}/(\w+)": "the update per rate of {1} in block {0}",
    rf"act/rms/{LAYER_INDEX}": "the stream's rms at depth {}",
    **{rf"{tag}(?:/{LAYER_INDEX})?": name for each in INSTRUMENTS.values() for tag, name in each.names.items()},
}
_FAILURES = (UserError, RuntimeError, ValueError, MemoryError)  # of a replay; a diagnosis that fails changes nothing


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


class Replayed(NamedTuple):
    """A step that ran alone: the number of steps before it, the states of calls there if they are kept, the readings of
    instruments there by tag, and what the step measured, as arrays [1, ...] on the host."""

    step: int
    before: list[Any] | None
    readings: Scalars
    metrics: Metrics
    stats: StepStats | None


def replay(
    run: "GroupRun",
    index: int,
    since: int,
    alone: int,
    until: int,
    *,
    watch_all: bool = False,
    instruments: Sequence[str] = (),
    keep: bool = False,
) -> Iterator[Replayed]:
    """Replays a variant from its checkpoint of `since`, or from the start, and yields the steps that run alone.

    Dispatches run whole, as they did, and those that end at step `alone` or later, up to `until` (both counted from 1),
    step by step too: each from the exact state, so that what single steps round differently does not add up. The
    training's own state stays as it is. Needs memory for two more. Ends early after a signal.

    Args:
        watch_all: watches every step that runs alone, not only those of `watch.every`.
        instruments: names of those that measure before each of these steps.
        keep: yields the states before each step.
    """
    programs, group, every = run.programs, run.group, run.config.watch.every
    copied = partial(jax.tree.map, lambda leaf: leaf.copy())
    if since:
        state = run.checkpoints[index].restore(since, programs.abstract_single)
    else:
        state = programs.each(fetched(run.setup.initial(None)))[index]
    states = programs.joined([state] * len(group.variants))  # in one call of all the others repeat this one
    if not group.vmapped:
        states = [states[0] if other == index else None for other in range(len(group.variants))]
    for start, end in dispatches(since, run.config.train.steps, run.setup.start.K, every):
        watched = watched_steps(start, end, every)
        singly = range(start, min(end, until)) if end >= alone else range(0)
        single = copied(states) if singly and end < until else states  # a dispatch donates its states
        for step in singly:
            if run.stopping():
                return
            before, readings = copied(single) if keep else None, {}
            for name in instruments:
                batches = run.batches(step, step + INSTRUMENTS[name].batches(run.config.watch))
                read = jax.device_get(programs.instrument(name, single, batches))
                readings |= scalars_of(programs.each(read)[index])
            single, measured = programs.dispatch(single, run.batches(step, step + 1), watch_all or step in watched)
            yield Replayed(step, before, readings, *programs.each(jax.device_get(measured))[index])
        if end >= until or run.stopping():
            return
        states, _ = programs.dispatch(states, run.batches(start, end), bool(watched))


def find_cause(run: "GroupRun", index: int, since: int, bad: int) -> tuple[int, Cause] | None:
    """Replays a variant from its last good state, that of `since`, and examines the first bad step up to step `bad`.

    Returns that step, counted from 1, and its cause; None after a signal. Single steps may round differently, so it may
    come earlier.
    """
    programs, group = run.programs, run.group
    last = None
    for last in replay(run, index, since, bad, bad, keep=True):
        if not last.metrics.finite[0]:
            break
    if last is None or (last.metrics.finite[0] and last.step + 1 < bad):
        return None
    before = programs.each(fetched(last.before))[index]
    network, config = group.network, group.variants[index].config
    batch_input = jax.tree.map(lambda leaf: leaf[0], run.batches(last.step, last.step + 1)[index])
    batch = batch_of(batch_input, programs.corpus, network.context)
    examined = called_once(partial(examine, network, config), before, group.hparams[index], batch)
    return last.step + 1, cause_of(jax.device_get(examined), network.param_dtype)


def handle_nonfinite(run: "GroupRun", index: int, step: int, end: int) -> None:
    """Reports the cause of a variant's non-finite step; ends the variant if `train.on_nonfinite` asks for it.

    Args:
        step: the non-finite one, counted from 1.
        end: of its dispatch.
    """
    metrics, checkpoints, warn = run.metrics[index], run.checkpoints[index], run.console.warn
    name, config = metrics.variant.name, metrics.variant.config
    run.throughput.pause()
    warn(f"{name}: step {step} is not finite; replaying from the last good state to find the cause")
    since, at, cause = max(checkpoints.steps(), default=0), step, "interrupted before the cause was found"
    try:
        since = checkpoints.newest(warn) or 0
        if (examined := find_cause(run, index, since, step)) is not None:
            at, cause = examined[0], str(examined[1])
    except _FAILURES as error:
        cause = f"the replay failed: {first_line(error)}"
    metrics.found_cause(at, cause)
    warn(f"{name}: step {at}: {cause}")
    advice = advice_for("unstable", config)
    metrics.tracker.text("verdict/nonfinite", at, f"step {at}: {cause}\n\nTry {advice}")
    why = ""
    if config.train.on_nonfinite == "skip":
        if metrics.nonfinite.in_a_row < MOST_SKIPPED:
            warn(f"{name}: the update of step {step} is left out; further ones are counted as optim/skipped")
            return
        why, step = f", {MOST_SKIPPED} in a row skipped", end  # its rows are written up to there
    standing = f"the checkpoint of step {since} is kept" if since else "there was no checkpoint yet"
    warn(f"{name}: stops at step {step}{why}; {standing}")
    run.end(index, step, "nonfinite")


def handle_spike(run: "GroupRun", index: int, spike: Spike) -> None:
    """Reports a loss spike of a variant; replays the first `watch.diagnose_spikes` of them for what moved first."""
    metrics, warn, config = run.metrics[index], run.console.warn, run.config
    name, last = metrics.variant.name, metrics.last_verdict
    line = f"loss spike at step {spike.step}, {spike.height:.3g} above what was usual before"
    line += "" if last is None else f"; by step {metrics.last_watched} {last.state}: {last.why}"
    of_call = run.metrics if run.group.vmapped else [metrics]  # one call replays all of them
    replays = bool(config.watch.every) and sum(len(m.diagnoses) for m in of_call) < config.watch.diagnose_spikes
    warn(f"{name}: {line}{'; replaying the steps before it' * replays}")
    if replays:
        run.throughput.pause()
        try:
            diagnosis = _diagnosis(run, index, spike)
        except _FAILURES as error:
            diagnosis = f"no diagnosis, the replay failed: {first_line(error)}"
        metrics.found_first_moved(spike.step, diagnosis)
        warn(f"{name}: spike at step {spike.step}: {diagnosis}")
        line += f"; {diagnosis}"
    advice = advice_for("unstable", metrics.variant.config)
    metrics.tracker.text("verdict/spike", spike.step, f"{line}\n\nTry {advice}")


def _diagnosis(run: "GroupRun", index: int, spike: Spike) -> str:
    """Returns what moved before a spike, by a replay of the steps before it."""
    saved = run.checkpoints[index].steps()
    if not (run.setup.start.step and run.config.train.init_from):  # whose parameters a resumed run has not read
        saved = [0, *saved]
    since = replay_start(saved, spike.step)
    if since is None:
        return f"no diagnosis, there is no checkpoint {NEAREST} to {FARTHEST} steps before it"
    # Those that the run has on, but for the ones of many passes, and the one that is known to move before a loss.
    names = dict.fromkeys(["attention", *run.setup.instruments])
    instruments = [name for name in names if not INSTRUMENTS[name].long]
    alone = spike.step - WINDOW + 1
    steps = list(replay(run, index, since, alone, spike.step, watch_all=True, instruments=instruments))
    if not steps or steps[-1].step + 1 < spike.step:
        return "no diagnosis, the replay was interrupted"
    losses = np.array([each.metrics.loss[0] for each in steps], np.float64)
    return first_moved(series_of(steps, run.metrics[index].dtype), losses, spike, steps[0].step + 1)


def replay_start(saved: Sequence[int], step: int) -> int | None:
    """Returns the newest of the steps `saved` that is at least WINDOW steps before a spike at `step`; without one, the
    newest that is at least NEAREST before it. None if all are nearer, or further than FARTHEST.

    >>> replay_start([0, 48, 96, 144], 192), replay_start([0, 24, 48], 64), replay_start([96, 144, 168], 192)
    (48, 0, 144)
    >>> replay_start([54, 55, 1016], 1055), replay_start([54, 1016], 1055), replay_start([], 1055)
    (55, None, None)
    """
    near = [at for at in saved if NEAREST <= step - at <= FARTHEST]
    return max([at for at in near if at <= max(0, step - WINDOW)] or near, default=None)


def series_of(steps: Sequence[Replayed], dtype: str) -> dict[str, Float64[np.ndarray, " S"]]:
    """Returns log10 of what was measured before each of S steps, updates divided by the rate, by names for sentences.

    dtype: that of the computation.
    """
    rates = np.array([each.metrics.lr[0] for each in steps], np.float64)
    rows = [each.readings | watched_scalars(each.stats, dtype)[0] for each in steps if each.stats is not None]
    common = [tag for tag in rows[0] if all(tag in row for row in rows)]  # a reading that is not defined is in no row
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.log10(rates)
        series = {"the learning rate": rate}
        for tag in common:
            matches = ((re.fullmatch(pattern, tag), phrase) for pattern, phrase in _SERIES.items())
            tag_itself = tag if tag in steps[0].readings and "_log10" in tag else None
            name = next((phrase.format(*match.groups()) for match, phrase in matches if match), tag_itself)
            if name is not None:
                values = np.array([-math.inf if row[tag] is None else row[tag] for row in rows], np.float64)
                logs = values if "_log10" in tag else np.log10(np.abs(values))
                series[name] = logs - rate if tag.startswith("update/") else logs  # a schedule is no cause of its own
    return series


def explain_dead_qk(run: "GroupRun", step: int) -> None:
    """Adds to verdicts of dead_qk what starves attention at `step`: a reading of `grad_mean`, which is not logged.

    Not after a signal, which wants a quick end.
    """
    starved = [index for index, verdict in run.verdicts().items() if verdict.state == "dead_qk"]
    if not starved or run.stopping():
        return
    run.throughput.pause()
    try:
        read = jax.device_get(run.programs.instrument("grad_mean", run.states, run.batches(step, step + 1)))
        for index in starved:
            shares = json_of(run.programs.each(read)[index])["grad_mean/mean"]
            run.metrics[index].found_mechanism(f"at step {step} {mean_parts(shares)}")
    except _FAILURES as error:
        run.console.warn(f"step {step}: what starves attention was not measured: {first_line(error)}")


def stop_early(run: "GroupRun", step: int) -> None:
    """Ends, saved, each variant whose verdict so far is one of `train.stop_when`. Waits for the last dispatch."""
    run.settle()
    met = [index for index, verdict in run.verdicts().items() if verdict.state in run.config.train.stop_when]
    if not met or step == run.config.train.steps:
        return
    run.save(step, only=met)
    explain_dead_qk(run, step)
    verdicts = run.verdicts()
    for index in met:
        name, why = run.group.variants[index].name, f"{with_plain_name(verdicts[index].state)}: {verdicts[index].why}"
        run.console.note(f"{name}: stops at step {step}, saved (train.stop_when): {why}")
        run.end(index, step, "verdict")
