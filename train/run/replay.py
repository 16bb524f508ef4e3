"""Going through the steps before a bad one again, from the last good state, to see where it went wrong."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from model.network import Network

from ..config.schema import RunConfig
from ..core.batch import BatchInput, batch_of
from ..core.compile import called_once
from ..core.nonfinite_cause import Autopsy, Cause, cause_of, look
from ..core.optimizer import HParams
from ..core.state import State
from ..device.programs import Programs


@dataclass(frozen=True)
class Replay:
    """One variant of a group. It needs memory for a second state, and the time of the steps since the last good one."""

    programs: Programs
    index: int  # of the variant
    batches: Callable[[int, int], list[BatchInput]]
    watched: Callable[[int], bool]  # whether the window that starts at a step is
    stopping: Callable[[], bool]

    def find(self, good: State, windows: Iterable[tuple[int, int]], bad: int) -> tuple[int, Cause] | None:
        """(step, cause) of the first bad step, counted from 1, at or before `bad`; None when a signal arrived.

        `good` is the variant's state where the first of the windows starts. Windows before the bad one run as they did;
        it goes step by step, each checked with the state that it leaves.
        """
        states = self._alone(good)
        for start, end in windows:
            if self.stopping():
                return None
            if end < bad:
                self.programs.window(states, self.batches(start, end), self.watched(start))
                continue
            return self._within(states, start, bad)
        raise AssertionError("no window holds the bad step")

    def _alone(self, state: State) -> list[Any]:
        """Calls in which only this variant counts: the others rest, or repeat it where all go in one call."""
        count = len(self.programs.group.variants)
        if self.programs.group.vmapped:
            return self.programs.joined([state] * count)
        return [state if index == self.index else None for index in range(count)]

    def _within(self, states: list[Any], start: int, bad: int) -> tuple[int, Cause] | None:
        config = self.programs.group.config
        before = states
        for step in range(start, bad):
            if self.stopping():
                return None
            before = jax.tree.map(lambda leaf: leaf.copy(), states)  # a window takes what it is given
            watched = self.watched(start) and (step - start) % config.watch.every == 0
            measured = self.programs.window(states, self.batches(step, step + 1), watched)
            metrics = self.programs.each(jax.device_get(measured))[self.index][0]
            if not metrics.finite[0]:
                return step + 1, self._cause(before, step)
        return bad, self._cause(before, bad - 1)

    def _cause(self, states: list[Any], step: int) -> Cause:
        group = self.programs.group
        state = self.programs.each(jax.device_get(states))[self.index]
        feed = jax.tree.map(lambda leaf: leaf[0], self.batches(step, step + 1)[self.index])
        function = partial(_look, group.network, group.variants[self.index].config)
        found = called_once(function, state, group.hparams[self.index], self.programs.corpus, feed)
        return cause_of(jax.device_get(found), group.network.param_dtype)


def _look(network: Network, config: RunConfig, state: State, hp: HParams, corpus: Any, feed: BatchInput) -> Autopsy:
    return look(network, config, state, hp, batch_of(feed, corpus, network.context))
