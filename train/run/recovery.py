"""What is done about a step that is not finite, and what is said of it: `train.on_nonfinite`, docs/stopping.md."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..core.nonfinite_cause import Cause
from ..core.state import State
from ..errors import UserError, first_line
from ..gradflow.advice import advice_for
from ..log.console import Console
from .metrics import Record
from .nonfinite import MOST_REWINDS, MOST_SKIPPED
from .replay import Replay


class Rewound(Exception):
    """The group goes on from the state after `step` steps."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True)
class Recovery:
    """Of the variants of one group, by their index."""

    records: list[Record]
    console: Console
    replay: Callable[[int], Replay]
    good: Callable[[int], tuple[int, State]]  # the last good step, and the state after it
    windows: Callable[[int], Iterator[tuple[int, int]]]  # from a step on

    def attend(self, bad: Sequence[tuple[int, int]]) -> None:
        """`bad`: (variant, step counted from 1), of one window. A variant that stops has `ended` set in its record.

        Raises Rewound when some of them are to be tried again.
        """
        back: list[int] = []
        for index, step in bad:
            record = self.records[index]
            policy = record.variant.config.train.on_nonfinite
            step, since = self._told(index, step)
            if policy == "skip":
                self._skipped(record, step)
            elif policy == "stop" or (history := record.history.rewound(since, step)) is None:
                tried = "" if policy == "stop" else f" after {MOST_REWINDS} rewinds to step {since}"
                self._stopped(record, step, since, tried)
            else:
                record.history = history
                back.append(since)
                past = f"past the batches of steps {since + 1} to {step}"
                self.console.warn(f"{record.variant.name}: back to step {since}, {past}")
        if back:
            raise Rewound(min(back))

    def _told(self, index: int, step: int) -> tuple[int, int]:
        """Says what went wrong. Returns the exact step and the last good one."""
        record = self.records[index]
        name = record.variant.name
        self.console.warn(f"{name}: step {step} is not finite; its steps since the last good state are taken again")
        since = max(record.checkpoints.steps(), default=0)
        cause: Cause | None = None
        try:
            since, state = self.good(index)
            found = self.replay(index).find(state, self.windows(since), step)
            step, cause = (step, None) if found is None else found
            said = "a signal came before it was known where" if cause is None else str(cause)
        except (UserError, RuntimeError, ValueError, MemoryError) as error:  # a diagnosis that fails changes nothing
            said = f"it could not be taken again: {first_line(error)[:200]}"
        record.history = record.history.bad_at(step, said)
        self.console.warn(f"{name}: step {step}: {said}")
        advice = advice_for("unstable", record.variant.config)
        record.tracker.text("verdict/nonfinite", step, f"step {step}: {said}\n\nTry {advice}")
        return step, since

    def _skipped(self, record: Record, step: int) -> None:
        name = record.variant.name
        if record.history.in_a_row >= MOST_SKIPPED:
            self._stopped(
                record, step, max(record.checkpoints.steps(), default=0), f", {MOST_SKIPPED} in a row skipped"
            )
            return
        self.console.warn(f"{name}: the update of step {step} is left out; further ones are counted as optim/skipped")

    def _stopped(self, record: Record, step: int, since: int, why: str) -> None:
        kept = f"the checkpoint of step {since} is kept" if since else "no checkpoint was there yet"
        self.console.warn(f"{record.variant.name}: stops at step {step}{why}; {kept}")
        record.end(step)
        self.console.over(record.variant.name)
