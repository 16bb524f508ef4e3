"""How fast a group trains: of the times between windows only those in which nothing else was done count."""

import time
from dataclasses import dataclass, field

import numpy as np

_RECENT = 20  # windows


@dataclass
class Pace:
    """`calls`: variants that take turns in one step; vmapped ones are one call."""

    calls: int
    _laps: list[float] = field(default_factory=list)  # seconds a step
    _since: float | None = None

    def pause(self) -> None:
        """The time until the next lap is not one of training."""
        self._since = None

    def lap(self, steps: int) -> float | None:
        """A window of so many steps is over. Returns the steps per second of one variant while it has the device."""
        now, since = time.perf_counter(), self._since
        self._since = now
        if since is None:
            return None
        self._laps.append((now - since) / steps)
        return self.calls / self._laps[-1]

    @property
    def recent(self) -> float | None:
        """Seconds a step of all calls takes, the median of the last windows."""
        return float(np.median(self._laps[-_RECENT:])) if self._laps else None

    @property
    def call(self) -> float | None:
        """Seconds a step of one call takes, the median of all windows."""
        return float(np.median(self._laps)) / self.calls if self._laps else None
