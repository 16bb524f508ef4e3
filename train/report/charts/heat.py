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
SIZE = (11.0, 3.05)  # inches, of a picture of one row
_NAME = 52  # characters over a heatmap


@dataclass(frozen=True)
class Field:
    """One heatmap of several; `missing` is the text in place of a heatmap without values."""

    title: str
    steps: Int[np.ndarray, " S"]
    values: Float[np.ndarray, "S layers"]
    missing: str = "no finite values"


def heatmaps(fields: Sequence[Field], columns: int = 2, size: tuple[float, float] = SIZE) -> Figure:
    """Heatmaps of log10 delta in rows, in the order given, grey where there is no finite value.

    `size`: inches, of a picture of one row; each further row makes it higher by as much as the maps are.
    """
    with canvas.styled():
        from matplotlib.figure import Figure

        rows = -(-len(fields) // columns)
        wide, high = size[0], rows * (size[1] - 0.75) + 0.75
        figure = Figure((wide, high))
        # A fixed layout: one that measures every text takes three times as long to draw.
        left, right, top, bottom = 0.66 / wide, 1 - 1.1 / wide, 1 - 0.35 / high, 0.55 / high
        figure.subplots_adjust(left=left, right=right, top=top, bottom=bottom, hspace=0.42, wspace=0.12)
        everything = figure.subplots(rows, columns, squeeze=False).ravel()
        meshes, grey = [], False
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
            grey = grey or 0 < shown.count() < shown.size
        for axes in everything[len(fields) :]:
            axes.set_axis_off()
        note = "  (grey: zero, not finite, not measured)" if grey else ""
        figure.supxlabel(f"training step{note}", y=0.12 / high, fontsize=10)
        figure.supylabel(r"depth $\ell$  (top: the embedding's output)", x=0.055 / wide, fontsize=10)
        # As high as two rows at most: on a tall picture the arrows at its ends would grow with it.
        share = min(1.0, 2 / rows)
        place = figure.add_axes((1 - 0.88 / wide, top - share * (top - bottom), 0.165 / wide, share * (top - bottom)))
        low, high = DELTA_SCALE
        values = np.ma.concatenate([_finite(field.values).ravel() for field in fields])
        beyond = {(True, False): "min", (False, True): "max", (True, True): "both"}
        ends = beyond.get((bool((values < low).any()), bool((values > high).any())), "neither")
        figure.colorbar(meshes[0], cax=place, label=DELTA_UNIT, extend=ends)
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
