"""The training loop of one group of variants.

K steps are one dispatch, and its results are fetched one dispatch late, so that the device never waits for the host.
Evaluations, instruments, checkpoints and pictures are hooks between two dispatches.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax

from data import DataError

from ..config.instruments import INSTRUMENTS
from ..device import process
from ..device.hosts import agreed_stop
from ..device.mesh import fetched
from ..device.platform import environment
from ..device.programs import Programs, VariantGroup
from ..device.signals import Stop
from ..gradflow.norms import named
from ..gradflow.verdict import Verdict
from ..log.charts_layout import chart_layout
from ..store.checkpoint import Checkpoints
from ..store.lock import locked
from .dispatches import Throughput, dispatches, watched_steps
from .metrics import RunMetrics, evaluation_row
from .recovery import explain_dead_qk, handle_nonfinite, handle_spike, stop_early
from .setup import GroupSetup
from .start import overview
from .summary import performance, write_summaries

_PICTURES_EVERY_S = 30.0
_WORTH_A_PEAK_S = 30.0  # a shorter run skips the measurement of the device's peak, which takes about a second


class Hook(NamedTuple):
    """A function of the step that is called at every multiple of `every`.

    at_end: also after the last step.
    pictured: also at the step from which a run is resumed, since TensorBoard drops what it has from there on; scalars
        of that step are in the checkpoint.
    """

    every: int
    function: Callable[[int], Any]
    at_end: bool = False
    pictured: bool = False

    def call(self, step: int, steps: int) -> None:
        """Calls the function if it is due after `step` of `steps`."""
        if step % self.every == 0 or (self.at_end and step == steps):
            self.function(step)

    def calls(self, start_step: int, steps: int) -> int:
        """Returns the number of calls to come, that of step 0 included.

        >>> Hook(4, print).calls(0, 10), Hook(4, print, at_end=True).calls(4, 10)
        (3, 2)
        """
        extra = (start_step == 0) + (self.at_end and steps % self.every > 0)
        return steps // self.every - start_step // self.every + extra


class GroupRun:
    """One group from its first step, or from its newest common checkpoint, to its last.

    Args:
        waited_s: seconds that the groups before this one took.
        later: the groups that train after this one.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        setup: GroupSetup,
        stop: Stop,
        waited_s: float = 0.0,
        later: Sequence[VariantGroup] = (),
        command: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.setup, self.stop, self.waited_s, self.later = setup, stop, waited_s, later
        self.command, self.clock = command, clock
        self.group, self.config, self.console, self.batches = setup.group, setup.config, setup.console, setup.batches
        self.throughput = Throughput(clock)
        self.pending: deque[tuple[Any, Callable[[list[Any]], None]]] = deque()  # (on the device, what logs it)
        self.states: list[Any]  # one a call; None for a variant that has ended
        self.metrics: list[RunMetrics] = []
        self.checkpoints: list[Checkpoints] = []
        self.drawn_at = self.compile_s = self.began = 0.0

    def run(self) -> list[dict[str, Any]]:
        """Trains; returns one summary a variant, or none if the group is to train in `setup.waves`.

        Raises UserError, also when another process writes the same run.
        """
        started, setup, group, config = self.clock(), self.setup, self.group, self.config
        with locked(setup.directories, self.console.warn), ExitStack() as stack:
            start = setup.start
            if start.finished is not None:
                start.write(setup.directories)
                return start.finished
            provenance = {"data": setup.source.sha256, **environment()}
            for variant, directory in zip(group.variants, setup.directories, strict=True):
                self.checkpoints.append(Checkpoints(directory, variant.config, provenance))
            self.console.compiling([variant.name for variant in group.variants])
            budget = stack.enter_context(setup.compiling())
            if setup.waves:
                return []
            import_module("tensorboardX.summary")  # meanwhile, since that takes some tenths of a second
            if start.step:
                self.console.note(f"resuming at step {start.step} of {config.train.steps}")
                like = self.programs.abstract_single
                self.states = self.programs.joined([each.restore(start.step, like) for each in self.checkpoints])
            else:
                self.states = setup.initial(self.console)
            if setup.divided(budget):
                return []
            start.write(setup.directories)  # nothing was changed up to here, and what may be refused has been
            for variant, checkpoints in zip(group.variants, self.checkpoints, strict=True):
                saved = checkpoints.header(start.step).meta if start.step else None
                checkpoints.go_on_from(start.step)
                self.began = started - (saved or {}).get("wall_s", 0.0)  # as if it had never been interrupted
                dtype, warn = group.network.dtype, self.console.warn
                metrics = RunMetrics(variant, checkpoints.run_directory, dtype, start.step, saved, warn)
                stack.callback(metrics.tracker.close)
                self.metrics.append(metrics)
            self.compile_s = self.clock() - started
            timing = {"compile_s": self.compile_s, "seconds_to_first_step": process.age() - self.waited_s}
            self.console.block(*overview(group, start, self.compile_s, budget.line, setup.directories[0].parent))
            matrices = list(named(group.network.shapes()["blocks"])) if config.watch.matrices else []
            without = config.watch.counterfactual and config.model.rule.additive
            for metrics in self.metrics:
                metrics.tracker.layout(chart_layout(matrices, without, list(setup.instruments)))
            self.train()
            explain_dead_qk(self, config.train.steps)
            wall_s = self.clock() - self.began
            worth_it = wall_s >= _WORTH_A_PEAK_S and self.stop.signal is None
            timing |= performance(group, setup.platform, self.throughput, wall_s, worth_it)
            if timing["mfu"] is not None:
                for _, metrics in self.live():
                    metrics.add(config.train.steps, {"perf/mfu": timing["mfu"]})
            timing |= {"command": self.command, "ended": time.strftime("%Y-%m-%d %H:%M:%S%z")}
            return write_summaries(self.metrics, timing, self.stop.signal)

    def train(self) -> None:
        """The loop. A signal ends it after the dispatch in flight, with everything saved."""
        config, steps, start_step = self.config, self.config.train.steps, self.setup.start.step
        splits = self.setup.evaluations
        measures = [Hook(config.train.eval_every, partial(self.evaluate, split), at_end=True) for split in splits]
        for name, every in self.setup.instruments.items():
            measures.append(Hook(every, partial(self.measure, name), pictured=INSTRUMENTS[name].pictured))
        hooks = [*measures, Hook(config.train.checkpoint_every, self.save, at_end=True), Hook(1, self.draw)]
        hooks += [Hook(1, partial(stop_early, self))] if config.train.stop_when else []
        if start_step and not any(metrics.eval_pending for metrics in self.metrics):
            measures = [hook for hook in measures if hook.pictured]
        for hook in measures:
            hook.call(start_step, steps)
        self.drawn_at = self.clock()
        with self.stop.deferred():  # from here on there is something to save
            for start, end in dispatches(start_step, steps, self.setup.start.K, config.watch.every):
                self.stop.doing = f"steps {start + 1} to {end}"
                watched = bool(watched_steps(start, end, config.watch.every))
                self.states, measured = self.programs.dispatch(self.states, self.batches(start, end), watched)
                self.pending.append((measured, partial(self.log_dispatch, start, end)))
                self.settle(leave=1)
                if self.stopping():
                    self.save(end, eval_pending=True)  # the resumed run does what is due here
                    break
                for hook in hooks:
                    hook.call(end, steps)
                if not self.live():
                    break
                if end < steps and self.stopping():  # a hook may have waited for the dispatch
                    self.save(end)
                    break
            self.settle()

    def stopping(self) -> bool:
        """Returns true after a signal to any process, so that all of them save the same step."""
        return agreed_stop(self.stop)

    @property
    def programs(self) -> Programs:
        return self.setup.programs

    def settle(self, leave: int = 0) -> None:
        """Fetches and logs the pending results, but for the newest `leave`."""
        while len(self.pending) > leave:
            measured, log = self.pending.popleft()
            log(self.programs.each(jax.device_get(measured)))

    def live(self) -> list[tuple[int, RunMetrics]]:
        """Returns the variants that still train, with their indices."""
        return [(index, metrics) for index, metrics in enumerate(self.metrics) if metrics.exit_reason is None]

    def verdicts(self) -> dict[int, Verdict]:
        """Returns the verdicts so far of the live variants that were watched, by index."""
        return {index: verdict for index, metrics in self.live() if (verdict := metrics.verdict()) is not None}

    def end(self, index: int, step: int, reason: str) -> None:
        """Ends a variant before its last step; `reason`: nonfinite or verdict."""
        self.metrics[index].end(step, reason)
        self.console.stopped(self.group.variants[index].name, step)
        if not self.group.vmapped:
            self.states[index] = None  # a vmapped call still computes it; its results are discarded

    # -- hooks

    def evaluate(self, split: str, step: int) -> None:
        """Queues the held-out scores of the weights (`split`: val) or of their moving averages (val_ema)."""
        task = self.group.network.task

        def log(results: list[Any]) -> None:
            self.throughput.pause()
            for index, metrics in self.live():
                metrics.add(step, evaluation_row(results[index], self.setup.floors, task, split))

        scores = self.programs.evaluate(self.states, *self.setup.heldout, averaged=split == "val_ema")
        self.pending.append((scores, log))

    def measure(self, name: str, step: int) -> None:
        """Queues the readings of an instrument on the next batches."""

        def log(results: list[Any]) -> None:
            self.throughput.pause()
            for index, metrics in self.live():
                metrics.add_readings(step, results[index])

        try:
            batches = self.batches(step, step + INSTRUMENTS[name].batches(self.config.watch))
        except DataError as error:  # a user's own data may end with the training
            self.console.warn(f"{name}: not measured at step {step}: {error}")
            return
        self.pending.append((self.programs.instrument(name, self.states, batches), log))

    def save(self, step: int, eval_pending: bool = False, only: Collection[int] | None = None) -> None:
        """Saves a checkpoint of every live variant, or of some by index, once all its rows are on the disk."""
        self.settle()
        singles = self.programs.each(fetched(self.states))
        for index, metrics in self.live():
            if only is not None and index not in only:
                continue
            metrics.tracker.drain()
            wall_s = self.clock() - self.began
            self.checkpoints[index].save(singles[index], metrics.meta(step, eval_pending) | {"wall_s": wall_s})
        self.throughput.pause()

    def draw(self, step: int) -> None:
        """Rewrites the heatmaps if the last ones are more than _PICTURES_EVERY_S old."""
        if self.clock() - self.drawn_at > _PICTURES_EVERY_S:
            for _, metrics in self.live():
                metrics.draw()
            self.drawn_at = self.clock()
            self.throughput.pause()

    # -- results

    def log_dispatch(self, start: int, end: int, results: list[Any]) -> None:
        """Logs a dispatch of every live variant, shows the progress, and handles loss spikes and non-finite steps."""
        config, calls = self.config, 1 if self.group.vmapped else sum(each is not None for each in results)
        rate, events = self.throughput.dispatch(end - start, calls), {}
        for index, metrics in self.live():
            events[index] = metrics.add_dispatch(start, results[index][0], results[index][1], rate)
        seconds, tokens, steps = self.throughput.recent, config.data.batch * config.data.context, config.train.steps
        speed, left = None, None
        if seconds is not None:
            # A later group is assumed to take as long for its compilation, and for each FLOP.
            speed, left = tokens / seconds, seconds * calls * (steps - end) + self.compile_s * len(self.later)
            left += seconds * self.programs.calls * sum(group.flops for group in self.later) / self.group.flops * steps
        for index, metrics in self.live():
            if events[index][0] is None or config.train.on_nonfinite == "skip":
                name, loss = metrics.variant.name, metrics.last_loss
                self.console.progress(name, end, steps, loss, speed, left, metrics.delta_log10)
            metrics.tracker.flush()
        for index, (step, spikes) in events.items():
            for spike in spikes:
                handle_spike(self, index, spike)
            if step is not None:
                handle_nonfinite(self, index, step, end)
