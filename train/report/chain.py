"""Results of `deltaflow chain` as tables for the terminal and as a page, from plain data in the format of `--json`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..text import MISSING, number
from .charts import Chart
from .lines import Axes, Curve, Panel, line_charts
from .page import Html, items, markup, page, paragraph, picture, section, table
from .tables import Table

Result = Mapping[str, Any]

_HOLDS = {
    "holds": "yes",
    "fails": "NO",
    "refuted": "false: refuted",
    "not refuted": "NOT REFUTED",
    "error": "ERROR",
}
_SIGNS = {"=": "", "<=": "≤ ", ">=": "≥ "}
_FIGURES = ["predicted", "measured", "error", "tolerance", "holds"]


def chain_table(results: Sequence[Result]) -> Table:
    """Returns a row for each claim, with its id first and its statement last."""
    return ["claim", *_FIGURES, "in words"], [[r["id"], *_figures(r), r["statement"]] for r in results]


def _figures(result: Result) -> list[str]:
    predicted, measured = (
        MISSING if x is None else number(int(x) if x == int(x) and abs(x) < 1e5 else x)  # a whole one without decimals
        for x in (result["predicted"], result["measured"])
    )
    errors = (number(result[key], digits=2, scientific=True) for key in ("error", "tolerance"))
    sign = "" if predicted == MISSING else _SIGNS[result["relation"]]
    return [sign + predicted, measured, *errors, _HOLDS[result["status"]]]


def complaint(result: Result) -> str:
    """Returns one line about a law that does not hold, a belief that was not refuted, or an error."""
    if result["status"] == "error":
        return f"{result['id']}: could not be measured: {result['why']}"
    predicted, measured, error, tolerance, _ = _figures(result)
    at = f" ({result['at']})" if result["at"] else ""
    what = "a false belief was borne out" if result["belief"] else "does not hold"
    return f"{result['id']}: {what}: predicted {predicted}, measured {measured}{at}; error {error}, {tolerance} allowed"


def closing_line(results: Sequence[Result], seconds: float) -> str:
    """Returns the numbers of laws that hold and of beliefs that are refuted."""
    counts = []
    for belief, what, how in ((False, "laws", "hold"), (True, "popular beliefs", "are refuted")):
        if good := [result["good"] for result in results if result["belief"] is belief]:
            counts.append(f"{sum(good)} of {len(good)} {what} {how}")
    return f"{', '.join(counts)} ({seconds:.0f} s)"


def chain_page(results: Sequence[Result], about: Mapping[str, Any]) -> str:
    """Returns the page: each claim with its source, its prediction and its measurement.

    `about`: the rest of what `--json` writes (platform, dtype, versions, model, seconds).
    """
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    bad = [complaint(result) for result in results if not result["good"]]
    body = [
        paragraph(closing_line(results, about["seconds"]) + f", {about['dtype']} on {about['platform']}; {versions}."),
        paragraph(f"Claims about a whole model are about {about['model']}."),
        paragraph(
            "Every claim is predicted in one way and measured in another: by hand in numpy, by a formula or by finite "
            "differences on the one side, by JAX through the code that trains the models on the other. Shown is the "
            "first entry of what was compared (where a claim is false, the entry that shows it most); the error is the "
            "largest of all entries, relative to the entry itself or to the largest of its array, and a claim holds "
            "when it is within the tolerance. Statements in quotation marks are widely told and false: these are "
            "right here when the measurement refutes them."
        ),
    ]
    if bad:
        body.append(section("What is not as it should be", items(*bad)))
    for group in dict.fromkeys(result["group"] for result in results):
        rows, drawn = [], []
        for result in (result for result in results if result["group"] == group):
            predicted, *measured = result["how"].split("; ", 1)
            parts = [f"Predicted: {predicted}.", *(f"Measured: {part}." for part in measured)]
            parts += [f"Source: {result['source']}.", f"Tolerance: {result['tolerance_why']}."]
            if result["entries"] > 1:
                parts.append(f"{result['entries']:,} entries compared, errors relative to {result['relative_to']}.")
            parts += [f"{text}." for text in (result["note"], result["why"]) if text]
            statement = Html(f"<strong>{markup(result['statement'])}</strong>")
            rows.append([Html(statement + paragraph(" ".join(parts), quiet=True)), *_figures(result)])
            if result.get("curves"):
                alt = f"{result['statement']}: predicted and measured, logarithmic"
                drawn.append(picture(curves_of(result), alt, "Lines: predicted. Markers: measured."))
        body.append(section(group, table(["claim", *_FIGURES], rows), *drawn))
    return page("The chain rule, checked on this machine", *body)


def curves_of(result: Result) -> Chart:
    """A claim's curves, predictions as lines and measurements as markers."""
    curves = []
    for index, each in enumerate(result["curves"]):
        predicted, measured = (np.asarray(each[name]) for name in ("predicted", "measured"))
        curves.append(Curve(each["label"] or "δ", np.arange(len(measured)), measured, None, index, predicted))
    return line_charts([Panel(result["statement"], curves)], Axes(*result["axes"], own=True))
