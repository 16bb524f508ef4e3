"""Training one group of variants: windows dispatched, results fetched one window late, evaluated, saved, logged."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.errors import DataError
from data.source import Source
from model.residual import rule_of

from ..config.instruments import INSTRUMENTS
from ..core.batch import BatchInput
from ..core.state import State
from ..device import platform as platforms
from ..device import process
from ..device.budget import Budget
from ..device.platform import Platform, agreed
from ..device.programs import Group, Programs, model_flops, shapes_of
from ..device.signals import Stop
from ..gradflow.norms import named
from ..log.charts_layout import chart_layout
from ..log.console import Console
from ..store.lock import locked
from ..store.rundir import own_directory_of
from .journal import Journal
from .metrics import Record
from .recovery import Recovery, Rewound
from .replay import Replay
from .resume import remember_choices
from .start import admit, described, stands
from .summary import closed
from .throughput import Pace
from .transfer import Source as Weights
from .transfer import open_source, started_from
from .windows import is_watched, kinds, windows

_PICTURES_EVERY_S = 30.0
_WORTH_A_PEAK_S = 30.0  # of a shorter training the device's peak is not measured, which takes about a second


@dataclass
class GroupRun:
    """One group from its first step, or from its newest checkpoint, to its last."""

    group: Group
    source: Source
    platform: Platform
    console: Console
    stop: Stop
    K: int
    waited_s: float = 0.0  # for the groups before this one
    allow_data_change: bool = False
    records: list[Record] = field(default_factory=list)
    _pending: deque = field(default_factory=deque)
    _pace: Pace = field(init=False)
    _journal: Journal = field(init=False)
    _budget: Budget = field(init=False)
    _given: Weights | None = None  # what the first state takes over

    def __post_init__(self) -> None:
        self._pace = Pace(1 if self.group.vmapped else len(self.group.variants))
        self._journal = Journal(self.group, self.source, self.console, self.records, self._pace)

    def run(self) -> list[dict[str, Any]]:
        """Trains; returns one summary a variant. Raises UserError, also when another process writes the same run."""
        directories = [own_directory_of(variant) for variant in self.group.variants]
        with locked(directories, self.console.note):
            return self._run(directories)

    def _run(self, directories: list[Path]) -> list[dict[str, Any]]:
        started = time.perf_counter()
        config = self.group.config
        first, done = stands(self.group, directories, self.console)
        if config.train.init_from and not first:
            with self.group.variants[0].placing():
                self._given = open_source(Path(config.train.init_from), self.platform.device)
        over, allow = done is not None, self.allow_data_change
        admit(self.group, self.source, directories, self.console, first, over, allow)
        if done is not None:
            self.console.note(f"{', '.join(v.name for v in self.group.variants)}: finished before; nothing to do")
            return done
        remember_choices(directories[0], self.K)
        programs = self._programs(first)  # compile while the rest is set up
        self.records[:] = [
            Record(variant, directory, first, self.console.warn)
            for variant, directory in zip(self.group.variants, directories, strict=True)
        ]
        try:
            states = self._start(programs, first)
            programs.wait()
            self._budget.check()
            compile_s = time.perf_counter() - started
            timing = {"compile_s": compile_s, "seconds_to_first_step": process.age() - self.waited_s}
            self._describe(programs, compile_s, first)
            while True:
                try:
                    self._train(programs, states, first)
                    break
                except Rewound as back:
                    first = back.step
                    self._reopen(first)
                    states = self._start(programs, first)
            return self._finish(timing, started)
        except Exception as error:
            self._budget.explain(error)
            raise
        finally:
            programs.abandon()
            for record in self.records:
                record.tracker.close()

    # -- before the first step

    def _programs(self, first: int) -> Programs:
        """Everything that will run, compiling in the background already."""
        train, val = self._resident()
        programs = Programs(self.group, train)
        self._budget = Budget.of(programs, (train, val), self.platform, self.console.note)
        if not first:
            programs.prepare_init()
        lead = (len(self.group.variants),) if self.group.vmapped else ()
        first_batch = self._batches(0, 1)[0]
        first_batch = jax.tree.map(lambda leaf: leaf[None], first_batch) if lead else first_batch
        for length, watched in kinds(self.group.config, first, self.K):
            programs.prepare_window(shapes_of(first_batch, *lead, length), watched)
        for name in self._instruments:
            some = self._batches(0, INSTRUMENTS[name].batches(self.group.config.watch))[0]
            some = jax.tree.map(lambda leaf: leaf[None], some) if lead else some
            programs.prepare_instrument(name, shapes_of(some, *lead))
        data, batches = self.group.config.data, self.group.config.train.eval_batches
        self._heldout = (val, *self.source.heldout_batches(data.batch, batches))
        programs.prepare_evaluation(*self._heldout)
        return programs

    def _windows(self, first: int) -> Iterator[tuple[int, int]]:
        return windows(first, self.group.config.train.steps, self.K)

    @property
    def _instruments(self) -> dict[str, int]:
        """Steps between the measurements of each instrument that has something to measure here."""
        config = self.group.config
        return {name: every for name, every in config.watch.intervals.items() if INSTRUMENTS[name].applies(config)}

    def _resident(self) -> tuple[Any, Any]:
        """The tokens (train, held out) that live on the device, None where batches arrive whole."""
        if self.source.resident is None:
            return None, None
        train, val = (jax.device_put(np.asarray(tokens), self.platform.device) for tokens in self.source.resident)
        return train, val

    def _start(self, programs: Programs, first: int) -> list[Any]:
        if not first:
            states = self._initial(programs, self.console)
        else:
            self.console.note(f"resuming at step {first} of {self.group.config.train.steps}")
            device, like = self.platform.device, programs.abstract_single
            restored = {
                index: record.checkpoints.restore(first, like, device) for index, record in self._journal.live()
            }
            some = next(iter(restored.values()))  # in one call of them all, what has ended needs some state too
            states = programs.joined([restored.get(index, some) for index in range(len(self.records))])
        self._rest(states)
        return states

    def _initial(self, programs: Programs, console: Console | None) -> list[Any]:
        """The states after 0 steps, with what they take over of another run; says so on the console."""
        states, given = programs.init(), self._given
        if given is None:
            return states
        fresh = programs.each([jax.device_get(state) for state in states])
        tokenizer = {} if self.source.tokenizer is None else self.source.tokenizer.to_json()
        with self.group.variants[0].placing():
            singles, transfer = started_from(given, self.group.config, self.group.hparams, fresh, tokenizer)
        if console is not None:
            console.block(f"parameters from {given.directory}, step {given.step}", transfer.rows())
        return programs.joined(jax.device_get(singles) if self.group.vmapped else singles)

    def _rest(self, states: list[Any]) -> None:
        """Calls of variants that have ended are not made. (One call of all of them takes them along, unheard.)"""
        for index, record in enumerate(self.records):
            if record.ended is not None and not self.group.vmapped:
                states[index] = None

    def _reopen(self, first: int) -> None:
        """The log goes on from step `first` again, as after a crash; what is known of bad steps is kept."""
        self._pending.clear()
        self._pace.pause()
        for index, record in self._journal.live():
            record.tracker.close()
            self.records[index] = Record(record.variant, record.directory, first, record.warn)
            self.records[index].history = record.history

    def _setbacks(self, programs: Programs) -> Recovery:
        def good(index: int) -> tuple[int, State]:
            checkpoints = self.records[index].checkpoints
            step = checkpoints.newest(self.console.warn) or 0
            if not step:
                return 0, programs.each(jax.device_get(self._initial(programs, None)))[index]
            return step, checkpoints.restore(step, programs.abstract_single, self.platform.device)

        def replay(index: int) -> Replay:
            every = self.group.config.watch.every
            stopping = lambda: self.stop.signal is not None  # noqa: E731
            return Replay(programs, index, self._batches, lambda start: is_watched(start, every), stopping)

        return Recovery(self.records, self.console, replay, good, self._windows)

    def _describe(self, programs: Programs, compile_s: float, first: int) -> None:
        group, config = self.group, self.group.config
        steps = f"{config.train.steps - first:,}, {self.K} a dispatch, scan unroll {group.network.unroll}"
        folder = self.records[0].directory.parent
        self.console.block(*described(group, steps, compile_s, self._budget.line, folder))
        without = config.watch.counterfactual and rule_of(config.model).additive
        matrices = list(named(group.network.shapes()["blocks"]))
        for record in self.records:
            record.tracker.layout(chart_layout(matrices, without, list(self._instruments)))

    # -- the loop

    def _train(self, programs: Programs, states: list[Any], first: int) -> None:
        if first == 0 or any(record.due for record in self.records):
            self._look(programs, states, first)
        else:  # TensorBoard drops what it has from `first` on; the figures of that row are in the checkpoint
            self._measure(programs, states, first, pictured=True)
        with self.stop.deferred():  # from here on there is something to save
            self._windows_of(programs, states, first)
            self._settle(programs, leave=0)

    def _windows_of(self, programs: Programs, states: list[Any], first: int) -> None:
        config = self.group.config
        drawn_at = time.perf_counter()
        for start, end in self._windows(first):
            self.stop.doing = f"steps {start + 1} to {end}"
            measured = programs.window(states, self._batches(start, end), is_watched(start, config.watch.every))
            self._pending.append(("window", start, end, measured))
            self._settle(programs, leave=1)
            stopping = (signal := agreed(self.stop.signal)) is not None  # so that all processes save the same step
            if stopping:
                self.stop.signal = signal
            if not stopping:  # else the resumed run does it
                self._look(programs, states, end)
            if end % config.train.checkpoint_every == 0 or end == config.train.steps or stopping:
                self._settle(programs, leave=0)
                self._save(programs, states, due=stopping)
                self._pace.pause()
            if stopping or not self._journal.live():
                return
            self._rest(states)
            if time.perf_counter() - drawn_at > _PICTURES_EVERY_S:
                for _, record in self._journal.live():
                    record.pictures()
                drawn_at = time.perf_counter()
                self._pace.pause()

    def _look(self, programs: Programs, states: list[Any], step: int) -> None:
        """What is due at a step: the evaluation, and instruments."""
        config = self.group.config
        if step % config.train.eval_every == 0 or step == config.train.steps:
            self._evaluate(programs, states, step)
        self._measure(programs, states, step)

    def _batches(self, start: int, end: int) -> list[BatchInput]:
        """Leaves [end - start, B, ...], one entry a variant; the same batches wherever the data seed is the same, and
        the batches that were left behind by rewinding."""
        known: dict[tuple[int, int], BatchInput] = {}
        keys = []
        for index, variant in enumerate(self.group.variants):
            data, past = variant.config.data, self.records[index].history.offset(start) if self.records else 0
            assert data.seed is not None  # expansion resolves it
            keys.append((data.seed, past))
            if keys[-1] not in known:
                known[keys[-1]] = self.source.train_batches(data.batch, data.seed, start + past, end - start)
        return [known[key] for key in keys]

    def _evaluate(self, programs: Programs, states: list[State], step: int) -> None:
        self._pending.append(("val", step, step, programs.evaluate(states, *self._heldout)))
        if self.group.config.optimizer.ema is not None:
            losses = programs.evaluate(states, *self._heldout, averaged=True)
            self._pending.append(("val_ema", step, step, losses))

    def _measure(self, programs: Programs, states: list[State], step: int, pictured: bool = False) -> None:
        """Reads the instruments that are due; of these only those that leave pictures, if `pictured`."""
        for name, every in self._instruments.items():
            if step % every == 0 and (INSTRUMENTS[name].pictured or not pictured):
                count = INSTRUMENTS[name].batches(self.group.config.watch)
                try:
                    batches = self._batches(step, step + count)
                except DataError as error:  # data of one's own may end with the training
                    self.console.warn(f"{name}: not measured at step {step}: {error}")
                    continue
                self._pending.append(("instrument", step, step, programs.instrument(name, states, batches)))

    def _settle(self, programs: Programs, leave: int) -> None:
        """Fetches and logs what is pending, but for the newest `leave`: the device never waits for the host."""
        while len(self._pending) > leave:
            kind, start, end, measured = self._pending.popleft()
            results = programs.each(jax.device_get(measured))
            if kind == "window":
                if bad := self._journal.window(start, end, results):
                    self._pace.pause()
                    self._setbacks(programs).attend(bad)
                continue
            self._pace.pause()
            self._journal.measured(kind, end, results)

    def _save(self, programs: Programs, states: list[Any], due: bool) -> None:
        singles = programs.each([jax.device_get(state) for state in states])
        for index, record in self._journal.live():
            record.save(singles[index], due)

    # -- after the last step

    def _finish(self, timing: dict[str, Any], started: float) -> list[dict[str, Any]]:
        config, seconds = self.group.config, self._pace.call
        wall_s = time.perf_counter() - started
        mfu = None
        if seconds is not None and wall_s >= _WORTH_A_PEAK_S and self.stop.signal is None:
            calls = len(self.group.variants) if self.group.vmapped else 1
            flops = calls * model_flops(self.group.network, config.data.batch) / seconds
            mfu = flops / platforms.matmul_peak(self.group.network.dtype)
            for _, record in self._journal.live():
                record.add(config.train.steps, {"perf/mfu": mfu})
        timing |= {
            # Of one call: variants called in turn share the time of a step, vmapped ones each take all of it.
            "steps_per_s": None if seconds is None else 1.0 / seconds,
            "tokens_per_s": None if seconds is None else config.data.batch * config.data.context / seconds,
            "wall_s": wall_s,
            "peak_bytes": platforms.peak_bytes(self.platform),
            "mfu": mfu,
            "task": self.group.network.task,
            "platform": self.platform.label,
            "versions": platforms.versions(),
        }
        return closed(self.records, timing, self.stop.signal)
