"""Pages: self-contained HTML, and the comparison of runs as a page and as markdown.

A page is one file that loads nothing, opens from disk, and follows the system's light or dark. Text is escaped, markup
is `Html`; there is no other way into a page. The one script that may run is the page's own, by its hash.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..gradflow.verdict import EXPLODING
from ..text import duration, right_aligned
from .charts import GLYPHS, OTHERS, THEMES, Chart
from .finding import finding
from .groups import Group, config_table, gather, grouped, names_of
from .pictures import picked, pictures
from .tables import ABOVE, Table, final_table, loss_unit, markdown, text, verdict_table


class Html(str):
    """Markup, as opposed to text."""


def markup(content: str) -> Html:
    """Escapes text; returns markup unchanged.

    >>> markup("a < b"), markup(Html("<b>"))
    ('a &lt; b', '<b>')
    """
    return content if isinstance(content, Html) else Html(escape(content))


def formula(content: str) -> Html:
    """Returns text with its indices as subscripts: δ_0, δ_(l+1), x_l.

    >>> formula("|δ_(l+1)| < x_l")
    '|δ<sub>l+1</sub>| &lt; x<sub>l</sub>'
    """
    low = r"([δx])_(?:\((\w\+\w)\)|(\w)\b)"
    return Html(re.sub(low, lambda match: f"{match[1]}<sub>{match[2] or match[3]}</sub>", markup(content)))


def page(title: str, *body: Html, refresh_s: int | None = None) -> str:
    """A whole document, forbidden by its policy to load anything; it loads itself again every `refresh_s` seconds."""
    here, content = Path(__file__), "\n".join((Html(f"<h1>{markup(title)}</h1>"), *body))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    colours = {
        name: "".join(f"--c{i}:{c};" for i, c in enumerate(t["range"]["category"])) for name, t in THEMES.items()
    }
    style = f":root {{{colours['light']}}}\n@media (prefers-color-scheme: dark) {{ :root {{{colours['dark']}}} }}\n"
    style += here.with_suffix(".css").read_text(encoding="utf-8")
    if "<figure data-chart>" in content:
        import vl_convert

        script = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]: without one, all of Vega
        script += here.with_suffix(".js").read_text(encoding="utf-8")
        script = script.replace("</script", "<\\/script")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        content += f'\n<script type="application/json" id="themes">{in_script(THEMES)}</script>'
        content += f'\n<script type="module">{script}</script>'
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += f'<meta name="viewport" content="width=device-width"><title>{markup(title)}</title><style>{style}</style>'
    head += "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{content}\n</body></html>\n'


def in_script(value: Any) -> str:
    """Returns JSON that ends no script: in ASCII, without <.

    >>> in_script(["</script>", "\u2028"])
    '["\\\\u003c/script>","\\\\u2028"]'
    """
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def section(title: str, *body: Html, level: int = 2) -> Html:
    return Html(f"<section><h{level}>{markup(title)}</h{level}>\n" + "\n".join(body) + "</section>")


def paragraph(*content: str, quiet: bool = False) -> Html:
    mark = ' class="quiet"' if quiet else ""
    return Html(f"<p{mark}>{''.join(map(markup, content))}</p>")


def items(*lines: str) -> Html:
    return Html("<ul>" + "".join(f"<li>{markup(line)}</li>" for line in lines) + "</ul>")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table with columns of numbers right-aligned; it scrolls when it is wider than the page.

    On a phone each row is a block of lines with the column's title before each value.

    Raises ValueError: a row has not as many cells as there are columns.
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"expected rows of {len(columns)} cells")
    marks = [' class="right"' if right else "" for right in right_aligned(columns, rows)]

    heads = "".join(f"<th{mark}>{markup(column)}</th>" for column, mark in zip(columns, marks, strict=True))
    labels = [escape(re.sub("<.*?>", "", column) if isinstance(column, Html) else column) for column in columns]
    lines = (
        "".join(
            f'<td{mark} data-label="{label}">{markup(cell)}</td>'
            for label, mark, cell in zip(labels, marks, row, strict=True)
        )
        for row in rows
    )
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return Html(f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>')


def picture(chart: Chart, alt: str, caption: str = "") -> Html:
    """A chart that answers to the pointer; `alt` is what a screen reader says of it."""
    under = f"<figcaption>{markup(caption)}</figcaption>" if caption else ""
    spec = f'<script type="application/json">{in_script(chart | {"description": alt})}</script>'
    return Html(f'<figure data-chart><div class="chart"></div>{spec}{under}</figure>')


def folded(title: str, *body: Html) -> Html:
    """Content that is shown on a click."""
    return Html(f"<details><summary>{markup(title)}</summary>\n" + "\n".join(body) + "</details>")


@dataclass(frozen=True)
class Comparison:
    """`left_out`: a line for each run that has nothing to show yet."""

    title: str
    groups: list[Group]
    left_out: list[str]

    @property
    def count(self) -> str:
        runs, groups = sum(len(group.runs) for group in self.groups), len(self.groups)
        several = f"{runs} runs" if runs != 1 else "1 run"
        return several if runs == groups else f"{several} in {groups} {'groups' if groups > 1 else 'group'}"

    @property
    def finding(self) -> list[str]:
        """At most three sentences about the groups that came to an end."""
        counted = [(group.name, [run.summary for run in group.counted]) for group in self.groups]
        ended = ("done", "nonfinite", "verdict")
        return finding([each for each in counted if all(seed.get("exit_reason") in ended for seed in each[1])])


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Returns the runs in run directories or experiments' folders, grouped. Raises UserError."""
    runs, left_out = gather(folders)
    groups = grouped(runs, names_of(runs))
    titles = list(dict.fromkeys(run.directory.resolve().parent.name for run in runs))
    title = titles[0] if len(titles) == 1 else f"{', '.join(titles[:3])}{' ...' if len(titles) > 3 else ''}"
    return Comparison(title, groups, left_out)


