"""SIGINT, SIGTERM, and SIGHUP, which a terminal sends when it is closed. While there is a state worth saving they wait
for the end of the current window; everywhere else they stop at once, for nothing is lost by it. A second SIGINT stops
at once everywhere.

Python runs a handler only between two of its own instructions, so not while the main thread waits for a compiler, a
device or a disk. A second thread hears of a signal all the same: it says what is waited for, and ends a process that
has nothing to save.
"""

import _thread
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from .unraisable import drop, reporting

GRACE_S = 2.0  # from a signal that stops at once to the end of a process that does not get round to it
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_LOST = 0  # in the watcher's pipe, where Python writes the numbers of signals


class Interrupted(KeyboardInterrupt):
    """A second SIGINT. No Exception: nothing that goes on after an error may catch it."""


class Stopped(Interrupted):
    """A signal came where nothing is to be saved."""


@dataclass
class Stop:
    """`signal` is the number of the first signal that arrived, or None; `doing` says what it interrupts."""

    signal: int | None = None
    doing: str = ""
    saves: bool = False  # whether the signal waits, for there is something to save

    @property
    def exit_code(self) -> int:
        """129 for SIGHUP, 130 for SIGINT and 143 for SIGTERM, as a shell reports a process that they ended."""
        return 0 if self.signal is None else 128 + self.signal

    def check(self) -> None:
        """Raises Stopped if a signal has arrived: what a handler raises may be lost in a callback for a moment."""
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
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    handlers = _Handlers(stop, hard, heard, tell)
    watcher = threading.Thread(target=handlers.watch, name="signals", daemon=True)
    watcher.start()
    drop(_is_ours)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before.get(getattr(signal, "SIGHUP", None)) == signal.SIG_IGN:  # nohup: it is not to end with the terminal
        del before[signal.SIGHUP]
    others = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    try:  # from here on: the first handler may be called before the second one is there
        for number in before:
            signal.signal(number, handlers.handle)
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
        handlers.over = True
        os.close(tell)
        watcher.join()
        os.close(heard)


@dataclass
class _Handlers:
    """What the main thread does about a signal, and what the watcher's thread does."""

    stop: Stop
    hard: bool
    heard: int  # the ends of the pipe through which Python tells the watcher each signal's number
    tell: int
    over: bool = False
    lost: type[Interrupted] | None = None  # what was raised in a callback, and is to be raised again

    def handle(self, number: int, frame: FrameType | None) -> None:
        first = self.stop.signal is None
        if first:
            self.stop.signal = number
        second = not first and number == signal.SIGINT
        raised = self.lost or (Interrupted if second else Stopped if first and not self.stop.saves else None)
        if raised and reporting(frame):
            self.again(raised)
        elif raised:
            self.lost = None
            raise raised(self)

    def again(self, lost: type[Interrupted]) -> None:
        """What the handler raised was lost in a callback: it is called once more, when that is over."""
        self.lost = lost
        os.write(self.tell, bytes([_LOST]))

    def watch(self) -> None:
        """Says what a signal waits for; printing is not for a handler, which may interrupt another print."""
        stop, until = self.stop, None
        seen: list[int] = []  # stop.signal is set by the main thread, which may not get round to it
        while True:
            wait = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self.heard], [], [], wait)[0]:
                until = None
                if len(seen) > 1 or not stop.saves:
                    _say(f"stopped{f' during {stop.doing}' if stop.doing else ''}; what was saved before is kept")
                    os._exit(128 + seen[0])
                continue
            number = os.read(self.heard, 1)
            if not number:
                return
            if number[0] == _LOST:
                time.sleep(0.01)
                if self.lost and not self.over:  # else a second signal has done it
                    _thread.interrupt_main(signal.SIGTERM)  # one too many does nothing; of SIGINT it would
            elif number[0] in SIGNALS:
                seen.append(number[0])
                if len(seen) == 1 and stop.saves:
                    about = f" ({stop.doing})" if stop.doing else ""
                    _say(f"stopping after this window{about}; SIGINT (Ctrl-C) again stops at once")
                elif self.hard and until is None and (len(seen) == 1 or number[0] == signal.SIGINT):
                    until = time.monotonic() + GRACE_S


def _is_ours(lost: Any) -> bool:
    """Raised by a handler inside of a callback."""
    ours = issubclass(lost.exc_type, Interrupted)
    if ours:
        for handlers in lost.exc_value.args:
            if not handlers.over:
                handlers.again(lost.exc_type)
    return ours


def _say(text: str) -> None:
    try:
        os.write(2, f"\ndeltaflow: {text}\n".encode())
    except OSError:  # a terminal that is gone
        pass
