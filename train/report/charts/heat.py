"""Heatmaps of depth against training step, in the perceptually uniform viridis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from . import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CELLS = 1000  # columns of a heatmap; there are not more pixels
NO_VALUE = "0.75"
DELTA_UNIT = r"$\log_{10}\Vert\delta_\ell\Vert$"
# log10: the ends of the colour scale of every picture of delta, so that a colour means the same on all of them.
DELTA_SCALE = (-8.0, 1.0)
_WIDE, _ROW = 11.0, 2.3  # inches, of several heatmaps: the picture's width, the height of a row
_NAME = 52  # characters over one of two heatmaps side by side


@dataclass(frozen=True)
class Field:
    """One heatmap of several; `missing` is the text in place of a heatmap without values."""

    title: str
    steps: Int[np.ndarray, " S"]
    values: Float[np.ndarray, "S layers"]
    missing: str = "no finite values"


def heatmap(
    steps: Int[np.ndarray, " S"],
    values: Float[np.ndarray, "S layers"],
    title: str,
    size: tuple[float, float] = canvas.SIZE,
) -> Figure:
    """One heatmap of log10 delta with the embedding's output at the top, grey where there is no finite value.

    `size`: width and height in inches.
    """
    with canvas.styled():
        from matplotlib.figure import Figure

        # A fixed layout: one that measures every text takes three times as long to draw.
        wide, high = size
        figure = Figure(size)
        axes = figure.add_subplot()
        title = canvas.wrapped(title, int(8.6 * wide))
        axes.set_title(title, loc="left")
        lines = title.count("\n") + 1
        left, right = 0.72 / wide, 0.84 / wide  # right of the map: the bar, its numbers and its unit
        top = 1 - (0.14 + 0.225 * lines) / high
        # The bar begins after 85 % of the room that it shares with the map.
        figure.subplots_adjust(left=left, right=left + (1 - right - left) / 0.85, bottom=0.54 / high, top=top)
        shown = _finite(values)
        mesh = _mesh(axes, steps, values)
        canvas.whole(axes.xaxis)
        canvas.whole(axes.yaxis)
        axes.set_xlabel("training step")
        axes.set_ylabel(r"depth $\ell$  (top: the embedding's output)")
        figure.colorbar(mesh, ax=axes, label=DELTA_UNIT, extend=_beyond([shown]), pad=0.02)
        if not shown.count():
            canvas.say(axes, "no finite values")
        elif shown.count() < shown.size:
            axes.set_xlabel("training step  (grey: zero, not finite, not measured)")
    return figure


def heatmaps(fields: Sequence[Field]) -> Figure:
    """Several heatmaps of log10 delta, two in a row in the order given."""
    with canvas.styled():
        from matplotlib.figure import Figure

        rows = -(-len(fields) // 2)
        high = rows * _ROW + 0.75
        figure = Figure((_WIDE, high))
        figure.subplots_adjust(left=0.06, right=0.9, top=1 - 0.35 / high, bottom=0.55 / high, hspace=0.42, wspace=0.12)
        everything = figure.subplots(rows, 2, squeeze=False).ravel()
        meshes = []
        for axes, field in zip(everything, fields, strict=False):
            shown = _finite(field.values)
            meshes.append(_mesh(axes, field.steps, field.values))
            axes.set_title(canvas.plain(field.title, _NAME), loc="left", fontsize=10)
            canvas.whole(axes.xaxis, 6)
            canvas.whole(axes.yaxis, 5)
            if not shown.count():
                axes.set_xticks([])
                axes.set_yticks([])
                canvas.say(axes, field.missing)
        for axes in everything[len(fields) :]:
            axes.set_axis_off()
        figure.supxlabel("training step", y=0.12 / high, fontsize=10)
        figure.supylabel(r"depth $\ell$  (top: the embedding's output)", x=0.005, fontsize=10)
        beyond = _beyond([_finite(field.values) for field in fields])
        # As high as two rows at most: on a tall picture the arrows at its ends would grow with it.
        share = min(1.0, 2 / rows)
        top, bottom = figure.subplotpars.top, figure.subplotpars.bottom
        place = figure.add_axes((0.92, top - share * (top - bottom), 0.015, share * (top - bottom)))
        figure.colorbar(meshes[0], cax=place, label=DELTA_UNIT, extend=beyond)
    return figure


def _mesh(axes: Axes, steps: np.ndarray, values: np.ndarray):
    import matplotlib

    if not len(steps):
        steps, values = np.zeros(1, int), np.full((1, values.shape[1]), np.nan)
    if len(steps) > MAX_CELLS:
        shown = np.unique(np.linspace(0, len(steps) - 1, MAX_CELLS).round().astype(int))
        steps, values = steps[shown], values[shown]
    colors = matplotlib.colormaps["viridis"].with_extremes(bad=NO_VALUE)
    depths = np.arange(values.shape[1] + 1) - 0.5
    # Cell borders half-way between the steps; the outer cells are as wide as their neighbours.
    widths = np.diff(steps) if len(steps) > 1 else np.ones(1)
    centers = np.r_[steps[0] - widths[0], steps, steps[-1] + widths[-1]]
    edges = (centers[1:] + centers[:-1]) / 2
    low, high = DELTA_SCALE
    mesh = axes.pcolormesh(edges, depths, _finite(values), cmap=colors, vmin=low, vmax=high, rasterized=True)
    axes.invert_yaxis()
    return mesh


def _finite(values: np.ndarray) -> np.ma.MaskedArray:
    """Returns values as [layers, S], masked where they are not finite."""
    return np.ma.masked_invalid(np.asarray(values, float).T)


def _beyond(shown: Sequence[np.ma.MaskedArray]) -> str:
    """Returns the ends of the colour scale that some values are beyond, as matplotlib calls them."""
    low, high = DELTA_SCALE
    outside = (any((each < low).any() for each in shown), any((each > high).any() for each in shown))
    return {(True, False): "min", (False, True): "max", (True, True): "both"}.get(outside, "neither")
