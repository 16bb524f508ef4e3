"""Pictures of matrices by block, as a residual rule's weights of streams or depths are."""

from typing import Any

import numpy as np
from jaxtyping import Float

from .charts import SMALL, Chart, numbers


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
