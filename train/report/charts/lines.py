"""Charts of lines: one with its legend at the right, or several on one y axis with a legend below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from . import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (11.0, 4.0)  # inches, of several charts without the legend
_LEGEND_ROW = 0.34
_COLUMNS = 4  # of the legend
_DASHES = ((0, (1, 1.5)), (0, (5, 2, 1, 2)))


@dataclass(frozen=True)
class Curve:
    """A line, with a band of `half` above and below it.

    `index` gives colour and marker (`canvas.look`): a group has the same on every chart of a page. None is a thin grey
    line without a name, one of many that show the spread. With `predicted`, that is the line and y are the markers.
    """

    label: str
    x: Shaped[np.ndarray, " S"]
    y: Float[np.ndarray, " S"]
    half: Float[np.ndarray, " S"] | None = None
    index: int | None = 0
    predicted: Float[np.ndarray, " S"] | None = None


@dataclass(frozen=True)
class Panel:
    title: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Guide:
    """A reference line, the same on every panel: dotted, without a marker.

    `inside`: the y axis makes room for it, as for the curves; else it may leave the picture.
    """

    label: str
    x: Shaped[np.ndarray, " S"]
    y: Float[np.ndarray, " S"]
    inside: bool = False


def line_chart(
    curves: Sequence[Curve],
    title: str,
    xlabel: str,
    ylabel: str,
    powers: bool = False,
    size: tuple[float, float] = canvas.SIZE,
) -> Figure:
    """One chart; its legend lists the curves in the order given, unless there is only one without a label.

    Args:
      powers: the values are log10 of what the axis shows, as 10^k. Without it the axis is logarithmic for predictions
        and for values that span a factor of 50 (as losses do that fall to nothing).
      size: width and height in inches.
    """
    with canvas.styled():
        figure, axes = canvas.single(title, size=size)
        lines = [_draw(axes, curve) for curve in curves]
        predicted = any(curve.predicted is not None for curve in curves)
        if predicted:
            lines.append(axes.plot([], [], color="0.35", label="lines: predicted,\nmarkers: measured")[0])
        if any(curve.label for curve in curves):
            canvas.legend(axes, lines)
            canvas.whole(axes.xaxis)
        axes.set_xlabel(xlabel)
        _scale(axes, curves, [], ylabel, powers)
        if predicted:
            axes.set_yscale("log")
            axes.set_ylabel(ylabel)
        if not any(np.isfinite(curve.y).any() for curve in curves):
            canvas.say(axes, "no finite values")
    return figure


def loss_along(at: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"], title: str) -> Figure:
    """The loss along a line through the weights, which are at 0."""
    xlabel = "times this direction  (0: the weights as they are)"
    figure = line_chart([Curve("", at, loss)], title, xlabel, "loss of one batch", size=canvas.SMALL)
    figure.axes[0].axvline(0, color="0.35", linestyle=(0, (1, 1.5)), linewidth=1.3, zorder=1.8)
    return figure


def line_charts(
    charts: Sequence[Panel], xlabel: str, ylabel: str, guides: Sequence[Guide] = (), powers: bool = False
) -> Figure:
    """The charts in a row on one y axis; `powers` as in `line_chart`."""
    with canvas.styled():
        named = {curve.index for chart in charts for curve in chart.curves if curve.index is not None}
        grey = any(curve.index is None for chart in charts for curve in chart.curves)
        rows = -(-(len(named) + len(guides) + grey) // _COLUMNS)
        figure, all_axes = canvas.row_of(len(charts), (_SIZE[0], _SIZE[1] + _LEGEND_ROW * rows))
        entries: dict[float, object] = {}  # of the legend, by index
        for axes, chart in zip(all_axes, charts, strict=True):
            axes.set_title(canvas.plain(chart.title, 110 // len(charts)), loc="left", fontsize=11)
            axes.set_xlabel(xlabel)
            canvas.whole(axes.xaxis, max(4, 12 // len(charts)))
            canvas.ruled(axes)
            for curve in sorted(chart.curves, key=lambda curve: curve.index is not None):  # the grey ones behind
                drawn = _draw(axes, curve)
                if curve.index is None:
                    entries[np.inf] = drawn
                else:
                    entries.setdefault(curve.index, drawn)
            if not any(np.isfinite(curve.y).any() for curve in chart.curves):
                canvas.say(axes, "no finite values")
        _scale(all_axes[0], [curve for chart in charts for curve in chart.curves], guides, ylabel, powers)
        marks = [_guide(axes, guide, n) for axes in all_axes for n, guide in enumerate(guides)][: len(guides)]
        handles: list = [entries[index] for index in sorted(entries)]
        if np.inf in entries:
            handles[-1].set_label("grey: all others")
        handles[len(handles) - grey : len(handles) - grey] = marks
        if handles:
            figure.legend(handles=_by_rows(handles), loc="outside lower left", ncols=_COLUMNS, fontsize=9)
    return figure


def _by_rows(handles: Sequence) -> list:
    """Reorders entries so that matplotlib, which fills column after column, shows them row by row."""
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
    if curve.predicted is not None:
        axes.plot(curve.x, canvas.gaps(curve.predicted), color=look["color"], linewidth=1.2)
        look["linestyle"] = "none"
    return canvas.line(axes, curve.x, curve.y, curve.label, **look)


def _guide(axes: Axes, guide: Guide, which: int):
    """Draws a guide behind the lines."""
    limits = axes.get_xlim(), axes.get_ylim()
    dash = _DASHES[which % len(_DASHES)]
    label = canvas.plain(guide.label, 2 * canvas.LABEL)
    drawn = axes.plot(guide.x, guide.y, color="0.35", linestyle=dash, linewidth=1.3, label=label, zorder=1.8)[0]
    if not guide.inside:
        axes.set_xlim(*limits[0])
        axes.set_ylim(*limits[1])
    return drawn


def _scale(axes: Axes, curves: Sequence[Curve], guides: Sequence[Guide], ylabel: str, powers: bool) -> None:
    axes.set_ylabel(ylabel)
    if powers:
        ends = [curve.y + sign * curve.half for curve in curves if curve.half is not None for sign in (-1, 1)]
        canvas.powers_of_ten(axes, [*(curve.y for curve in curves), *ends, *(g.y for g in guides if g.inside)])
        return
    values = np.concatenate([np.asarray(curve.y, float) for curve in curves] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 50 * values.min():
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylabel(f"{ylabel}, logarithmic")
