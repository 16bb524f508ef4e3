"""SIGINT and SIGTERM ask for a stop at the end of the current window; a second SIGINT stops at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    """`signal` is the number of the first signal that arrived, or None."""

    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """130 for SIGINT and 143 for SIGTERM, as a shell reports a process that they ended."""
        return 0 if self.signal is None else 128 + self.signal


@contextmanager
def listening(on_first) -> Iterator[Stop]:
    """Handlers for the time of the `with`; `on_first()` is called once. Only the main thread can install them."""
    stop = Stop()

    def handle(number: int, _) -> None:
        if stop.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if stop.signal is None:
            stop.signal = number
            on_first()

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: a notebook's own handlers stay
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
