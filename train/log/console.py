"""Console output of a run: live and coloured on a terminal, plain lines everywhere else."""

import atexit
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isfinite
from typing import TextIO

import numpy as np
from rich.console import Console as RichConsole
from rich.text import Text

from ..text import duration, number, right_aligned
from .progress import Display, Row, ratio_text

PLAIN_S = 5.0  # between plain lines, for each variant that is training


class Console:
    """Prints to `stream` (default: stdout); `close` leaves the terminal as it was.

    `lasting`: output is dropped when the reader of a pipe has gone, instead of raising BrokenPipeError. `clock`:
    seconds, for the intervals between reports of progress.
    """

    def __init__(
        self, stream: TextIO | None = None, lasting: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lasting, self._clock = lasting, clock
        self._stream = sys.stdout if stream is None else stream
        self._rich = None
        self._live: Display | None = None
        self._order: list[str] = []
        self._warnings: set[str] = set()
        self._running: dict[str, None] = {}
        self._next: dict[str, float] = {}
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._rich = RichConsole(file=self._stream, highlight=False)

    def note(self, text: str) -> None:
        self._print(text, hang=2)

    def warn(self, text: str) -> None:
        """Prints a warning, unless the same one was printed before: several groups may each give it."""
        if text not in self._warnings:
            self._warnings.add(text)
            self._print(f"warning: {text}", style="yellow", hang=2)

    def finding(self, sentences: Sequence[str]) -> None:
        """Prints sentences so that the eye lands on them: in bold, between empty lines."""
        for sentence in ("", *sentences, ""):
            self._print(sentence, style="bold", hang=2)

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
        """Prints aligned columns; on a terminal too narrow for them, in pieces that repeat the first column.

        A last column of text that is still too wide is broken at words.
        """
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
            hang, numbers = sum(widths[i] + 2 for i in piece[:-1]), right[piece[-1]]
            for n, line in enumerate(lines):
                cells = (line[i].rjust(widths[i]) if right[i] else line[i].ljust(widths[i]) for i in piece)
                self._print("  ".join(cells).rstrip(), style="bold" if n == 0 else "", hang=hang, whole=numbers)
            if piece[-1] != len(columns) - 1:
                self._print("")

    def plan(self, variants: Sequence[str]) -> None:
        """Names all variants in the order of their training, by which `compiling` and `progress` count them."""
        self._order = list(variants)

    def compiling(self, variants: Sequence[str]) -> None:
        """Shows that the programs of these variants are compiled, on a terminal with the seconds that have passed."""
        self._running = dict.fromkeys(variants)
        if self._rich is None:
            self._print(f"{self._title()}: compiling")
        else:
            self._display().show(f"{self._title()}: compiling")

    def progress(
        self,
        variant: str,
        step: int,
        steps: int,
        loss: float | None,
        tokens_per_s: float | None = None,
        left_s: float | None = None,
        delta_log10: np.ndarray | None = None,
    ) -> None:
        """Shows the progress of a variant: in place on a terminal; elsewhere a line now and then, and the last one.

        Args:
            left_s: seconds to the end of all variants.
            delta_log10: log10|δ_l| [L+1] of the last watched step.
        """
        done, now = step >= steps, self._clock()
        self._running[variant] = None
        at = f"step {step:>{len(str(steps))}}/{steps}"
        speed = "" if tokens_per_s is None or not isfinite(tokens_per_s) else f"{number(round(tokens_per_s))} tokens/s"
        if self._rich is not None:
            display = self._display()
            display.rows[variant] = Row(loss, delta_log10)
            display.show(self._title(), at, speed, left=left_s)
        elif done or now >= self._next.get(variant, 0.0):
            ratio = "" if delta_log10 is None else f"|δ_0|/|δ_L| {ratio_text(delta_log10)}"
            left = "" if left_s is None or done else f"{duration(left_s)} left"
            texts = (f"{variant}:", at, f"loss {number(loss)}", ratio, speed, left)
            self._print("  ".join(text for text in texts if text))
            # Several variants share one output: each speaks less often, so that a log does not grow with them.
            self._next[variant] = now + PLAIN_S * len(self._running)
        if done:
            del self._running[variant]

    def notice(self, text: str) -> bool:
        """Shows a line under the live ones with their next redraw, from any thread; returns false if there are none."""
        if (live := self._live) is None:
            return False
        live.notice = text
        return True

    def stopped(self, variant: str, step: int) -> None:
        """Marks a variant that stopped before its last step."""
        self._running.pop(variant, None)
        if self._live is not None and variant in self._live.rows:
            self._live.rows[variant].note = f", stopped at step {step}"

    def close(self) -> None:
        """Ends the live lines, leaving the last state of every variant on the screen."""
        if self._live is not None:
            self._live.close()
            self._live = None
            atexit.unregister(self.close)

    def _title(self) -> str:
        """The variants at work, by their places in the plan."""
        places = sorted(self._order.index(name) + 1 for name in self._running if name in self._order)
        if len(self._order) < 2 or not places:
            return ", ".join(self._running)
        several = places[0] != places[-1]
        return f"variant{'s' * several} {places[0]}{f'-{places[-1]}' * several} of {len(self._order)}"

    def _display(self) -> Display:
        if self._live is None:
            assert self._rich is not None
            self._live = Display(self._rich, self._clock)
            atexit.register(self.close)  # a terminal without a cursor is no way to leave
        return self._live

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
            self._rich.print(Text(text, style), soft_wrap=True)  # no markup


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
