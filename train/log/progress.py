"""The progress of a training on a terminal, in place: the time left, and a row for each variant with |δ| by depth."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..text import MISSING, duration, factor, number

PER_S = 2.0  # redraws
LEVELS = "▁▂▃▄▅▆▇█"
ZERO, NONFINITE = "0", "!"
LEAST_SPAN = 3.0  # decades from the lowest level to the highest, so that a harmless slope looks harmless
_NARROW, _FEW, _MANY = 70, 8, 24  # columns of a terminal; depths shown on a narrower one, and on others
_BAR = 10  # least columns


@dataclass
class Row:
    """The last state of a variant. delta_log10: log10|δ_l| [L+1] of the last watched step, None before it."""

    loss: float | None
    delta_log10: np.ndarray | None
    note: str = ""


class _Tolerant(Live):
    def refresh(self) -> None:
        with suppress(OSError):  # a terminal that was closed
            super().refresh()


class Display:
    """The lines at the bottom of a terminal, redrawn PER_S times a second by a thread of rich's."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self.rows: dict[str, Row] = {}
        self.notice = ""  # under the rows, until they are left
        self._began = self._since = clock()
        self._now: tuple[str, list[str], float | None] | None = "", [], None  # one object, for the sake of the thread
        self._live = _Tolerant(
            console=console, get_renderable=self.render, refresh_per_second=PER_S, vertical_overflow="visible"
        )
        with suppress(OSError):
            self._live.start()

    def show(self, title: str, *texts: str, left: float | None = None) -> None:
        """Shows what is done now.

        Args:
            title: what it is. A new one starts the clock that is shown where there are no texts.
            texts: more about it; the last ones go first where the terminal is narrow.
            left: seconds to the end of all variants, if known.
        """
        if self._now is None or title != self._now[0]:
            self._since = self._clock()
        self._now = title, [text for text in texts if text], left

    def close(self) -> None:
        """Leaves the rows on the screen, as they are."""
        self._now = None
        with suppress(OSError):
            self._live.stop()

    def render(self) -> Group:
        width, height = self._console.size
        lines: list[Table | Text] = [] if (now := self._now) is None else [self._header(width, *now)]
        rows = dict(list(self.rows.items())[-max(1, height - 5) :])  # those that train are the last
        if rows:
            lines += self._rows(rows, width)
        return Group(*lines, *([] if now is None or not self.notice else [Text(self.notice, "yellow")]))

    def _header(self, width: int, title: str, texts: list[str], left_s: float | None) -> Table:
        now = self._clock()
        left = f"{duration(left_s)} left" if left_s is not None else "" if texts else duration(now - self._since)
        while texts and len("  ".join((title, *texts, left))) > width:
            texts = texts[:-1]
        about = "  ".join((title, *texts))
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(no_wrap=True)
        cells: list[Text | ProgressBar] = [Text(about, "bold")]
        if width - len(f"{about}  {left}") >= _BAR:
            line.add_column(ratio=1)
            past = now - self._began
            cells.append(ProgressBar(past + (left_s or 0.0), past, pulse=left_s is None))
        line.add_column(justify="right", no_wrap=True)
        line.add_row(*cells, Text(left))
        return line

    def _rows(self, rows: dict[str, Row], width: int) -> list[Table | Text]:
        """Returns a table, and the scale of its sparklines, which is the same for all of them."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        table.add_column("variant", overflow="fold")
        narrow, unicode = width < _NARROW, self._console.encoding.startswith("utf")
        delta = "δ" if unicode else "d"
        for title in ("loss", f"{delta}_0/{delta}_L" if narrow else f"|{delta}_0|/|{delta}_L|"):
            table.add_column(title, justify="right", no_wrap=True)
        deltas = [row.delta_log10 for row in rows.values() if row.delta_log10 is not None]
        every = np.concatenate([*deltas, np.zeros(0)])
        finite = every[np.isfinite(every)]
        drawn, most = bool(finite.size) and unicode, _FEW if narrow else _MANY
        high = float(finite.max()) if drawn else 0.0
        low = min(float(finite.min()), high - LEAST_SPAN) if drawn else 0.0
        if drawn:
            table.add_column("|δ_l|", no_wrap=True)
        for name, row in rows.items():
            figures = ratio_text(row.delta_log10), sparkline(row.delta_log10, low, high, most) if drawn else ""
            table.add_row(*map(Text, (f"{name}{row.note}", number(row.loss), *figures[: 1 + drawn])))
        if not drawn:
            return [table]
        marks = [f"{LEVELS[0]} {number(None, low, digits=1)}", f"{LEVELS[-1]} {number(None, high, digits=1)}"]
        marks += [f"{ZERO} zero"] * bool(np.isneginf(every).any())
        marks += [f"{NONFINITE} not finite"] * bool(np.isnan(every).any() or np.isposinf(every).any())
        return [table, Text(f"|δ_l|, first block to loss (log): {', '.join(marks)}", "dim")]


def ratio_text(delta_log10: np.ndarray | None) -> str:
    """Returns |δ_0| / |δ_L| of log10|δ_l| [L+1]."""
    if delta_log10 is None:
        return MISSING
    if np.isneginf(delta_log10[0]):
        return factor(-np.inf)  # also where all of it is zero
    return factor(float(delta_log10[0] - delta_log10[-1]))


def sparkline(values: np.ndarray | None, low: float, high: float, most: int) -> str:
    """Returns a level for each value, or for `most` evenly spaced ones with both ends if there are more.

    low, high: the values of the lowest and the highest level.

    >>> sparkline(np.array([-3.0, -2.0, -0.6, 0.0, -np.inf, np.nan]), -3.0, 0.0, 10)
    '▁▃▇█0!'
    >>> sparkline(np.arange(100.0), 0.0, 99.0, 8)
    '▁▂▃▄▅▆▇█'
    """
    if values is None:
        return ""
    if len(values) > most:
        values = values[np.linspace(0, len(values) - 1, most).round().astype(int)]
    top = len(LEVELS) - 1
    return "".join(
        LEVELS[round((float(value) - low) / (high - low) * top)]
        if np.isfinite(value)
        else (ZERO if value == -np.inf else NONFINITE)
        for value in values
    )
