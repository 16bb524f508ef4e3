"""SIGINT, SIGTERM and SIGHUP (a closed terminal): a flag while there is state to save, an exception everywhere else."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

GRACE_S = 2.0  # from a signal that stops at once to the end of a process whose main thread does not return to Python
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal arrived while there was nothing to save."""


@dataclass
class Stop:
    """The first signal that arrived (or None), and a phrase for what it interrupts."""

    signal: int | None = None
    doing: str = ""
    saves: bool = False  # a first signal only sets the flag
    show: Callable[[str], bool] = lambda text: False  # shows a line where lines are redrawn; false if there are none

    @property
    def exit_code(self) -> int:
        """129 for SIGHUP, 130 for SIGINT and 143 for SIGTERM, as a shell reports a process that they ended."""
        return 0 if self.signal is None else 128 + self.signal

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context in which a first signal only sets the flag. Raises Stopped for one that has arrived before."""
        if self.signal is not None:  # an exception of the handler is lost inside a finalizer
            raise Stopped
        self.saves = True
        try:
            yield
        finally:
            self.saves = False


@contextmanager
def listening(stop: Stop, hard: bool = False) -> Iterator[None]:
    """Handles signals within the context, if it is entered in the main thread.

    Python calls handlers in the main thread alone, and not while that is inside a compiler, a device or a disk. A
    second thread, which Python tells of each signal through a pipe, says what is waited for; with `hard` (the process
    is ours) it ends a process that does not stop by itself within GRACE_S.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    finished = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        first, stop.signal = stop.signal is None, stop.signal or number
        if not finished.is_set() and (not stop.saves if first else number == signal.SIGINT):
            raise Stopped if first else KeyboardInterrupt

    def watch() -> None:
        numbers = (read[0] for read in iter(lambda: os.read(reader, 1), b"") if read[0] in SIGNALS)
        first = next(numbers, None)  # none when the writer is closed
        saves, doing = stop.saves, f" during {stop.doing}" if stop.doing else ""
        if first is not None and saves:
            text = f"stopping after this dispatch ({stop.doing}); SIGINT (Ctrl-C) again stops at once"
            if not stop.show(text):
                _say(text)
            if signal.SIGINT not in numbers:
                return
        if first is not None and hard and not finished.wait(GRACE_S) and (saves or not stop.saves):
            cursor = "\x1b[?25h" if os.isatty(2) else ""  # hidden while progress is shown
            _say(f"stopped{doing}; what was saved before is kept{cursor}")
            os._exit(128 + first)

    (watcher := threading.Thread(target=watch, name="signals", daemon=True)).start()
    report = sys.unraisablehook
    sys.unraisablehook = lambda error: None if issubclass(error.exc_type, KeyboardInterrupt) else report(error)
    # Under nohup SIGHUP stays ignored: training outlives the terminal.
    before = {n: former for n in SIGNALS if (former := signal.getsignal(n)) != signal.SIG_IGN or n.name != "SIGHUP"}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        finished.set()  # from here on handlers do not raise
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = report
        os.close(writer)
        watcher.join()
        os.close(reader)


def _say(text: str) -> None:
    """Writes a line to stderr, not through its buffer, which the main thread may hold."""
    with suppress(OSError):  # a terminal that is gone
        os.write(2, f"\ndeltaflow: {text}\n".encode())
