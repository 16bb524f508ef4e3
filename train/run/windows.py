"""How a run's steps are cut into dispatches, and which of them are watched. A window is (start, end)."""

from collections.abc import Iterator
from itertools import islice

from ..config.schema import RunConfig


def windows(first: int, steps: int, K: int) -> Iterator[tuple[int, int]]:
    """Every window to come; ends are multiples of K wherever the run was resumed.

    >>> list(windows(3, 10, 4))
    [(3, 4), (4, 8), (8, 10)]
    """
    while first < steps:
        end = min(first + K - first % K, steps)
        yield first, end
        first = end


def kinds(config: RunConfig, first: int, K: int) -> set[tuple[int, bool]]:
    """(steps, whether watched) of the windows to come: they repeat after watch.every steps, but for the last."""
    every, steps = config.watch.every, config.train.steps
    some = list(islice(windows(first, steps, K), 2 + every // K))
    last = steps - 1
    some += windows(max(first, last - last % K), steps, K)
    return {(end - start, is_watched(start, every)) for start, end in some}


def is_watched(start: int, every: int) -> bool:
    """Whether the window that starts here has watched steps: its first one, and each `every`-th after it."""
    return every > 0 and start % every == 0
