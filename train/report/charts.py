"""Charts as Vega-Lite specifications: the parts that all of them share, and their pixels without a browser.

A chart (train/report/lines.py, heatmaps.py) is plain data: a page (page.py) embeds it and answers to the pointer,
`to_rgb` and `save` draw the same one here. Colours of lines, text and ground come from THEMES, which a page exchanges
when the system turns dark.
"""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

Chart = dict[str, Any]

WIDTH = 1100  # pixels, of a picture
SMALL = (420, 230)  # for TensorBoard, whose cards are 350 wide: the width of a picture, the height of its map
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


# JavaScript for a number whose log10 is a field, also below float64's range.
_DIGITS = "format(pow(10, datum.{0} - floor(datum.{0})), '.2f') + 'e' + floor(datum.{0})"
POWER = f"abs(datum.{{0}}) < 3.5 ? format(pow(10, datum.{{0}}), '.3~g') : {_DIGITS}"


def png(chart: Chart) -> bytes:
    """The chart as a light picture, drawn by the same Vega as in a page."""
    import vl_convert  # starts a JavaScript engine: half a second, 90 MB

    return vl_convert.vegalite_to_png(chart, config=THEMES["light"] | {"background": "white"})


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


def evenly(count: int, most: int) -> Int[np.ndarray, " n"]:
    """Returns evenly spaced indices of a sequence, both ends among them; all of `count` where `most` are not fewer.

    >>> evenly(4, 9).tolist(), evenly(100, 4).tolist()
    ([0, 1, 2, 3], [0, 33, 66, 99])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def whole(low: float, high: float, most: int) -> list[int]:
    """Whole numbers from `low` to `high`, about `most` of them in steps of 1, 2, 5, 10 ..."""
    steps = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= most)
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))


def facets(
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


def mark_layer(kind: str, mark: Chart, only: str = "true", **encoding: Any) -> Chart:
    return {
        "kind": kind,
        "transform": [{"filter": f"datum.k == '{kind}' && {only}"}],
        "mark": mark,
        "encoding": encoding,
    }


def missing() -> Chart:
    mark = {"type": "text", "fontSize": 14, "align": "left", "color": "#57606a"}
    return mark_layer("missing", mark, text={"field": "missing"}, x={"value": 12}, y={"value": 24})