def as_markdown(comparison: Comparison) -> str:
    """Returns the tables of the page as markdown."""
    final = final_table(comparison.groups)
    parts = [f"# {text(comparison.title)}: {comparison.count}\n"]
    parts += ["".join(f"- {text(sentence)}\n" for sentence in comparison.finding)] if comparison.finding else []
    parts += [f"## Final figures\n\n{_about_final(comparison.groups, final)}\n\n{markdown(*final)}"]
    parts += [f"## Verdicts\n\n{markdown(*verdict_table(comparison.groups))}"]
    columns, rows = config_table(comparison.groups)
    parts += [f"## What differs\n\n{markdown(columns, rows) if rows else _ALIKE}"]
    if comparison.left_out:
        parts += ["".join(f"- {text(line)}\n" for line in comparison.left_out)]
    return "\n".join(parts)


def as_html(comparison: Comparison, refresh_s: int | None = None) -> str:
    """Returns the page: the finding, and what it rests on in charts and tables with instructions for reading them."""
    groups, title = comparison.groups, comparison.title
    final = final_table(groups)
    columns, rows = config_table(groups)
    drawn = [
        (each.key, section(each.title, picture(each.chart, f"{title}: {each.alt}", formula(each.caption)), level=2))
        for each in pictures(groups)
    ]
    summaries = [run.summary for group in groups for run in group.runs]
    versions = [" ".join(pair) for each in summaries for pair in (each.get("versions") or {}).items()]
    first = [html for key, html in drawn if key == "delta" or key.startswith("sweep_")]
    docs, name = (
        Path(__file__).resolve().parents[2] / "docs" / "report.md",
        "<code>docs/report.md</code>",
    )  # of a checkout
    return page(
        f"{title}: {comparison.count}",
        _lead(comparison, refresh_s),
        facts(groups),
        _legend(groups),
        *first,
        folded("Words used here: residual stream, δ, gain, verdict", items(*map(formula, _WORDS))),
        section(
            "Final figures",
            paragraph(formula(_about_final(groups, final)), quiet=True),
            table([formula(column) for column in final[0]], final[1]),
        ),
        section(
            "Verdicts",
            paragraph("What the gradient does on its way down, in a word, and the evidence.", quiet=True),
            _long(*verdict_table(groups)),
        ),
        section(
            "What differs",
            *([_long(columns, rows), paragraph("All else is the same.", quiet=True)] if rows else [paragraph(_ALIKE)]),
        ),
        *(html for _, html in drawn if html not in first),
        *([section("Left out", items(*comparison.left_out))] if comparison.left_out else []),
        paragraph(
            "; ".join(["Made by deltaflow from the runs' own files", *dict.fromkeys(versions)]),
            ". How to read this page: ",
            Html(f'<a href="{escape(docs.as_uri())}">{name}</a>' if docs.is_file() else name),
            quiet=True,
        ),
        refresh_s=refresh_s,
    )


