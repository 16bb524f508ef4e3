"""Dispatches of training, (start, end): their steps, those that are watched, and the throughput."""

import time
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from ..config.checks import strides
from ..config.schema import RunConfig
from ..device.programs import VariantGroup, model_flops

# Rough speeds, good enough to choose how many steps fit into a second.
_ASSUMED_FLOPS = {"cpu": 8e10, "tpu": 4e13}
_GPU_FLOPS = 2e13  # of any other accelerator too
_RECENT = 20  # dispatches whose median is the recent speed


def dispatches(start_step: int, steps: int, K: int, every: int = 0) -> Iterator[tuple[int, int]]:
    """Yields the dispatches from `start_step` on; their ends are multiples of K wherever a run was resumed.

    `every`: steps between watched steps, 0 for none. A dispatch that does not start at a multiple of it ends at the
    next one, where a run that goes on with another K would miss a watched step: the first step is watched, or none.

    >>> list(dispatches(3, 10, 4)), list(dispatches(1, 8, 4, 2))
    ([(3, 4), (4, 8), (8, 10)], [(1, 2), (2, 4), (4, 8)])
    """
    while start_step < steps:
        end = min(start_step + K - start_step % K, steps)
        if every and start_step % every:
            end = min(end, start_step + every - start_step % every)
        yield start_step, end
        start_step = end


def watched_steps(start: int, end: int, every: int) -> range:
    """Returns the watched steps of a dispatch: its first, if a multiple of `every`, and each `every`-th after it.

    train/core/dispatch.py watches the same steps of a dispatch whose program is watched.

    >>> list(watched_steps(20, 30, 5)), list(watched_steps(21, 30, 5)), list(watched_steps(0, 10, 0))
    ([20, 25], [], [])
    """
    return range(start, end, every) if every and start % every == 0 else range(0)


def dispatch_shapes(config: RunConfig, start_step: int, K: int) -> set[tuple[int, bool]]:
    """Returns (length, watched) of the dispatches to come, which repeat every `watch.every` steps up to the last."""
    every, steps = config.watch.every, config.train.steps
    some = list(islice(dispatches(start_step, steps, K, every), 3 + every // K))
    last = steps - 1
    some += dispatches(max(start_step, last - last % K), steps, K, every)
    return {(end - start, bool(watched_steps(start, end, every))) for start, end in some}


def steps_per_call(config: RunConfig, step_seconds: float) -> int:
    """Returns K, the most steps of a dispatch of at most about a second that divide the intervals of evaluations,
    checkpoints and instruments, and fit `watch.every`."""
    if config.train.steps_per_call != "auto":
        return config.train.steps_per_call
    most = max(1, min(100, int(1.0 / step_seconds), config.train.steps))
    return strides(config, most)[-1]


def assumed_step_seconds(group: VariantGroup, batch: int, kind: str) -> float:
    """Returns a guess of the seconds per step on a device of this kind (cpu, gpu, tpu), before anything has run."""
    count = len(group.variants) if group.vmapped else 1
    return 1e-4 + count * model_flops(group.network, batch) / _ASSUMED_FLOPS.get(kind, _GPU_FLOPS)


class Throughput:
    """Seconds a step, from the times between dispatches in which nothing else was done.

    Variants that take turns are a call each; vmapped ones are one call.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: list[float] = []  # a step of one call
        self._since: float | None = None

    def pause(self) -> None:
        """Excludes the time up to the next dispatch, in which something other than training was done."""
        self._since = None

    def dispatch(self, steps: int, calls: int) -> float | None:
        """Counts a dispatch that has just ended; returns one variant's steps per second while it has the device."""
        now, since = self._clock(), self._since
        self._since = now
        if since is None:
            return None
        self._seconds.append((now - since) / steps / calls)
        return 1.0 / self._seconds[-1]

    @property
    def recent(self) -> float | None:
        """Seconds a step of one call, the median of the last dispatches."""
        return float(np.median(self._seconds[-_RECENT:])) if self._seconds else None

    @property
    def call(self) -> float | None:
        """Seconds a step of one call, the median of all dispatches."""
        return float(np.median(self._seconds)) if self._seconds else None
