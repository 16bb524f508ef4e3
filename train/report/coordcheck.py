"""Results of `deltaflow coordcheck` as tables and a page, from plain data in the format of `--json`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..text import MISSING, number
from .charts import Chart, evenly
from .lines import Axes, Curve, Panel, line_charts
from .page import Html, page, paragraph, picture, section, table
from .tables import Table

Result = Mapping[str, Any]
MAX_CURVES = 8  # with a colour


def sizes_table(result: Result) -> Table:
    """Returns the rms of each quantity after the last step, a row for each size."""
    rows = []
    for size, *values in zip(result["sizes"], *result["rms"].values(), strict=True):
        rows.append([str(size), *(number(by_step[-1]) for by_step in values)])
    return [result["over"], *(name.replace("_", " ") for name in result["rms"])], rows


def slopes_table(result: Result) -> Table:
    """Returns the slope of log2 rms over log2 size of each quantity, a row for each step."""
    rows = []
    for step, *values in zip(range(result["steps"] + 1), *result["slope"].values(), strict=True):
        rows.append([str(step), *(MISSING if value is None else f"{value:.2f}" for value in values)])
    return ["step", *(name.replace("_", " ") for name in result["slope"])], rows


def verdict_line(result: Result) -> str:
    """Returns the verdict and its evidence."""
    return f"{heading(result)}: {'flat' if result['flat'] else 'not flat'}: {result['why']}"


def heading(result: Result) -> str:
    return f"{result['variant']}, {result['over']} {result['sizes'][0]} to {result['sizes'][-1]}"


def chart_of(result: Result) -> Chart:
    """A panel for each quantity, in each a curve for each step over the sizes."""
    steps = evenly(result["steps"] + 1, MAX_CURVES)
    panels = []
    for name, rms in result["rms"].items():
        with np.errstate(divide="ignore"):
            logs = np.log10(np.array(rms, float))
        curves = [
            Curve(f"step {step}", np.array(result["sizes"]), logs[:, step], None, index)
            for index, step in enumerate(steps.tolist())
        ]
        panels.append(Panel(name.replace("_", " "), curves))
    return line_charts(panels, Axes(result["over"], "rms", powers=True, x_type="log", own=True))


def coordinates_page(results: Sequence[Result]) -> str:
    """Returns the page: a section with chart, tables and verdict for each variant and sweep."""
    body: list[Html] = [
        paragraph(
            "Root mean squares over all tokens of one batch, at the start and after each of the first steps: of the "
            "stream after the last block, of the logits, and of their changes since the start. Where one learning rate "
            "is right for all sizes, the lines are level; what comes of the initial weights may fall: in the logits "
            "with the width, in the stream with the depth.",
        )
    ]
    for result in results:
        about = f"Geometric means over {result['seeds']} seeds, {result['platform']}."
        drawn = picture(chart_of(result), f"{heading(result)}: sizes of activations and of their changes", about)
        tables = [paragraph("Slopes of log2 rms over log2 size:", quiet=True), table(*slopes_table(result))]
        body.append(section(heading(result), paragraph(verdict_line(result)), drawn, *tables))
    return page("Coordinate check", *body)
