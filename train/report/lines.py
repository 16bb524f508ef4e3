"""Line charts: curves with intervals and reference lines, in panels on one y axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from .charts import OTHERS, POWER, SHAPES, SMALL, WIDTH, Chart, facets, mark_layer, missing, numbers, whole

MAX_POINTS = 300  # of a curve; there are not many more pixels
_PLAIN = "format(datum.{0}, '.5~g')"
_DASHES = [[2, 3], [8, 3, 2, 3], [12, 4], [5, 5]]


@dataclass(frozen=True)
class Curve:
    """A line, with an interval of `half` above and below it.

    `index` gives colour and marker: a group has the same on every chart of a page. None is a thin grey line, one of
    many that show the spread. With `predicted`, that is the line and y are the markers.
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
    """A reference line without markers, the same on every panel."""

    label: str
    x: Shaped[np.ndarray, " S"]
    y: Float[np.ndarray, " S"]


@dataclass(frozen=True)
class Axes:
    """Labels and kinds of the axes of lines.

    `powers`: the values are log10 of what the axis shows, written as 1e-5. Without it the axis is logarithmic for
    positive values that span a factor of 50, as losses do that fall to nothing. `x_type`: linear, log, or nominal for
    names. `zero`: a line at x = 0. `slider`: one panel at a time. `own`: the curves are no groups of the page, so that
    they have a legend of their own there, and their intervals are bars.
    """

    x: str
    y: str
    powers: bool = False
    x_type: str = "linear"
    zero: bool = False
    slider: bool = False
    own: bool = False
    size: tuple[int, int] = (WIDTH, 300)  # pixels, without titles and legend


def line_charts(panels: Sequence[Panel], axes: Axes, guides: Sequence[Guide] = ()) -> Chart:
    """Panels in a row on one y axis, with gaps where a value is not finite and values under the pointer.

    Its parameter `hidden` lists the groups that are left out (their labels, or OTHERS).
    """
    curves = [curve for panel in panels for curve in panel.curves]
    labels = {curve.index: curve.label for curve in curves if curve.index is not None}
    names = [labels[index] for index in sorted(labels)]
    rows: list[dict[str, Any]] = []
    for index, panel in enumerate(panels):
        rows += [{"p": index, **_points(curve), "n": n} for n, curve in enumerate(panel.curves)]
        rows += [{"p": index, "k": "guide", "guide": g.label, "x": numbers(g.x), "y": numbers(g.y)} for g in guides]
        if not any(np.isfinite(curve.y).any() for curve in panel.curves):
            rows.append({"p": index, "k": "missing", "missing": "no finite values", "x": [None]})
    x, y = _x_encoding(curves, axes), _y_encoding(curves, guides, axes)
    legend = {"legend": None} if not any(names) else {"legend": {"symbolOpacity": 1}} if axes.own else {}
    group = {"field": "g", "type": "nominal", "title": None, **legend}
    colour = {**group, "scale": {"domain": names}}
    mark: Chart = {"x": x, "y": y, "color": colour}
    mark["shape"] = {**group, "scale": {"domain": names, "range": list(SHAPES)}}
    y_line = {**y, "field": "line"} if any("line" in row for row in rows) else y
    spread = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    interval = {"type": "area", "opacity": 0.2} if not axes.own else {"type": "rule", "strokeWidth": 1.5}
    dash = {"field": "guide", "type": "nominal", "sort": None, "title": None, "scale": {"range": _DASHES}}
    dash["legend"] = {"symbolType": "stroke", "symbolSize": 500, "columns": 2, "orient": "bottom"}
    shown = [{"field": "x", "title": axes.x}, {"field": "text", "title": axes.y}]
    shown = [{"field": "g", "title": "run"}] * any(names) + shown
    shown += [{"field": "interval", "title": "95 % interval"}] * any("low" in row for row in rows)
    point = {"type": "point", "filled": True}
    layers = [
        mark_layer("others", {"type": "line", "style": "others", "strokeWidth": 0.9}, x=x, y=y, detail={"field": "n"}),
        mark_layer("guide", {"type": "line", "style": "guide", "strokeWidth": 1.3}, x=x, y=y, strokeDash=dash),
        mark_layer("curve", interval, "isValid(datum.low)", **spread),
        mark_layer("curve", {"type": "line", "strokeWidth": 1.8}, x=x, y=y_line, color=colour),
        mark_layer("curve", {**point, "size": 45, "opacity": 1}, "datum.m", **mark),
        mark_layer(
            "curve", {**point, "size": 350, "opacity": 0}, "isValid(datum.y)", **mark, tooltip=shown
        ),  # to point at
        missing(),
    ]
    kinds = {row["k"] for row in rows}
    layers = [layer for layer in layers if layer.pop("kind") in kinds]
    if axes.zero:
        mark = {"type": "rule", "style": "guide", "strokeDash": _DASHES[0]}
        layers.insert(0, {"data": {"values": [{}]}, "mark": mark, "encoding": {"x": {"datum": 0}}})
    titles = [panel.title for panel in panels]
    chart = facets(rows, titles, 1 if axes.slider else len(panels), axes.size, {"layer": layers})
    value = POWER if axes.powers else _PLAIN
    chart["transform"].append({"calculate": value.format("y"), "as": "text"})
    if any("low" in row for row in rows):
        ends = f"({value.format('low')}) + ' to ' + ({value.format('high')})"
        chart["transform"].append({"calculate": f"isValid(datum.low) ? {ends} : ''", "as": "interval"})
    chart["params"] = [{"name": "hidden", "value": []}]
    chart["transform"].insert(0, {"filter": "indexof(hidden, datum.g) < 0"})
    if axes.slider:
        at = {"input": "range", "min": 0, "max": len(panels) - 1, "step": 1, "name": "from first to last step "}
        chart["params"].append({"name": "at", "value": len(panels) - 1, "bind": at})
        chart["transform"].insert(0, {"filter": "datum.p === at"})
    return chart


