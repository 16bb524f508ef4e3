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
    unit: str,
    vmin: float | None = None,
    vmax: float | None = None,
    size: tuple[float, float] = canvas.SIZE,
) -> Figure:
    """One heatmap with the embedding's output at the top, grey where there is no finite value.

    Args:
      unit: label of the colours, such as `DELTA_UNIT`, with matplotlib's math.
      vmin, vmax: fixed ends of the colour scale, so that pictures compare; from the data when None.
      size: width and height in inches.
    """
    with canvas.styled():
        figure, axes = canvas.single(title, measured=False, size=size)
        # A fixed layout: one that measures every text takes three times as long to draw.
        lines = axes.get_title(loc="left").count("\n") + 1
        wide, high = size
        left, right = 0.72 / wide, 0.84 / wide  # right of the map: the bar, its numbers and its unit
        top = 1 - (0.14 + 0.225 * lines) / high
        # The bar begins after 85 % of the room that it shares with the map.
        figure.subplots_adjust(left=left, right=left + (1 - right - left) / 0.85, bottom=0.54 / high, top=top)
        shown = _finite(values)
        ends = canvas.limits(shown.compressed(), vmin, vmax)
        mesh = _mesh(axes, steps, values, *ends)
        canvas.whole(axes.xaxis)
        canvas.whole(axes.yaxis)
        axes.set_xlabel("training step")
        axes.set_ylabel(r"depth $\ell$  (top: the embedding's output)")
        if shown.count() or (vmin is not None and vmax is not None):
            figure.colorbar(mesh, ax=axes, label=unit, extend=_beyond([shown], *ends), pad=0.02)
        if not shown.count():
            canvas.say(axes, "no finite values")
        elif shown.count() < shown.size:
            axes.set_xlabel("training step  (grey: zero, not finite, not measured)")
    return figure


def heatmaps(fields: Sequence[Field], unit: str, vmin: float, vmax: float) -> Figure:
    """Several heatmaps, two in a row in the order given, on one colour scale from `vmin` to `vmax`."""
    with canvas.styled():
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure

        rows = max(1, -(-len(fields) // 2))
        high = rows * _ROW + 0.75
        figure = Figure((_WIDE, high))
        figure.subplots_adjust(left=0.06, right=0.9, top=1 - 0.35 / high, bottom=0.55 / high, hspace=0.42, wspace=0.12)
        everything = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes, field in zip(everything, fields, strict=False):
            shown = _finite(field.values)
            _mesh(axes, field.steps, field.values, vmin, vmax)
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
        mappable = ScalarMappable(Normalize(vmin, vmax), "viridis")
        beyond = _beyond([_finite(field.values) for field in fields], vmin, vmax)
        # As high as two rows at most: on a tall picture the arrows at its ends would grow with it.
        share = min(1.0, 2 / rows)
        top, bottom = figure.subplotpars.top, figure.subplotpars.bottom
        place = figure.add_axes((0.92, top - share * (top - bottom), 0.015, share * (top - bottom)))
        figure.colorbar(mappable, cax=place, label=unit, extend=beyond)
    return figure


def _mesh(axes: Axes, steps: np.ndarray, values: np.ndarray, low: float, high: float):
    import matplotlib

    if not len(steps):
        steps, values = np.zeros(1, int), np.full((1, values.shape[1]), np.nan)
    if len(steps) > MAX_CELLS:
        shown = np.unique(np.linspace(0, len(steps) - 1, MAX_CELLS).round().astype(int))
        steps, values = steps[shown], values[shown]
    colors = matplotlib.colormaps["viridis"].with_extremes(bad=NO_VALUE)
    depths = np.arange(values.shape[1] + 1) - 0.5
    cells = _finite(values)
    mesh = axes.pcolormesh(_edges(steps), depths, cells, cmap=colors, vmin=low, vmax=high, rasterized=True)
    axes.invert_yaxis()
    return mesh


def _finite(values: np.ndarray) -> np.ma.MaskedArray:
    """Returns values as [layers, S], masked where they are not finite."""
    return np.ma.masked_invalid(np.asarray(values, float).T)


def _beyond(shown: Sequence[np.ma.MaskedArray], low: float, high: float) -> str:
    """Returns the ends of a colour scale that some values are beyond, as matplotlib calls them."""
    outside = (any((each < low).any() for each in shown), any((each > high).any() for each in shown))
    return {(True, False): "min", (False, True): "max", (True, True): "both"}.get(outside, "neither")


def _edges(steps: np.ndarray) -> np.ndarray:
    """Returns cell borders half-way between the steps; the outer cells are as wide as their neighbours."""
    steps = np.asarray(steps, float)
    if len(steps) < 2:
        return np.array([steps[0] - 0.5, steps[0] + 0.5]) if len(steps) else np.array([0.0])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])
