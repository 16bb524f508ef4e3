"""Comparison of runs, as a page and as markdown: the finding, and the charts and tables that it rests on."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..gradflow.verdict import DEAD_QK, EXPLODING
from ..text import duration
from .charts import GLYPHS, OTHERS
from .finding import finding
from .groups import Group, config_table, gather, names_of, seed_groups
from .page import Html, folded, formula, items, markup, page, paragraph, picture, section, table
from .pictures import group_colours, pictures
from .read import ENDED
from .tables import ABOVE, Table, final_table, loss_unit, markdown, markdown_text, verdict_table


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
        return finding([each for each in counted if all(seed.get("exit_reason") in ENDED for seed in each[1])])


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Returns the runs in run directories or experiments' folders, grouped. Raises UserError."""
    runs, left_out = gather(folders)
    groups = seed_groups(runs, names_of(runs))
    titles = list(dict.fromkeys(run.directory.resolve().parent.name for run in runs))
    title = titles[0] if len(titles) == 1 else f"{', '.join(titles[:3])}{' ...' if len(titles) > 3 else ''}"
    return Comparison(title, groups, left_out)


def as_markdown(comparison: Comparison) -> str:
    """Returns the tables of the page as markdown."""
    final = final_table(comparison.groups)
    parts = [f"# {markdown_text(comparison.title)}: {comparison.count}\n"]
    sentences = "".join(f"- {markdown_text(sentence)}\n" for sentence in comparison.finding)
    parts += [sentences] if sentences else []
    parts += [f"## Final figures\n\n{_about_final(comparison.groups, final)}\n\n{markdown(*final)}"]
    parts += [f"## Verdicts\n\n{markdown(*verdict_table(comparison.groups))}"]
    columns, rows = config_table(comparison.groups)
    parts += [f"## What differs\n\n{markdown(columns, rows) if rows else _ALIKE}"]
    if comparison.left_out:
        parts += ["".join(f"- {markdown_text(line)}\n" for line in comparison.left_out)]
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
        folded("Words used here: residual stream, δ, gain, verdict, Q and K", items(*map(formula, _WORDS))),
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
    colours = group_colours(groups)
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
    "Q and K, attention's queries and keys, decide which tokens look at which; V and O, its values and output, what is "
    "passed on. Attention starves (dead_qk) if Q and K get less than "
    f"1/{10**-DEAD_QK:,.0f} of the gradient of V and O.",
)
