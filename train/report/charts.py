"""Charts of gradient flow as Vega-Lite specifications, and their pixels without a browser.

A chart is plain data: a page (train/report/page.py) embeds it and answers to the pointer, `to_rgb` and `save` draw the
same one here. Colours of lines, text and ground come from THEMES, which a page exchanges when the system turns dark.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

Chart = dict[str, Any]

WIDTH = 1100  # pixels, of a picture
SMALL = (420, 230)  # for TensorBoard, whose cards are 350 wide: the width of a picture, the height of its map
MAX_POINTS = 300  # of a curve; there are not many more pixels
MAX_CELLS = 60_000  # of the heatmaps of one chart
LIVE_CELLS = 4_000  # of one that is drawn during training, in 0.1 to 0.4 s
# log10: the ends of the colour scale of every picture of delta, so that a colour means the same on all of them.
DELTA_SCALE = (-8.0, 1.0)
OTHERS = "all others"  # the curves without a colour
# A marker for each line, so that nothing rests on colour alone; as Vega and as text name them.
SHAPES = ("circle", "square", "diamond", "triangle-down", "triangle-up", "cross", "triangle-right", "triangle-left")
GLYPHS = "●■◆▼▲✚▶◀"


def _theme(ink: str, quiet: str, line: str, spread: str, colours: Sequence[str]) -> dict[str, Any]:
    """A Vega configuration; its ground is the page's."""
    label = {"labelColor": ink, "titleColor": ink}
    axis = {"gridColor": line, "domainColor": quiet, "tickColor": quiet, "labelOverlap": "greedy"}
    header = {"labelFontSize": 13, "labelFontWeight": "bold", "labelAnchor": "start", "labelPadding": 8}
    legend = {
        "orient": "bottom",
        "columns": 4,
        "labelLimit": 240,
        "labelFontSize": 12,
        "symbolOpacity": 1,
        "titleFontWeight": "normal",
    }
    return {
        "background": None,
        "font": "Liberation Sans, Arial, sans-serif",  # whose widths a picture without a browser knows
        "range": {"category": list(colours)},
        "axis": {**label, **axis, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"},
        "header": {**label, **header},
        "legend": {**label, **legend},
        "view": {"stroke": None},
        "style": {"others": {"color": spread}, "guide": {"color": quiet}},
    }


# Okabe and Ito's colours, told apart by colour-blind readers, without their yellow; brighter on a dark ground.
THEMES = {
    "light": _theme(
        *("#1f2328", "#57606a", "#e4e8ec", "#c4c9cf"),
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D", "#8C564B"),
    ),
    "dark": _theme(
        *("#e6edf3", "#9198a1", "#2b323b", "#4a525c"),
        ("#4DA3E0", "#FF8A3D", "#2FC79A", "#E39CC4", "#8FD0F5", "#F2B84B", "#C9D1D9", "#C08A7E"),
    ),
}


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
class Field:
    """One heatmap of several; `missing` is the text in place of a heatmap without values."""

    title: str
    steps: Int[np.ndarray, " S"]
    values: Float[np.ndarray, "S layers"]
    missing: str = "no finite values"


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


_POWER = "format(pow(10, datum.{0} - floor(datum.{0})), '.2f') + 'e' + floor(datum.{0})"  # below float64's range too
_POWER = f"abs(datum.{{0}}) < 3.5 ? format(pow(10, datum.{{0}}), '.3~g') : {_POWER}"
_PLAIN = "format(datum.{0}, '.5~g')"
_DASHES = [[2, 3], [8, 3, 2, 3], [12, 4], [5, 5]]


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
        _layer("others", {"type": "line", "style": "others", "strokeWidth": 0.9}, x=x, y=y, detail={"field": "n"}),
        _layer("guide", {"type": "line", "style": "guide", "strokeWidth": 1.3}, x=x, y=y, strokeDash=dash),
        _layer("curve", interval, "isValid(datum.low)", **spread),
        _layer("curve", {"type": "line", "strokeWidth": 1.8}, x=x, y=y_line, color=colour),
        _layer("curve", {**point, "size": 45, "opacity": 1}, "datum.m", **mark),
        _layer("curve", {**point, "size": 350, "opacity": 0}, "isValid(datum.y)", **mark, tooltip=shown),  # to point at
        _missing(),
    ]
    kinds = {row["k"] for row in rows}
    layers = [layer for layer in layers if layer.pop("kind") in kinds]
    if axes.zero:
        mark = {"type": "rule", "style": "guide", "strokeDash": _DASHES[0]}
        layers.insert(0, {"data": {"values": [{}]}, "mark": mark, "encoding": {"x": {"datum": 0}}})
    titles = [panel.title for panel in panels]
    chart = _facets(rows, titles, 1 if axes.slider else len(panels), axes.size, {"layer": layers})
    value = _POWER if axes.powers else _PLAIN
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
        kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), most)).round().astype(int))
        steps, values = steps[kept], values[kept]
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
    depth_axis = {"grid": False, "values": _whole(0, deepest, 8), "format": "d"}
    shown = [{"field": name, "title": title} for name, title in (("step", "step"), ("l", "depth l"), ("text", "|δ_l|"))]
    cell = _layer(
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
    layers = [layer for layer in (cell, _missing()) if layer.pop("kind") in {row["k"] for row in rows}]
    ground = {"view": {"fill": "#bfbfbf"}, "layer": layers}
    chart = _facets(rows, [each.title for each in fields], columns, size, ground)
    for name, value in (("top", "datum.l - 0.5"), ("below", "datum.l + 0.5"), ("text", _POWER.format("v"))):
        chart["transform"].append({"calculate": value, "as": name})
    chart["usermeta"] = {"embedOptions": {"renderer": "canvas"}}  # thousands of cells
    return chart


def loss_along(at: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"], title: str) -> Chart:
    """The loss along a line through the weights, which are at 0."""
    axes = Axes("times this direction  (0: the weights as they are)", "loss of one batch", zero=True, size=SMALL)
    return line_charts([Panel(title, [Curve("", at, loss)])], axes)


def png(chart: Chart, scale: float = 1.0) -> bytes:
    """The chart as a light picture, drawn by the same Vega as in a page."""
    import vl_convert  # starts a JavaScript engine: half a second, 90 MB

    config = THEMES["light"] | {"background": "white"}
    return vl_convert.vegalite_to_png(chart, config=config, scale=scale)


def to_rgb(chart: Chart) -> UInt8[np.ndarray, "H W 3"]:
    """The picture's pixels."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png(chart))).convert("RGB"))


def save(chart: Chart, path: str | Path) -> None:
    """Writes a small PNG; the same chart gives the same bytes."""
    from PIL import Image

    Image.fromarray(to_rgb(chart)).save(path, "png", optimize=True)


def numbers(values: Shaped[np.ndarray, " n"]) -> list[Any]:
    """Values for JSON, with five digits and null for what is not finite; integers and names are kept."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return values.tolist()
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def _points(curve: Curve) -> dict[str, Any]:
    """A curve's values; of a long one the lowest and the highest of each stretch. `m`: True where a marker is."""
    y = np.asarray(curve.y, float)
    kept = np.arange(len(y))
    if len(y) > MAX_POINTS:
        stretches = np.array_split(kept, MAX_POINTS // 2)
        kept = {0, len(y) - 1}
        for s in stretches:
            bad, good = s[~np.isfinite(y[s])], s[np.isfinite(y[s])]
            kept.update(bad[:1].tolist())
            kept.update(int(good[pick(y[good])]) for pick in (np.argmin, np.argmax) if good.size)
        kept = np.array(sorted(kept))
    y = y[kept]
    row: dict[str, Any] = {"k": "curve", "g": curve.label, "x": numbers(np.asarray(curve.x)[kept]), "y": numbers(y)}
    if curve.index is None:
        return row | {"k": "others", "g": OTHERS}
    gap = np.r_[True, ~np.isfinite(y), True]
    alone = gap[:-2] & gap[2:]  # between two gaps, where no line leads
    every = max(1, len(y) // 12) if len(y) > 30 else 1
    row["m"] = ((np.arange(len(y)) % every == 0) | alone).tolist()
    if curve.half is not None:
        half = np.asarray(curve.half, float)[kept]
        row |= {"low": numbers(y - half), "high": numbers(y + half)}
    if curve.predicted is not None:
        row["line"] = numbers(np.asarray(curve.predicted, float)[kept])
    return row


def _facets(
    rows: Sequence[dict[str, Any]], titles: Sequence[str], columns: int, size: tuple[int, int], spec: Chart
) -> Chart:
    """A map for each value of `p`, `columns` in a row; lists in the rows are spread out."""
    lists = list(dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, list)))
    width = (size[0] - 66 - 24 * (columns - 1)) // columns
    header = {"labelExpr": f"{json.dumps(list(titles))}[datum.value]", "labelLimit": width}
    return {
        "data": {"values": [{**dict.fromkeys(lists, ()), **row} for row in rows]},
        "transform": [{"flatten": lists}],
        "facet": {"field": "p", "type": "nominal", "title": None, "header": header},
        "columns": columns,
        "spacing": 24,
        "spec": {"width": width, "height": size[1], **spec},
    }


def _layer(kind: str, mark: Chart, only: str = "true", **encoding: Any) -> Chart:
    return {
        "kind": kind,
        "transform": [{"filter": f"datum.k == '{kind}' && {only}"}],
        "mark": mark,
        "encoding": encoding,
    }


def _missing() -> Chart:
    mark = {"type": "text", "fontSize": 14, "align": "left", "color": "#57606a"}
    return _layer("missing", mark, text={"field": "missing"}, x={"value": 12}, y={"value": 24})


def _x_encoding(curves: Sequence[Curve], axes: Axes) -> Chart:
    if axes.x_type == "nominal":
        return {"field": "x", "type": "nominal", "title": axes.x, "sort": None, "axis": {"labelAngle": 0}}
    places = np.concatenate([*(np.asarray(curve.x, float) for curve in curves), np.zeros(0)])
    scale = {"type": axes.x_type, "nice": False} | ({"padding": 12} if axes.x_type == "log" else {"zero": False})
    axis: Chart = {"grid": False, "tickCount": 6}
    if len(places) and axes.x_type == "linear" and np.array_equal(places, np.round(places)):
        axis = {"grid": False, "values": _whole(places.min(), places.max(), 8), "format": ",d"}
    return {"field": "x", "type": "quantitative", "title": axes.x, "scale": scale, "axis": axis}


def _whole(low: float, high: float, most: int) -> list[int]:
    """Whole numbers from `low` to `high`, about `most` of them in steps of 1, 2, 5, 10 ..."""
    steps = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= most)
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))


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
    ticks: list[float] = [*_whole(low, high, 10)]
    if high - low < 3.5:
        ticks = [k + math.log10(m) for k in range(math.floor(low), math.ceil(high)) for m in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
    mantissa = "round(pow(10, datum.value - floor(datum.value)))"
    axis = {"values": ticks, "labelExpr": f"datum.value == 0 ? '1' : {mantissa} + 'e' + floor(datum.value)"}
    scale = {"domain": [low, high], "nice": False, "zero": False}
    return {"field": "y", "type": "quantitative", "title": axes.y, "scale": scale, "axis": axis}
