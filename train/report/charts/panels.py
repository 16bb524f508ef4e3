"""Several charts of lines in one picture, on one y axis and with one legend: many groups of runs, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from . import canvas
from .lines import spans_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (11.0, 4.0)  # inches, without the legend
_LEGEND_ROW = 0.34
_COLUMNS = 4  # of the legend
_DASHES = ((0, (1, 1.5)), (0, (5, 2, 1, 2)))


@dataclass(frozen=True)
class Curve:
    """A line, and a band of `half` above and below it where that is known.

    `index` gives colour and marker (`canvas.look`): a group has the same on every chart of a page. None is a thin grey
    line without a name, one of many that are there to show the spread.
    """

    label: str
    x: Shaped[np.ndarray, " S"]
    y: Float[np.ndarray, " S"]
    half: Float[np.ndarray, " S"] | None
    index: int | None


@dataclass(frozen=True)
class Panel:
    title: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Guide:
    """A line to compare with, the same on every panel: dotted, without a marker.

    `inside`: the picture makes room for it, as for the curves; else it may leave the picture.
    """

    label: str
    x: Shaped[np.ndarray, " S"]
    y: Float[np.ndarray, " S"]
    inside: bool = False


def line_charts(
    charts: Sequence[Panel], xlabel: str, ylabel: str, guides: Sequence[Guide] = (), powers: bool = False
) -> Figure:
    """The charts beside each other.

    Args:
      powers: the values are log10 of what the axis shows, as 10^k. Without it they are shown as they are, on a
        logarithmic axis when they span a factor of 50 (as losses do that fall to nothing).
    """
    with canvas.styled():
        named = dict.fromkeys(curve.index for chart in charts for curve in chart.curves if curve.index is not None)
        grey = any(curve.index is None for chart in charts for curve in chart.curves)
        rows = -(-(len(named) + len(guides) + grey) // _COLUMNS)
        figure, all_axes = canvas.row_of(len(charts), (_SIZE[0], _SIZE[1] + _LEGEND_ROW * rows))
        entries: dict[int, object] = {}
        others = None
        for axes, chart in zip(all_axes, charts, strict=True):
            axes.set_title(canvas.plain(chart.title, 110 // len(charts)), loc="left", fontsize=11)
            axes.set_xlabel(xlabel)
            canvas.whole(axes.xaxis, max(4, 12 // len(charts)))
            canvas.ruled(axes)
            for curve in sorted(chart.curves, key=lambda curve: curve.index is not None):  # the grey ones behind
                drawn = _draw(axes, curve)
                if curve.index is None:
                    others = drawn
                else:
                    entries.setdefault(curve.index, drawn)
            if not any(np.isfinite(curve.y).any() for curve in chart.curves):
                canvas.say(axes, "no finite values")
        _scale(all_axes[0], charts, guides, ylabel, powers)
        marks = [_guide(axes, guide, n) for axes in all_axes for n, guide in enumerate(guides)][: len(guides)]
        handles = [entries[index] for index in sorted(entries)] + marks
        if others is not None:
            others.set_label("grey: all others")
            handles.append(others)
        if handles:
            figure.legend(handles=_by_rows(handles), loc="outside lower left", ncols=_COLUMNS, fontsize=9)
    return figure


def _by_rows(handles: Sequence) -> list:
    """In the order in which matplotlib, which fills column after column, shows them row by row."""
    rows = -(-len(handles) // _COLUMNS)
    columns = min(_COLUMNS, len(handles))
    full = len(handles) - columns * (rows - 1)  # columns with an entry in the last row
    counts = [rows - (column >= full) for column in range(columns)]
    return [handles[row * columns + column] for column in range(columns) for row in range(counts[column])]


def _draw(axes: Axes, curve: Curve):
    if curve.index is None:
        return axes.plot(curve.x, canvas.gaps(curve.y), color="0.8", linewidth=0.9, zorder=1.5)[0]
    look = canvas.look(curve.index, len(curve.y))
    if curve.half is not None:
        low, high = canvas.gaps(curve.y - curve.half), canvas.gaps(curve.y + curve.half)
        axes.fill_between(curve.x, low, high, color=look["color"], alpha=0.2, linewidth=0)
    return canvas.line(axes, curve.x, curve.y, curve.label, **look)


def _guide(axes: Axes, guide: Guide, which: int):
    """Behind the lines."""
    limits = axes.get_xlim(), axes.get_ylim()
    dash = _DASHES[which % len(_DASHES)]
    label = canvas.plain(guide.label, 2 * canvas.LABEL)
    drawn = axes.plot(guide.x, guide.y, color="0.35", linestyle=dash, linewidth=1.3, label=label, zorder=1.8)[0]
    if not guide.inside:
        axes.set_xlim(*limits[0])
        axes.set_ylim(*limits[1])
    return drawn


def _scale(axes: Axes, charts: Sequence[Panel], guides: Sequence[Guide], ylabel: str, powers: bool) -> None:
    curves = [curve for chart in charts for curve in chart.curves]
    ends = [curve.y + sign * curve.half for curve in curves if curve.half is not None for sign in (-1, 1)]
    axes.set_ylabel(ylabel)
    if powers:
        room = [guide.y for guide in guides if guide.inside]
        canvas.powers_of_ten(axes, [*(curve.y for curve in curves), *ends, *room])
        return
    values = np.concatenate([np.asarray(curve.y, float) for curve in curves] or [np.zeros(0)])
    if spans_decades(values[np.isfinite(values)]):
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylabel(f"{ylabel}, logarithmic")
