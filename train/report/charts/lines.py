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
# Okabe and Ito's colours without their yellow, told apart by colour-blind readers, and a marker for each line so that
# nothing rests on colour alone.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C564B", "#7F7F7F")
_MARKERS = "osD^vPX<>*hp"
_DASHES = ((0, (1, 1.5)), (0, (5, 2, 1, 2)))


@dataclass(frozen=True)
class Curve:
    """A line, with a band of `half` above and below it; the legend leaves it out without a label.

    `index` gives colour and marker: a group has the same on every chart of a page. None is a thin grey
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
    """A reference line, the same on every panel: dotted or dash-dotted, without a marker, behind the curves."""

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
            axes.grid(True, axis="y", color="0.9", linewidth=0.8)
            axes.set_axisbelow(True)
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
    y = _gaps(curve.y)
    if curve.index is None:
        return axes.plot(curve.x, y, color="0.8", linewidth=0.9, zorder=1.5)[0]
    color, marker = _COLORS[curve.index % len(_COLORS)], _MARKERS[curve.index % len(_MARKERS)]
    if curve.half is not None:
        low, high = _gaps(curve.y - curve.half), _gaps(curve.y + curve.half)
        axes.fill_between(curve.x, low, high, color=color, alpha=0.2, linewidth=0)
    if curve.predicted is not None:
        axes.plot(curve.x, _gaps(curve.predicted), color=color, linewidth=1.2)
    note = [] if np.isfinite(y).any() else ["(no finite values)"]
    return axes.plot(
        curve.x,
        y,
        label="\n".join([*canvas.folded(curve.label), *note]),
        color=color,
        marker=marker,
        markersize=5,
        markevery=max(1, len(y) // 12),
        linewidth=1.8,
        linestyle="-" if curve.predicted is None else "none",
    )[0]


def _gaps(values: np.ndarray) -> np.ndarray:
    """Returns values with NaN, which matplotlib leaves out, in place of infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def _scale(axes: Axes, curves: Sequence[Curve], guides: Sequence[Guide], ylabel: str, powers: bool) -> None:
    """Scales the y axis; with `powers` at least two decades high, so that a flat line looks flat."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    axes.set_ylabel(ylabel)
    drawn = [np.asarray(curve.y, float) for curve in curves]
    if powers:
        drawn += [curve.y + sign * curve.half for curve in curves if curve.half is not None for sign in (-1, 1)]
        drawn += [guide.y for guide in guides]
    values = np.concatenate([*drawn, np.zeros(0)])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    if not powers:
        if low > 0 and high > 50 * low:
            axes.set_yscale("log", nonpositive="mask")
            axes.set_ylabel(f"{ylabel}, logarithmic")
        return
    margin = max(0.05 * (high - low), (2.0 - (high - low)) / 2)
    axes.set_ylim(low - margin, high + margin)
    canvas.whole(axes.yaxis)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda power, _: f"$10^{{{power:.0f}}}$"))
    bottom, top = axes.get_ylim()
    if top - bottom < 7:
        decades = np.arange(np.floor(bottom), np.ceil(top))
        fine = np.add.outer(decades, np.log10(np.arange(2, 10))).ravel()
        axes.yaxis.set_minor_locator(FixedLocator(fine[(bottom <= fine) & (fine <= top)].tolist()))
