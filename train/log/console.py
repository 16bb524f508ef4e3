"""Console output of a run: live and coloured on a terminal, plain lines everywhere else."""

import atexit
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isfinite
from types import TracebackType
from typing import TextIO

from ..text import duration, number, right_aligned

LIVE_S = 0.25  # between redraws on a terminal
PLAIN_S = 5.0  # between plain lines, for each variant that is training


class Console:
    """Prints to `stream` (default: stdout); a context manager that leaves the terminal as it was.

    `lasting`: output is dropped when the reader of a pipe has gone, instead of raising BrokenPipeError. `clock`:
    seconds, for the intervals between reports of progress.
    """

    def __init__(
        self, stream: TextIO | None = None, lasting: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lasting, self._clock = lasting, clock
        self._stream = sys.stdout if stream is None else stream
        self._rich = None
        self._live = None
        self._bars: dict[str, tuple[float, Sequence[str]]] = {}
        self._running: set[str] = set()
        self._next: dict[str, float] = {}
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console as RichConsole

            self._rich = RichConsole(file=self._stream, highlight=False)

    def note(self, text: str) -> None:
        self._print(text, hang=2)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow", hang=2)

    def finding(self, sentences: Sequence[str]) -> None:
        """Prints sentences so that the eye lands on them: in bold, between empty lines."""
        for sentence in ("", *sentences, ""):
            self._print(sentence, style="bold")

    def command(self, text: str, label: str = "  ") -> None:
        """Prints a command as it can be pasted: on one line, however long."""
        self._print(f"{label}{text}", whole=True)

    def block(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Prints a title and aligned key-value lines under it."""
        width = max((len(key) for key, _ in rows), default=0)
        self._print(title, style="bold")
        for key, value in rows:
            self._print(f"  {key:<{width}}  {value}", hang=width + 4)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints aligned columns; on a terminal too narrow for them, in pieces that repeat the first column."""
        if title:
            self._print(title, style="bold")
        if not columns:
            return
        right = right_aligned(columns, rows)
        lines = [list(columns), *([str(cell) for cell in row] for row in rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        pieces = [[0]]
        for i in range(1, len(widths)):
            width = sum(widths[j] + 2 for j in [*pieces[-1], i]) - 2
            if self._rich is not None and len(pieces[-1]) > 1 and width > self._rich.width:
                pieces.append([0])
            pieces[-1].append(i)
        for piece in pieces:
            for n, line in enumerate(lines):
                cells = (line[i].rjust(widths[i]) if right[i] else line[i].ljust(widths[i]) for i in piece)
                self._print("  ".join(cells).rstrip(), style="bold" if n == 0 else "", whole=True)
            if piece[-1] != len(columns) - 1:
                self._print("")

    def progress(
        self,
        variant: str,
        step: int,
        steps: int,
        loss: float | None,
        tokens_per_s: float | None = None,
        eta_s: float | None = None,
    ) -> None:
        """Shows the progress of a variant: in place on a terminal; elsewhere a line now and then, and the last one."""
        done = step >= steps
        now = self._clock()
        (self._running.discard if done else self._running.add)(variant)
        speed = "" if tokens_per_s is None or not isfinite(tokens_per_s) else f"{number(round(tokens_per_s))} tokens/s"
        left = "" if eta_s is None or done else f"{duration(eta_s)} left"
        texts = (f"step {step:>{len(str(steps))}}/{steps}", f"loss {number(loss)}", speed, left)
        self._bars[variant] = (step / steps if steps else 1.0, texts)
        if self._rich is None:
            # Several variants share one output: each speaks less often, so that a log does not grow with them.
            if done or now >= self._next.get(variant, 0.0):
                self._print("  ".join(text for text in (f"{variant}:", *texts) if text))
                self._next[variant] = now + PLAIN_S * max(1, len(self._running))
        elif not self._running:
            self.close()
        elif now >= self._next.get("", 0.0):
            self._draw()
            self._next[""] = now + LIVE_S

    def stopped(self, variant: str) -> None:
        """Ends the progress of a variant that stopped before its last step."""
        self._running.discard(variant)
        if not self._running:
            self.close()

    def close(self) -> None:
        """Ends the live lines, leaving their last state on the screen."""
        if self._rich is not None and self._bars:
            self._draw()
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None
            atexit.unregister(self.close)
        self._bars.clear()
        self._running.clear()

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self) -> None:
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        assert self._rich is not None
        width = self._rich.width
        lines = Table.grid(padding=(0, 2))
        for _ in range(6):
            lines.add_column(no_wrap=True, overflow="ellipsis")
        for variant, (fraction, texts) in self._bars.items():
            bar = ProgressBar(total=1.0, completed=fraction, width=20) if width >= 110 else ""
            lines.add_row(_plain(variant), bar, *map(_plain, texts))
        with suppress(OSError):
            if self._live is None:
                self._live = Live(lines, console=self._rich, auto_refresh=False)
                self._live.start()
                atexit.register(self.close)  # a terminal without a cursor is no way to leave
            self._live.update(lines, refresh=True)

    def _print(self, text: str, *, style: str = "", hang: int = 0, whole: bool = False) -> None:
        """Prints a line, on a terminal broken at words unless it is `whole`, with `hang` spaces before what follows."""
        text = printable(text, self._stream)
        if self._rich is None:
            try:
                print(text, file=self._stream, flush=True)
            except BrokenPipeError:
                if not self._lasting:
                    raise
                self._stream = unread(self._stream)
            except OSError:  # the disk that a log is on is full, say: no reason to stop training
                pass
            return
        if not whole and len(text) > self._rich.width:
            text = textwrap.fill(
                text,
                self._rich.width,
                subsequent_indent=" " * hang if self._rich.width > 2 * hang else "",
                break_long_words=False,
                break_on_hyphens=False,
            )
        with suppress(OSError):  # a terminal that was closed
            self._rich.print(_plain(text, style), soft_wrap=True)


def printable(text: str, stream: TextIO) -> str:
    """Returns the text with ? for characters outside the stream's encoding."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def unread(stream: TextIO) -> TextIO:
    """Returns a sink to replace a pipe without a reader, and prints one line about it on stderr."""
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    os.dup2(nowhere.fileno(), stream.fileno())  # the rest of the stream's buffer is flushed at exit
    try:
        print("deltaflow: the reader of the output has gone; training goes on", file=sys.stderr, flush=True)
    except OSError:  # `2>&1 | head`
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    return nowhere


def _plain(text: str, style: str = ""):
    """Returns the text as rich's Text, without markup."""
    from rich.text import Text

    return Text(text, style)