def _lead(comparison: Comparison, refresh_s: int | None) -> Html:
    """The finding, and the state of runs that are not finished."""
    lines = comparison.finding
    unfinished = [run for group in comparison.groups for run in group.runs if not run.done]
    if unfinished:
        at = ", ".join(f"{run.name} at step {run.step}" for run in unfinished[:4])
        more = f" and {len(unfinished) - 4} more" if len(unfinished) > 4 else ""
        again = "" if refresh_s is None else f"; this page loads itself again every {refresh_s} s"
        lines.append(f"Unfinished: {at}{more}{again}.")
    return Html(f'<div class="lead">{"".join(map(paragraph, lines))}</div>')


def _legend(groups: Sequence[Group]) -> Html:
    """A button for each group that has a colour, which leaves it out of the charts, and one for all others."""
    colours = picked(groups)
    marks = [
        (name, f'<span style="color:var(--c{i})">{GLYPHS[i]}</span>') for name, i in colours.items() if i is not None
    ]
    marks += [(OTHERS, "")] if None in colours.values() else []
    buttons = (
        f'<button type="button" aria-pressed="true" data-group="{escape(name)}">{mark} {markup(name)}</button>'
        for name, mark in marks
    )
    absent = "<noscript><p>The charts need JavaScript; the finding and the tables do not.</p></noscript>"
    about = "Runs; a click leaves one out of the charts"
    return Html(
        f'{absent}<div class="legend" role="group" title="{about}" aria-label="{about}">{"".join(buttons)}</div>'
    )


def facts(groups: Sequence[Group]) -> Html:
    """Command, date, duration, device and dtype, as far as the runs' summaries have them."""
    summaries = [run.summary for group in groups for run in group.runs]
    walls = {summary["wall_s"] for summary in summaries if summary.get("wall_s") is not None}  # of a group of variants
    entries: dict[str, list[str]] = {
        "command": [
            Html(f"<code>{markup(summary['command'])}</code>") for summary in summaries if summary.get("command")
        ],
        "finished": sorted({str(summary["ended"]) for summary in summaries if summary.get("ended")})[-1:],
        "trained for": [duration(sum(walls))] if walls else [],
        "device": [str(summary["platform"]) for summary in summaries if summary.get("platform")],
        "computed in": [str(summary["dtype"]) for summary in summaries if summary.get("dtype")],
    }
    cells = []
    for key, values in entries.items():
        if distinct := list(dict.fromkeys(map(markup, values))):
            more = [f"and {len(distinct) - 4} more"] * (len(distinct) > 4)
            cells.append(f"<div><dt>{key}</dt> <dd>{', '.join([*distinct[:4], *more])}</dd></div>")
    return Html(f'<dl class="facts">{"".join(cells)}</dl>')


_MOST_ROWS = 15
_ALIKE = "Nothing but names: the configs are the same.\n"


def _about_final(groups: Sequence[Group], final: Table) -> str:
    unit = loss_unit(groups)
    about = f"Losses in {unit}. " if unit else ""
    if any(len(group.counted) > 1 for group in groups):
        about += "Mean over the seeds ± half of the 95 % interval (Student's t)."
        if any(len(group.counted) == 1 for group in groups):
            about += " A single seed has no interval."
        if ABOVE in final[0]:
            about += (
                f" '{ABOVE}' is the mean of the differences of loss/val between runs of the same seed: what a seed "
                "does to all variants alike drops out, so it tells runs apart whose own intervals overlap."
            )
    else:
        about += (
            "One seed each, so no intervals: a small difference may be chance. "
            "Set sweep.seed=[0, 1, 2] when training to know."
        )
    return about + " |δ_0|/|δ_L| and the gain are of the first and of the last watched step."


def _long(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table, folded when it would keep the reader from the rest of the page."""
    whole = table(columns, rows)
    if len(rows) <= _MOST_ROWS:
        return whole
    return folded(f"{len(rows)} rows", whole)


_WORDS = (
    "x_l is the residual stream entering block l: for each token the vector that blocks add to.",
    "δ_l = ∂loss/∂x_l is the gradient there. Backpropagation starts with δ_L at the last block's output and brings it "
    "down to δ_0 at the embedding, one block at a time, by the chain rule.",
    "The gain of block l is |δ_l| / |δ_(l+1)|: what passing back through it does to the gradient's size.",
    "The per-layer gain is one number for all blocks together (the slope of a line through log |δ_l|): below 1 the "
    "gradient shrinks on its way down, above 1 it grows. That is healthy as long as |δ_0|/|δ_L|, about the product of "
    f"all gains, stays within a factor of {10**EXPLODING:,.0f}; beyond, the verdict is vanishing or exploding.",
)
