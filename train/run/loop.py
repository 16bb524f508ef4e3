"""The training loop of one group of variants.

K steps are one dispatch, and its results are fetched one dispatch late, so that the device never waits for the host.
Evaluations, instruments, checkpoints and pictures are hooks between two dispatches.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import numpy as np

from data import DataError
from data.source import Source

from ..config.instruments import INSTRUMENTS
from ..core.batch import BatchInput
from ..device import process
from ..device.hosts import agreed
from ..device.memory import Budget
from ..device.mesh import fetched, placed
from ..device.platform import Platform, environment
from ..device.programs import Programs, VariantGroup, with_steps
from ..device.signals import Stop
from ..gradflow.norms import named
from ..log.charts_layout import chart_layout
from ..log.console import Console
from ..store.checkpoint import Checkpoints, check_dtypes
from ..store.lock import locked
from ..store.rundir import own_directory_of
from .dispatches import Throughput, dispatch_shapes, dispatches, watched_steps
from .metrics import RunMetrics, evaluation_row
from .recovery import explain, handle_nonfinite, handle_spike, stop_early
from .start import Start, begin, described
from .summary import close, performance
from .transfer import started_from

_PICTURES_EVERY_S = 30.0
_WORTH_A_PEAK_S = 30.0  # a shorter run skips the measurement of the device's peak, which takes about a second


class Hook(NamedTuple):
    """A function called with the step after each dispatch that ends at a multiple of `every`; with `at_end`, also after
    the last step."""

    every: int
    function: Callable[[int], None]
    at_end: bool = False


class GroupRun:
    """One group from its first step, or from its newest common checkpoint, to its last.

    Args:
        waited_s: seconds that the groups before this one took.
        later: the groups that train after this one.
        allow_data_change: a run that was trained on other data goes on with these.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        group: VariantGroup,
        source: Source,
        platform: Platform,
        console: Console,
        stop: Stop,
        waited_s: float = 0.0,
        later: Sequence[VariantGroup] = (),
        allow_data_change: bool = False,
        command: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.group, self.source, self.platform, self.console, self.later = group, source, platform, console, later
        self.stop, self.config, self.waited_s, self.allow_data_change = stop, group.config, waited_s, allow_data_change
        self.command, self.clock = command, clock
        intervals = self.config.watch.intervals.items()
        self.instruments = {name: every for name, every in intervals if INSTRUMENTS[name].applies(self.config)}
        self.directories = [own_directory_of(variant) for variant in group.variants]
        self.throughput = Throughput(clock)
        self.pending: deque[tuple[Any, Callable[[list[Any]], None]]] = deque()  # (on the device, what logs it)
        self.start: Start
        self.programs: Programs
        self.states: list[Any]  # one a call; None for a variant that has ended
        self.heldout: tuple[Any, BatchInput, np.ndarray]  # tokens on the device or None, batches, weights
        self.waves: list[tuple[Source, VariantGroup]] = []  # parts to train in its place if the group does not fit
        self.metrics: list[RunMetrics] = []
        self.checkpoints: list[Checkpoints] = []
        self.drawn_at = self.compile_s = self.began = 0.0

    def run(self) -> list[dict[str, Any]]:
        """Trains; returns one summary a variant, or none if the group is to train in `waves`.

        Raises UserError, also when another process writes the same run.
        """
        started, group, config, directories = self.clock(), self.group, self.config, self.directories
        with locked(directories, self.console.warn), ExitStack() as stack:
            start = self.begin()
            if start.finished is not None:
                start.write(directories)
                return start.finished
            provenance = {"data": self.source.sha256, **environment()}
            for variant, directory in zip(group.variants, directories, strict=True):
                self.checkpoints.append(Checkpoints(directory, variant.config, provenance))
            self.console.compiling([variant.name for variant in group.variants])
            budget = self.compile()  # in the background
            stack.callback(self.programs.abandon)
            if self.waves:
                return []
            import_module("tensorboardX.summary")  # meanwhile, since that takes some tenths of a second
            try:
                self.states = self.resumed() if start.step else self.initial(self.console)
                if self.divided(budget):
                    return []
                start.write(directories)  # nothing was changed up to here, and what may be refused has been
                for variant, checkpoints in zip(group.variants, self.checkpoints, strict=True):
                    saved = checkpoints.header(start.step).meta if start.step else None
                    checkpoints.go_on_from(start.step)
                    self.began = started - (saved or {}).get("wall_s", 0.0)  # as if it had never been interrupted
                    dtype, warn = group.network.dtype, self.console.warn
                    metrics = RunMetrics(variant, checkpoints.run_directory, dtype, start.step, saved, warn)
                    stack.callback(metrics.tracker.close)
                    self.metrics.append(metrics)
                self.compile_s = compile_s = self.clock() - started
                timing = {"compile_s": compile_s, "seconds_to_first_step": process.age() - self.waited_s}
                self.console.block(*described(group, start, compile_s, budget.line, directories[0].parent))
                matrices = list(named(group.network.shapes()["blocks"])) if config.watch.matrices else []
                without = config.watch.counterfactual and config.model.rule.additive
                for metrics in self.metrics:
                    metrics.tracker.layout(chart_layout(matrices, without, list(self.instruments)))
                self.train()
                explain(self, config.train.steps)
                wall_s = self.clock() - self.began
                worth_it = wall_s >= _WORTH_A_PEAK_S and self.stop.signal is None
                timing |= performance(group, self.platform, self.throughput, wall_s, worth_it)
                if timing["mfu"] is not None:
                    for _, metrics in self.live():
                        metrics.add(config.train.steps, {"perf/mfu": timing["mfu"]})
                ended = {"command": self.command, "ended": time.strftime("%Y-%m-%d %H:%M:%S%z")}
                return close(self.metrics, timing | ended, self.stop.signal)
            except Exception as error:
                budget.explain(error)
                raise

    def train(self) -> None:
        """The loop. A signal ends it after the dispatch in flight, with everything saved."""
        config, steps, start_step = self.config, self.config.train.steps, self.start.step
        measures = [Hook(config.train.eval_every, self.evaluate, at_end=True)]
        measures += [Hook(every, partial(self.measure, name)) for name, every in self.instruments.items()]
        hooks = [*measures, Hook(config.train.checkpoint_every, self.save, at_end=True), Hook(1, self.draw)]
        hooks += [Hook(1, partial(stop_early, self))] if config.train.stop_when else []
        if start_step and not any(metrics.eval_pending for metrics in self.metrics):
            # TensorBoard drops what it has from this step on; the figures of its row are in the checkpoint.
            pictured = [INSTRUMENTS[name].pictured for name in self.instruments]
            measures = [hook for hook, keep in zip(measures[1:], pictured, strict=True) if keep]
        for hook in measures:
            if start_step % hook.every == 0 or (hook.at_end and start_step == steps):
                hook.function(start_step)
        self.drawn_at = self.clock()
        with self.stop.deferred():  # from here on there is something to save
            for start, end in dispatches(start_step, steps, self.start.K, config.watch.every):
                self.stop.doing = f"steps {start + 1} to {end}"
                watched = bool(watched_steps(start, end, config.watch.every))
                self.states, measured = self.programs.dispatch(self.states, self.batches(start, end), watched)
                self.pending.append((measured, partial(self.log_dispatch, start, end)))
                self.settle(leave=1)
                if self.stopping():
                    self.save(end, eval_pending=True)  # the resumed run does what is due here
                    break
                for hook in hooks:
                    if end % hook.every == 0 or (hook.at_end and end == steps):
                        hook.function(end)
                if not self.live():
                    break
                if end < steps and self.stopping():  # a hook may have waited for the dispatch
                    self.save(end)
                    break
            self.settle()

    def stopping(self) -> bool:
        """Returns true after a signal to any process, so that all of them save the same step."""
        if (signal := agreed(self.stop.signal)) is not None:
            self.stop.signal = signal
        return signal is not None

    def settle(self, leave: int = 0) -> None:
        """Fetches and logs the pending results, but for the newest `leave`."""
        while len(self.pending) > leave:
            measured, log = self.pending.popleft()
            log(self.programs.each(jax.device_get(measured)))

    def live(self) -> list[tuple[int, RunMetrics]]:
        """Returns the variants that still train, with their indices."""
        return [(index, metrics) for index, metrics in enumerate(self.metrics) if metrics.exit_reason is None]

    def batches(self, start: int, end: int) -> list[BatchInput]:
        """Leaves [end - start, B, ...], one entry a variant; variants of one data seed share their batches."""
        data = self.config.data
        seeds = [variant.config.data.seed for variant in self.group.variants]
        drawn = {seed: self.source.train_batches(data.batch, seed or 0, start, end - start) for seed in set(seeds)}
        return [drawn[seed] for seed in seeds]

    @cached_property
    def floors(self) -> Mapping[str, float]:
        """Losses on the rows of the evaluations that are known in advance, as far as the data has this task."""
        source, batches = self.source, self.config.train.eval_batches
        return source.floors(self.config.data.batch, batches) if source.spec.task == self.group.network.task else {}

    # -- hooks

    def evaluate(self, step: int) -> None:
        """Queues the held-out scores of the weights, and of their moving averages if there are any."""
        task = self.group.network.task

        def log(split: str, results: list[Any]) -> None:
            self.throughput.pause()
            for index, metrics in self.live():
                metrics.add(step, evaluation_row(results[index], self.floors, task, split))

        self.pending.append((self.programs.evaluate(self.states, *self.heldout), partial(log, "val")))
        if self.config.optimizer.ema is not None:
            scores = self.programs.evaluate(self.states, *self.heldout, averaged=True)
            self.pending.append((scores, partial(log, "val_ema")))

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
            if step is not None and handle_nonfinite(self, index, step, end) and not self.group.vmapped:
                self.states[index] = None  # a vmapped call still computes it; its results are discarded

    # -- before the first dispatch and after the last

    def begin(self) -> Start:
        """Decides how the group starts; changes nothing. Raises UserError when its run directories do not allow it."""
        group, source, kind = self.group, self.source, self.platform.kind
        self.start = begin(group, source, self.directories, kind, self.console, self.allow_data_change)
        return self.start

    def compile(self) -> Budget:
        """Starts compiling every program of the run, unless the states alone ask for `waves`.

        Raises UserError when those of the smallest wave do not fit in memory.
        """
        group, config, data = self.group, self.config, self.config.data
        train, val = (None, None) if self.source.resident is None else map(np.asarray, self.source.resident)
        self.programs = programs = Programs(group, train)
        val = None if val is None else placed(val, programs.layout())
        self.heldout = (val, *self.source.heldout_batches(data.batch, config.train.eval_batches))
        check_dtypes(programs.abstract_single)  # of a user's own optimizer
        budget = Budget.of(programs, (programs.corpus, val), self.platform)
        if self.divided(budget):
            return budget
        if not self.start.step:
            programs.prepare_init()
        for length, watched in dispatch_shapes(config, self.start.step, self.start.K):
            programs.prepare_dispatch(with_steps(self.batches(0, 1)[0], length), watched)
        for name in self.instruments:
            programs.prepare_instrument(name, self.batches(0, INSTRUMENTS[name].batches(config.watch))[0])
        programs.prepare_evaluation(*self.heldout)
        return budget

    def divided(self, budget: Budget) -> bool:
        """Returns true, with a line, if the group is to train in `waves`; waits for what is being compiled.

        Raises UserError when the smallest wave does not fit in memory.
        """
        waves = budget.waves()
        if len(waves) == 1:
            return False
        self.waves = [(self.source, wave) for wave in waves]
        count, size = len(self.group.variants), len(waves[0].variants)
        of = "of" if count % size == 0 else "of at most"
        self.console.note(f"{count} variants do not fit in memory; they train in {len(waves)} waves {of} {size}")
        return True

    def initial(self, console: Console | None) -> list[Any]:
        """Returns the states after 0 steps, with the parameters of `train.init_from`; prints which ones matched."""
        states, pretrained = self.programs.init(), self.start.pretrained
        if pretrained is None:
            return states
        fresh = self.programs.each(fetched(states))
        tokenizer = {} if self.source.tokenizer is None else self.source.tokenizer.to_json()
        with self.group.variants[0].placing():
            singles, transfer = started_from(pretrained, self.config, self.group.hparams, fresh, tokenizer)
        if console is not None:
            console.block(f"parameters from {pretrained.directory}, step {pretrained.step}", transfer.rows())
        return self.programs.joined(jax.device_get(singles))

    def resumed(self) -> list[Any]:
        """Returns the states saved at the step of the start."""
        step, like = self.start.step, self.programs.abstract_single
        self.console.note(f"resuming at step {step} of {self.config.train.steps}")
        return self.programs.joined([checkpoints.restore(step, like) for checkpoints in self.checkpoints])
