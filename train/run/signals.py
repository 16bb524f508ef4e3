"""SIGINT and SIGTERM. While there is a state worth saving they wait for the end of the current window; everywhere else
they stop at once, for nothing is lost by it. A second SIGINT stops at once everywhere.

Python runs a handler only between two of its own instructions, so not while the main thread waits for a compiler, a
device or a disk. A second thread hears of a signal all the same: it says what is waited for, and ends a process that
has nothing to save.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from train.run.unraisable import drop

GRACE_S = 2.0  # from a signal that stops at once to the end of a process that does not get round to it
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal came where nothing is to be saved. No Exception: nothing that goes on after an error may catch it."""


@dataclass
class Stop:
    """`signal` is the number of the first signal that arrived, or None; `doing` says what it interrupts."""

    signal: int | None = None
    doing: str = ""
    saves: bool = False  # whether the signal waits, for there is something to save

    @property
    def exit_code(self) -> int:
        """130 for SIGINT and 143 for SIGTERM, as a shell reports a process that they ended."""
        return 0 if self.signal is None else 128 + self.signal

    def check(self) -> None:
        """Raises Stopped if a signal has arrived: an exception that a handler raises may be lost in a callback."""
        if self.signal is not None:
            raise Stopped

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """For the time of the `with` a first signal is only noted: who is inside looks at `signal`, and saves."""
        self.check()
        self.saves = True
        try:
            yield
        finally:
            self.saves = False


@contextmanager
def listening(stop: Stop, hard: bool = False) -> Iterator[None]:
    """Handlers for the time of the `with`, of a main thread; elsewhere whoever started this one keeps theirs.

    `hard`: this process is ours, and is ended when it does not stop by itself.
    """

    def handle(number: int, _) -> None:
        if stop.signal is None:
            stop.signal = number
            if not stop.saves:
                raise Stopped
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, handle) for number in SIGNALS}
    except ValueError:  # not the main thread
        yield
        return
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    others = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(stop, heard, over, hard), name="signals", daemon=True)
    watcher.start()
    drop(_is_stopped)
    try:
        yield
    finally:
        while True:
            try:
                signal.set_wakeup_fd(others)
                for number, handler in before.items():
                    signal.signal(number, handler)
                break
            except KeyboardInterrupt:  # of a signal that comes now, when all is over: our handlers must not stay
                pass
        over.set()
        os.close(tell)
        watcher.join()
        os.close(heard)


def _is_stopped(lost: Any) -> bool:
    """Raised by a handler inside of a callback; `Stop.check` finds it."""
    return lost.exc_type is Stopped


def _watch(stop: Stop, heard: int, over: threading.Event, hard: bool) -> None:
    """Says what a signal waits for; printing is not for a handler, which may interrupt another print."""
    seen: list[int] = []
    while number := os.read(heard, 1):
        if number[0] not in SIGNALS:
            continue
        seen.append(number[0])
        if len(seen) == 1 and stop.saves:
            about = f" ({stop.doing})" if stop.doing else ""
            _say(f"stopping after this window{about}; SIGINT (Ctrl-C) again stops at once")
        elif hard and (len(seen) == 1 or number[0] == signal.SIGINT):
            if over.wait(GRACE_S) or (len(seen) == 1 and stop.saves):
                continue
            _say(f"stopped{f' during {stop.doing}' if stop.doing else ''}; what was saved before is kept")
            os._exit(128 + seen[0])


def _say(text: str) -> None:
    try:
        os.write(2, f"\ndeltaflow: {text}\n".encode())
    except OSError:  # a terminal that is gone
        pass
