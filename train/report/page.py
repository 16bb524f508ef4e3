"""Pages: self-contained HTML, and the comparison of runs as a page and as markdown.

A page is one file that loads nothing, opens from disk, and follows the system's light or dark. Text is escaped, markup
is `Html`; there is no other way into a page.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..gradflow.verdict import EXPLODING
from ..text import right_aligned
from .finding import finding
from .groups import Group, config_table, gather, grouped, names_of
from .tables import ABOVE, Table, final_table, loss_unit, markdown, text, verdict_table

_STYLE = """
:root { color-scheme: light dark;
  --line: #d0d7de; --quiet: #57606a; --ink: #1f2328; --paper: #ffffff; --raised: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --quiet: #9198a1; --ink: #e6edf3; --paper: #0d1117; --raised: #161b22; }
}
body { margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 0.5rem; }
p, li, figcaption { max-width: 48rem; }
figure { margin: 1rem 0; }
figcaption, .quiet { color: var(--quiet); font-size: 0.9rem; }
/* Pictures keep the white ground that their colours are made for. */
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--raised); }
.right { text-align: right; font-variant-numeric: tabular-nums; }
td.right { white-space: nowrap; }
summary { cursor: pointer; color: var(--quiet); }
sub { line-height: 0; }
code { background: var(--raised); padding: 0.1em 0.3em; border-radius: 4px; overflow-wrap: anywhere; }
"""


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


def page(title: str, *body: Html) -> str:
    """A whole document, forbidden by its policy to load or run anything."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{markup(title)}</title>'
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head += f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{_STYLE}</style>'
    content = "\n".join((Html(f"<h1>{markup(title)}</h1>"), *body))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{content}\n</body></html>\n'


def section(title: str, *body: Html, level: int = 2) -> Html:
    return Html(f"<section><h{level}>{markup(title)}</h{level}>\n" + "\n".join(body) + "</section>")


def paragraph(*content: str, quiet: bool = False) -> Html:
    mark = ' class="quiet"' if quiet else ""
    return Html(f"<p{mark}>{''.join(map(markup, content))}</p>")


def items(*lines: str) -> Html:
    return Html("<ul>" + "".join(f"<li>{markup(line)}</li>" for line in lines) + "</ul>")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table that scrolls when it is wider than the page; columns of numbers are right-aligned.

    Raises ValueError: a row has not as many cells as there are columns.
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"expected rows of {len(columns)} cells")
    marks = [' class="right"' if right else "" for right in right_aligned(columns, rows)]

    def line(cells: Sequence[str], tag: str) -> str:
        inner = (f"<{tag}{mark}>{markup(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return Html(f'<div class="scroll"><table><thead>{line(columns, "th")}</thead>\n<tbody>{body}</tbody></table></div>')


def picture(svg: str, alt: str, caption: str = "") -> Html:
    """An SVG as an image of its own, since ids in two inlined drawings could be the same; `alt` stands in its place."""
    data = base64.b64encode(svg.encode()).decode()
    under = f"<figcaption>{markup(caption)}</figcaption>" if caption else ""
    return Html(f'<figure><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">{under}</figure>')


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
        counted = [(group.name, [run.summary or {} for run in group.counted]) for group in self.groups]
        ended = ("done", "nonfinite")
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


def as_html(comparison: Comparison) -> str:
    """Returns the page: tables, and figures with instructions for reading them."""
    from . import charts
    from .pictures import pictures  # matplotlib is slow to import

    groups, title = comparison.groups, comparison.title
    final = final_table(groups)
    columns, rows = config_table(groups)
    about = ["Where the gradient goes, layer by layer, and what training makes of it."]
    if len(groups) > 1:
        about.append(" What differs between the configs is in a table below; all else is the same.")
    if any(len(group.runs) > 1 for group in groups):
        about.append(" Runs that differ only in their seed are one group.")
    summaries = [run.summary or {} for group in groups for run in group.runs]
    machines = [str(summary["platform"]) for summary in summaries if "platform" in summary]
    versions = [summary.get("versions") or {} for summary in summaries]
    machines += [f"jax {each['jax']}" for each in versions if "jax" in each]
    drawn = [
        section(each.title, picture(charts.to_svg(each.figure), f"{title}: {each.alt}", formula(each.caption)), level=3)
        for each in pictures(groups)
    ]
    return page(
        f"{title}: {comparison.count}",
        paragraph(*about),
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
        section("What differs", _long(columns, rows) if rows else paragraph(_ALIKE)),
        section("Words used below", items(*map(formula, _WORDS))),
        section("Pictures", *drawn),
        *([section("Left out", items(*comparison.left_out))] if comparison.left_out else []),
        paragraph(
            "; ".join(["Made by deltaflow from the runs' own files", *dict.fromkeys(machines)]) + ".", quiet=True
        ),
    )


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
    return about + " start → end: at the first and at the last watched step."


def _long(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table, folded when it would keep the reader from the rest of the page."""
    whole = table(columns, rows)
    if len(rows) <= _MOST_ROWS:
        return whole
    return Html(f"<details><summary>{len(rows)} rows</summary>\n{whole}</details>")


_WORDS = (
    "x_l is the residual stream entering block l: for each token the vector that blocks add to.",
    "δ_l = ∂loss/∂x_l is the gradient there. Backpropagation starts with δ_L at the last block's output and brings it "
    "down to δ_0 at the embedding, one block at a time, by the chain rule.",
    "The gain of block l is |δ_l| / |δ_(l+1)|: what passing back through it does to the gradient's size.",
    "The per-layer gain is one number for all blocks together (the slope of a line through log |δ_l|): below 1 the "
    "gradient shrinks on its way down, above 1 it grows. That is healthy as long as |δ_0|/|δ_L|, about the product of "
    f"all gains, stays within a factor of {10**EXPLODING:,.0f}; beyond, the verdict is vanishing or exploding.",
)
