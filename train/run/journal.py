"""What the host does with what a group has measured: logs it, tells of it, and finds the steps that went bad."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.source import Source

from ..device.programs import Group
from ..log.console import Console
from .metrics import Record, evaluation
from .nonfinite import MOST_SKIPPED, first_bad
from .throughput import Pace


@dataclass(frozen=True)
class Journal:
    """`records`: the loop's own list, in which a record may be replaced."""

    group: Group
    source: Source
    console: Console
    records: list[Record]
    pace: Pace

    def live(self) -> list[tuple[int, Record]]:
        """The variants that still train."""
        return [(index, record) for index, record in enumerate(self.records) if record.ended is None]

    def measured(self, kind: str, step: int, results: list[Any]) -> None:
        """Of an evaluation (val, val_ema) or an instrument, one result a variant."""
        for index, record in self.live():
            if kind == "instrument":
                record.readings(step, results[index])
            else:
                record.add(step, evaluation(results[index], self.source, self.group.network.task, kind))

    def window(self, start: int, end: int, results: list[Any]) -> list[tuple[int, int]]:
        """Returns (variant, step) of those that need attention, of a step that is not finite."""
        rate = self.pace.lap(end - start)
        config = self.group.config
        policy = config.train.on_nonfinite
        bad = []
        for index, record in self.live():
            metrics, watched = results[index]
            step = first_bad(metrics.finite, start)
            if policy == "skip":
                told = record.history.cause is not None
                record.history = record.history.skipping(metrics.finite, start)
                record.add(end, {"optim/skipped": float(np.sum(~metrics.finite))})
                if step is not None and (not told or record.history.in_a_row >= MOST_SKIPPED):
                    bad.append((index, step if not told else end))
            elif step is not None:
                bad.append((index, step))
            until = end if step is None or policy == "skip" else step  # what comes after a bad step is not logged
            if watched is not None:
                steps = range(start, end, min(config.watch.every, end - start))
                record.watched([step for step in steps if step < until], watched, self.group.network.dtype)
            kept = slice(until - start)
            for line in record.losses(start, metrics.loss[kept], metrics.finite[kept]):
                self.console.warn(f"{record.variant.name}: {line}")
            row = {"optim/lr": float(metrics.lr[until - start - 1])}
            if policy == "rewind":
                row["optim/batches_passed"] = float(record.history.offset(start))
            if rate is not None:
                row |= {"perf/steps_per_s": rate, "perf/tokens_per_s": rate * config.data.batch * config.data.context}
            record.add(until, row)
            record.write_before(until)
        self._tell(end, bad)
        return bad

    def _tell(self, end: int, bad: list[tuple[int, int]]) -> None:
        """How far the variants are, but for those of which worse is told next."""
        config, seconds = self.group.config, self.pace.recent
        tokens = config.data.batch * config.data.context
        for index, record in self.live():
            if config.train.on_nonfinite != "skip" and any(index == other for other, _ in bad):
                continue
            self.console.progress(
                record.variant.name,
                end,
                config.train.steps,
                record.last_loss,
                None if seconds is None else self.pace.calls * tokens / seconds,
                None if seconds is None else seconds * (config.train.steps - end),
            )