def loss_along(at: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"], title: str) -> Chart:
    """The loss along a line through the weights, which are at 0."""
    axes = Axes("times this direction  (0: the weights as they are)", "loss of one batch", zero=True, size=SMALL)
    return line_charts([Panel(title, [Curve("", at, loss)])], axes)


def _points(curve: Curve) -> dict[str, Any]:
    """A curve's values; of a long one the lowest and the highest of each stretch. `m`: True where a marker is."""
    y = np.asarray(curve.y, float)
    places = np.arange(len(y))
    if len(y) > MAX_POINTS:
        chosen = {0, len(y) - 1}
        for s in np.array_split(places, MAX_POINTS // 2):
            bad, good = s[~np.isfinite(y[s])], s[np.isfinite(y[s])]
            chosen.update(bad[:1].tolist())
            chosen.update(int(good[pick(y[good])]) for pick in (np.argmin, np.argmax) if good.size)
        places = np.array(sorted(chosen))
    y = y[places]
    row: dict[str, Any] = {"k": "curve", "g": curve.label, "x": numbers(np.asarray(curve.x)[places]), "y": numbers(y)}
    if curve.index is None:
        return row | {"k": "others", "g": OTHERS}
    gap = np.r_[True, ~np.isfinite(y), True]
    alone = gap[:-2] & gap[2:]  # between two gaps, where no line leads
    every = max(1, len(y) // 12) if len(y) > 30 else 1
    row["m"] = ((np.arange(len(y)) % every == 0) | alone).tolist()
    if curve.half is not None:
        half = np.asarray(curve.half, float)[places]
        row |= {"low": numbers(y - half), "high": numbers(y + half)}
    if curve.predicted is not None:
        row["line"] = numbers(np.asarray(curve.predicted, float)[places])
    return row


def _x_encoding(curves: Sequence[Curve], axes: Axes) -> Chart:
    if axes.x_type == "nominal":
        return {"field": "x", "type": "nominal", "title": axes.x, "sort": None, "axis": {"labelAngle": 0}}
    places = np.concatenate([*(np.asarray(curve.x, float) for curve in curves), np.zeros(0)])
    scale = {"type": axes.x_type, "nice": False} | ({"padding": 12} if axes.x_type == "log" else {"zero": False})
    axis: Chart = {"grid": False, "tickCount": 6}
    if len(places) and axes.x_type == "linear" and np.array_equal(places, np.round(places)):
        axis = {"grid": False, "values": whole(places.min(), places.max(), 8), "format": ",d"}
    return {"field": "x", "type": "quantitative", "title": axes.x, "scale": scale, "axis": axis}


def _y_encoding(curves: Sequence[Curve], guides: Sequence[Guide], axes: Axes) -> Chart:
    """The y axis; with `powers` at least two decades high, so that a flat line looks flat."""
    drawn = [np.asarray(curve.y, float) for curve in curves]
    values = np.concatenate([*drawn, np.zeros(0)])
    if not axes.powers:
        values = values[np.isfinite(values)]
        log = len(values) and values.min() > 0 and values.max() > 50 * values.min()
        scale: Chart = {"zero": False, "nice": False, "padding": 8}
        if log:  # a guide or an interval that reaches 0 would leave the axis without any scale
            highs = [curve.y + curve.half for curve in curves if curve.half is not None]
            ends = np.concatenate([values, *highs, *(guide.y for guide in guides)])
            ends = ends[np.isfinite(ends) & (ends > 0)]
            scale = {"type": "log", "domain": [float(ends.min()), float(ends.max())], "clamp": True}
        title = f"{axes.y}, logarithmic" if log else axes.y
        return {"field": "y", "type": "quantitative", "title": title, "scale": scale}
    drawn += [curve.y + sign * curve.half for curve in curves if curve.half is not None for sign in (-1, 1)]
    values = np.concatenate([*drawn, *(guide.y for guide in guides), np.zeros(0)])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = max(0.05 * (high - low), (2.0 - (high - low)) / 2)
    low, high = low - margin, high + margin
    ticks: list[float] = [*whole(low, high, 10)]
    if high - low < 3.5:
        ticks = [k + math.log10(m) for k in range(math.floor(low), math.ceil(high)) for m in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
    mantissa = "round(pow(10, datum.value - floor(datum.value)))"
    axis = {"values": ticks, "labelExpr": f"datum.value == 0 ? '1' : {mantissa} + 'e' + floor(datum.value)"}
    scale = {"domain": [low, high], "nice": False, "zero": False}
    return {"field": "y", "type": "quantitative", "title": axes.y, "scale": scale, "axis": axis}
