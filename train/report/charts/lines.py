"""Line charts, one or several in a row, on one y axis and with the legend below."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from . import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (11.0, 4.0)  # inches, without the legend
_LEGEND_ROW = 0.34
_COLUMNS = 4  # of the legend
_DASHES = ((0, (1, 1.5)), (0, (5, 2, 1, 2)))


@dataclass(frozen=True)
class Curve:
    """A line, with a band of `half` above and below it; the legend leaves it out without a label.

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
    """A reference line, the same on every panel: dotted, without a marker, behind the curves."""

    label: str
    x: Shaped[np.ndarray, " S"]
    y: Float[np.ndarray, " S"]


def line_charts(
    charts: Sequence[Panel],
    xlabel: str,
    ylabel: str,
    guides: Sequence[Guide] = (),
    powers: bool = False,
    size: tuple[float, float] = SIZE,
) -> Figure:
    """The charts in a row on one y axis, and a legend in the order of the curves' indices.

    Args:
      powers: the values are log10 of what the axis shows, as 10^k. Without it the axis is logarithmic for values that
        span a factor of 50 (as losses do that fall to nothing).
      size: width and height in inches, to which the rows of the legend are added.
    """
    with canvas.styled():
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        curves = [curve for chart in charts for curve in chart.curves]
        named = {curve.index for curve in curves if curve.index is not None and curve.label}
        grey = any(curve.index is None for curve in curves)
        rows = -(-(len(named) + len(guides) + grey) // _COLUMNS)
        figure = Figure((size[0], size[1] + _LEGEND_ROW * rows), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        all_axes = figure.subplots(1, len(charts), sharey=True, squeeze=False)[0]
        entries: dict[float, object] = {}  # of the legend, by index
        for axes, chart in zip(all_axes, charts, strict=True):
            axes.set_title(canvas.wrapped(chart.title, int(9 * size[0]) // len(charts)), loc="left", fontsize=11)
            axes.set_xlabel(xlabel)
            if all(np.array_equal(curve.x, np.round(curve.x)) for curve in chart.curves):
                canvas.whole(axes.xaxis, max(4, 12 // len(charts)))
            canvas.ruled(axes)
            for curve in sorted(chart.curves, key=lambda curve: curve.index is not None):  # the grey ones behind
                drawn = _draw(axes, curve)
                if curve.index is None:
                    entries[np.inf] = drawn
                elif curve.label:
                    entries.setdefault(curve.index, drawn)
            if not any(np.isfinite(curve.y).any() for curve in chart.curves):
                canvas.say(axes, "no finite values")
        _scale(all_axes[0], curves, guides, ylabel, powers)
        marks = []
        for guide, dash in zip(guides, itertools.cycle(_DASHES)):
            look = {"color": "0.35", "linestyle": dash, "linewidth": 1.3, "zorder": 1.8}
            label = canvas.plain(guide.label, 2 * canvas.LABEL)
            marks.append([axes.plot(guide.x, guide.y, label=label, **look)[0] for axes in all_axes][0])
        handles: list = [entries[index] for index in sorted(entries)]
        if np.inf in entries:
            handles[-1].set_label("grey: all others")
        handles[len(handles) - grey : len(handles) - grey] = marks
        # matplotlib fills the legend column after column; these are so ordered that it reads row by row.
        by_rows = [handles[at] for column in range(_COLUMNS) for at in range(column, len(handles), _COLUMNS)]
        if handles:
            figure.legend(handles=by_rows, loc="outside lower left", ncols=_COLUMNS, fontsize=9)
    return figure


def loss_along(at: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"], title: str) -> Figure:
    """The loss along a line through the weights, which are at 0."""
    xlabel = "times this direction  (0: the weights as they are)"
    figure = line_charts([Panel(title, [Curve("", at, loss)])], xlabel, "loss of one batch", size=canvas.SMALL)
    figure.axes[0].axvline(0, color="0.35", linestyle=(0, (1, 1.5)), linewidth=1.3, zorder=1.8)
    return figure


def _draw(axes: Axes, curve: Curve):
    """Draws a curve with gaps where a value is not finite; the legend says when none is."""
    y = canvas.gaps(curve.y)
    if curve.index is None:
        return axes.plot(curve.x, y, color="0.8", linewidth=0.9, zorder=1.5)[0]
    look = canvas.look(curve.index, len(y))
    if curve.half is not None:
        low, high = canvas.gaps(curve.y - curve.half), canvas.gaps(curve.y + curve.half)
        axes.fill_between(curve.x, low, high, color=look["color"], alpha=0.2, linewidth=0)
    if curve.predicted is not None:
        axes.plot(curve.x, canvas.gaps(curve.predicted), color=look["color"], linewidth=1.2)
        look["linestyle"] = "none"
    note = [] if np.isfinite(y).any() else ["(no finite values)"]
    return axes.plot(curve.x, y, label="\n".join([*canvas.folded(curve.label), *note]), **look)[0]


def _scale(axes: Axes, curves: Sequence[Curve], guides: Sequence[Guide], ylabel: str, powers: bool) -> None:
    axes.set_ylabel(ylabel)
    if powers:
        ends = [curve.y + sign * curve.half for curve in curves if curve.half is not None for sign in (-1, 1)]
        canvas.powers_of_ten(axes, [*(curve.y for curve in curves), *ends, *(guide.y for guide in guides)])
        return
    values = np.concatenate([np.asarray(curve.y, float) for curve in curves] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 50 * values.min():
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylabel(f"{ylabel}, logarithmic")
