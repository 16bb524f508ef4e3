"""The set-up of one group of variants: how it starts, its compiled programs, and whether they fit in memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import jax
import numpy as np

from data.source import Source

from ..config.instruments import INSTRUMENTS
from ..core.batch import BatchInput
from ..device.memory import Budget
from ..device.mesh import fetched, placed
from ..device.platform import Platform
from ..device.programs import Programs, VariantGroup, with_steps
from ..log.console import Console
from ..store.checkpoint import check_dtypes
from ..store.rundir import own_directory_of
from .dispatches import dispatch_shapes
from .start import Start, decide_start
from .transfer import started_from


class GroupSetup:
    """One group before its first step.

    Args:
        allow_data_change: a run that was trained on other data goes on with these.
    """

    def __init__(
        self, group: VariantGroup, source: Source, platform: Platform, console: Console, allow_data_change: bool = False
    ) -> None:
        self.group, self.source, self.platform, self.console = group, source, platform, console
        self.config, self.allow_data_change = group.config, allow_data_change
        intervals = self.config.watch.intervals.items()
        self.instruments = {name: every for name, every in intervals if INSTRUMENTS[name].applies(self.config)}
        self.evaluations = ["val"] if self.config.optimizer.ema is None else ["val", "val_ema"]
        self.directories = [own_directory_of(variant) for variant in group.variants]
        self.waves: list[tuple[Source, VariantGroup]] = []  # parts to train in its place if the group does not fit

    @cached_property
    def start(self) -> Start:
        """The step from which the group trains, decided at the first use, with the locks held; prints what it notices.

        Raises UserError when the run directories do not allow a start.
        """
        group, source, kind = self.group, self.source, self.platform.kind
        return decide_start(group, source, self.directories, kind, self.console, self.allow_data_change)

    @cached_property
    def programs(self) -> Programs:
        """The programs of the group; the training part of a corpus is copied to the device at the first use."""
        return Programs(self.group, None if self.source.resident is None else np.asarray(self.source.resident[0]))

    @cached_property
    def heldout(self) -> tuple[Any, BatchInput, np.ndarray]:
        """The held-out tokens on the device, or None; the batches and the weights of an evaluation."""
        val = None if self.source.resident is None else np.asarray(self.source.resident[1])
        batches, weights = self.source.heldout_batches(self.config.data.batch, self.config.train.eval_batches)
        return None if val is None else placed(val, self.programs.layout()), batches, weights

    @contextmanager
    def compiling(self) -> Iterator[Budget]:
        """Compiles every program of the run in the background, unless the states alone ask for `waves`.

        At the end of the context pending compilations are cancelled. Within it an out-of-memory error becomes a
        UserError that suggests a setting. Raises UserError when the programs of the smallest wave do not fit.
        """
        config, programs = self.config, self.programs
        try:
            check_dtypes(programs.abstract_single)  # of a user's own optimizer
            budget = Budget.of(programs, (programs.corpus, self.heldout[0]), self.platform)
            if not self.divided(budget):
                if not self.start.step:
                    programs.prepare_init()
                for length, watched in dispatch_shapes(config, self.start.step, self.start.K):
                    programs.prepare_dispatch(with_steps(self.batches(0, 1)[0], length), watched)
                for name in self.instruments:
                    programs.prepare_instrument(name, self.batches(0, INSTRUMENTS[name].batches(config.watch))[0])
                programs.prepare_evaluation(*self.heldout)
            try:
                yield budget
            except Exception as error:
                budget.explain(error)
                raise
        finally:
            programs.abandon()

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

    def batches(self, start: int, end: int) -> list[BatchInput]:
        """Leaves [end - start, B, ...], one entry a variant; variants of one data seed share their batches."""
        data = self.config.data
        seeds = [variant.config.data_seed for variant in self.group.variants]
        by_seed = {seed: self.source.train_batches(data.batch, seed, start, end - start) for seed in set(seeds)}
        return [by_seed[seed] for seed in seeds]

    @cached_property
    def floors(self) -> Mapping[str, float]:
        """Losses on the rows of the evaluations that are known in advance, as far as the data has this task."""
        source, batches = self.source, self.config.train.eval_batches
        return source.floors(self.config.data.batch, batches) if source.spec.task == self.group.network.task else {}
