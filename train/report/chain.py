"""What `deltaflow chain` found, as tables for the terminal and as a page. From plain data, as its --json has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..text import MISSING, number
from .charts import predicted_and_measured, to_svg
from .html import Html, items, markup, page, paragraph, picture, section, table
from .tables import Table

Found = Mapping[str, Any]

_HOLDS = {
    "holds": "yes",
    "fails": "NO",
    "refuted": "false: refuted",
    "not refuted": "NOT REFUTED",
    "error": "ERROR",
}
_SIGNS = {"=": "", "<=": "≤ ", ">=": "≥ "}
_FIGURES = ["predicted", "measured", "error", "tolerance", "holds"]


def chain_table(results: Sequence[Found]) -> Table:
    """A row a claim, by id, with its statement at the end."""
    return ["claim", *_FIGURES, "in words"], [[r["id"], *_figures(r), r["statement"]] for r in results]


def _figures(result: Found) -> list[str]:
    predicted = result["predicted"]
    return [
        MISSING if predicted is None else _SIGNS[result["relation"]] + _short(predicted),
        MISSING if predicted is None else _short(result["measured"]),
        number(result["error"], digits=2, scientific=True),
        number(result["tolerance"], digits=2, scientific=True),
        _HOLDS[result["status"]],
    ]


def _short(x: float) -> str:
    """Whole numbers are written as such.

    >>> _short(64.0), _short(-0.25), _short(2.65614e-5)
    ('64', '-0.2500', '2.656e-05')
    """
    return str(int(x)) if x == int(x) and abs(x) < 1e5 else number(x)


def complaint(result: Found) -> str:
    """One line for a claim that is not what it should be."""
    if result["status"] == "error":
        return f"{result['id']}: could not be measured: {result['why']}"
    predicted, measured, error, tolerance, _ = _figures(result)
    at = f" ({result['at']})" if result["at"] else ""
    what = "a false belief was borne out" if result["belief"] else "does not hold"
    return f"{result['id']}: {what}: predicted {predicted}, measured {measured}{at}; error {error}, {tolerance} allowed"


def closing_line(results: Sequence[Found], seconds: float) -> str:
    """How many are what they should be."""
    laws, beliefs = ([r for r in results if r["belief"] is kind] for kind in (False, True))
    counts = [_count(laws, "laws", "hold"), _count(beliefs, "popular beliefs", "are refuted")]
    return f"{', '.join(count for count in counts if count)} ({seconds:.0f} s)"


def _count(results: Sequence[Found], what: str, how: str) -> str:
    good = sum(result["good"] for result in results)
    return f"{good} of {len(results)} {what} {how}" if results else ""


def chain_page(results: Sequence[Found], about: Mapping[str, Any]) -> str:
    """The whole page: each claim with its source, how it was predicted and how measured; `about`: where and when."""
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
        body.append(_group(group, [result for result in results if result["group"] == group]))
    return page("The chain rule, checked on this machine", *body)


def _group(title: str, results: Sequence[Found]) -> Html:
    rows = [[_claim(r), *_figures(r)] for r in results]
    return section(title, table(["claim", *_FIGURES], rows), *(_picture(r) for r in results if r.get("curves")))


def _claim(result: Found) -> Html:
    parts = result["how"].split("; ", 1)
    told = [f"Predicted: {parts[0]}.", *(f"Measured: {part}." for part in parts[1:]), f"Source: {result['source']}."]
    told.append(f"Tolerance: {result['tolerance_why']}.")
    if result["entries"] > 1:
        told.append(f"{result['entries']:,} entries compared, errors relative to {result['relative_to']}.")
    told += [f"{text}." for text in (result["note"], result["why"]) if text]
    return Html(f"<strong>{markup(result['statement'])}</strong>" + paragraph(" ".join(told), quiet=True))


def curves_of(result: Found) -> Figure:
    """A claim's curves, the prediction as lines and the measurement as markers."""
    series = {
        curve["label"] or "δ": (np.asarray(curve["predicted"]), np.asarray(curve["measured"]))
        for curve in result["curves"]
    }
    return predicted_and_measured(series, result["statement"], *result["axes"])


def _picture(result: Found) -> Html:
    return picture(to_svg(curves_of(result)), f"{result['statement']}: predicted and measured, logarithmic")
