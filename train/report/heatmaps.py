"""Heatmaps: delta by depth and step, and the matrices of blocks, such as a rule's weights of streams or depths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .charts import POWER, SMALL, WIDTH, Chart, evenly, facets, mark_layer, missing, numbers, whole

MAX_CELLS = 60_000  # of the heatmaps of one chart
LIVE_CELLS = 4_000  # of one that is drawn during training, in 0.1 to 0.4 s
# log10: the ends of the colour scale of every picture of delta, so that a colour means the same on all of them.
DELTA_SCALE = (-8.0, 1.0)


@dataclass(frozen=True)
class Field:
    """One heatmap of several; `missing` is the text in place of a heatmap without values."""

    title: str
    steps: Int[np.ndarray, " S"]
    values: Float[np.ndarray, "S layers"]
    missing: str = "no finite values"


def heatmaps(
    fields: Sequence[Field], columns: int = 2, size: tuple[int, int] = (WIDTH, 180), cells: int = MAX_CELLS
) -> Chart:
    """Heatmaps of log10 delta in rows, in the order given, grey where there is no finite value.

    `size`: pixels, of a row of maps. Of more steps than fit (three pixels each, `cells` in all maps together) evenly
    spaced ones are drawn.
    """
    depths = sum(field.values.shape[1] for field in fields)
    most = max(8, min(size[0] // columns // 3, cells // max(1, depths)))
    rows: list[dict[str, Any]] = []
    ends, deepest = [math.inf, -math.inf], 0  # of the axes, also where the first or the last values are missing
    for index, each in enumerate(fields):
        steps, values = np.asarray(each.steps), np.asarray(each.values, float)
        if not np.isfinite(values).any():
            rows.append({"p": index, "k": "missing", "missing": each.missing, "v": [None], "l": [None]})
            continue
        places = evenly(len(steps), most)
        steps, values = steps[places], values[places]
        # Cell borders half-way between the steps; the outer cells are as wide as their neighbours.
        widths = np.diff(steps) if len(steps) > 1 else np.ones(1)
        centers = np.r_[steps[0] - widths[0], steps, steps[-1] + widths[-1]]
        edges = ((centers[1:] + centers[:-1]) / 2).tolist()
        ends = [min(edges[0], ends[0]), max(edges[-1], ends[1])]
        depths = list(range(values.shape[1]))
        deepest = max(deepest, *depths)
        for step, low, high, column in zip(steps.tolist(), edges[:-1], edges[1:], values, strict=True):
            rows.append(
                {"p": index, "k": "cell", "step": step, "x": low, "x2": high, "v": numbers(column), "l": depths}
            )
    scale = {"scheme": "viridis", "domain": DELTA_SCALE, "clamp": True}
    legend = {
        "orient": "bottom",
        "gradientLength": min(300, size[0] // 2),
        "title": "log10 |δ_l|",
        "direction": "horizontal",
    }
    axis = {"grid": False, "tickCount": 5}
    depth_axis = {"grid": False, "values": whole(0, deepest, 8), "format": "d"}
    shown = [{"field": name, "title": title} for name, title in (("step", "step"), ("l", "depth l"), ("text", "|δ_l|"))]
    cell = mark_layer(
        "cell",
        {"type": "rect", "clip": True, "x2Offset": 0.7, "y2Offset": 0.7},  # no seams
        "isValid(datum.v)",
        x={
            **{"field": "x", "type": "quantitative", "title": "training step", "axis": axis},
            "scale": {"domain": ends, "nice": False},
        },
        x2={"field": "x2"},
        y={
            **{"field": "top", "type": "quantitative", "title": "depth l", "axis": depth_axis},
            "scale": {"domain": [-0.5, deepest + 0.5], "reverse": True, "nice": False},
        },
        y2={"field": "below"},
        color={"field": "v", "type": "quantitative", "scale": scale, "legend": legend},
        tooltip=shown,
    )
    layers = [layer for layer in (cell, missing()) if layer.pop("kind") in {row["k"] for row in rows}]
    ground = {"view": {"fill": "#bfbfbf"}, "layer": layers}
    chart = facets(rows, [each.title for each in fields], columns, size, ground)
    for name, value in (("top", "datum.l - 0.5"), ("below", "datum.l + 0.5"), ("text", POWER.format("v"))):
        chart["transform"].append({"calculate": value, "as": name})
    chart["usermeta"] = {"embedOptions": {"renderer": "canvas"}}  # thousands of cells
    return chart


def matrix_chart(values: Float[np.ndarray, "L rows columns"], title: str) -> Chart:
    """Draws the matrices of all blocks under each other, block 0 on top; grey where a value is not finite.

    The colours span the values, or 0 to 1 where these are within.
    """
    depth, rows, columns = values.shape
    cells: list[dict[str, Any]] = []
    for line, row in enumerate(values.reshape(depth * rows, columns)):
        top, bottom = line / rows, (line + 1) / rows
        for column, value in enumerate(numbers(row)):
            cells.append({"x": column - 0.5, "x2": column + 0.5, "y": top, "y2": bottom, "v": value})
    finite = values[np.isfinite(values)]
    ends = [min(0.0, float(finite.min(initial=0.0))), max(1.0, float(finite.max(initial=1.0)))]
    axis = {"grid": False, "format": "d", "tickMinStep": 1}

    def place(field: str, name: str, domain: list[float], **scale: Any) -> Chart:
        scale = {"domain": domain, "nice": False, "zero": False, **scale}
        return {"field": field, "type": "quantitative", "title": name, "axis": axis, "scale": scale}

    legend = {"orient": "bottom", "direction": "horizontal", "gradientLength": SMALL[0] // 2, "title": None}
    colour = {"scheme": "viridis", "domain": ends}
    return {
        "title": {"text": title, "anchor": "start", "fontSize": 13},
        "width": SMALL[0] - 66,
        "height": SMALL[1],
        "view": {"fill": "#bfbfbf"},
        "data": {"values": cells},
        "transform": [{"filter": "isValid(datum.v)"}],
        "mark": {"type": "rect", "x2Offset": 0.7, "y2Offset": 0.7},  # no seams
        "encoding": {
            "x": place("x", "column", [-0.5, columns - 0.5]),
            "x2": {"field": "x2"},
            "y": place("y", "block" if rows == 1 else f"block, {rows} rows each", [0, depth], reverse=True),
            "y2": {"field": "y2"},
            "color": {"field": "v", "type": "quantitative", "scale": colour, "legend": legend},
        },
    }
