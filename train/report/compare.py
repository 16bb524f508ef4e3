"""Runs side by side: what differs in their configs, what they ended with, what their gradients did.

One self-contained HTML page, and the same tables in markdown. Files in, text out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .final import ABOVE, final_table, loss_unit, verdict_table
from .gather import gather, names_of
from .groups import Group, differences, grouped
from .html import Html, folded, formula, items, page, paragraph, picture, section, table
from .tables import Table, markdown, text


@dataclass(frozen=True)
class Comparison:
    """`left_out`: a line for each run that has nothing to show yet."""

    title: str
    groups: list[Group]
    left_out: list[str]

    @property
    def final(self) -> Table:
        return final_table(self.groups)

    @property
    def differences(self) -> Table:
        return differences(self.groups)

    @property
    def verdicts(self) -> Table:
        return verdict_table(self.groups)


def compare(folders: Sequence[str | Path]) -> Comparison:
    """The runs in these folders: run directories, or experiments'. Raises UserError."""
    runs, left_out = gather(folders)
    groups = grouped(runs, names_of(runs))
    titles = list(dict.fromkeys(run.directory.resolve().parent.name for run in runs))
    title = titles[0] if len(titles) == 1 else f"{', '.join(titles[:3])}{' ...' if len(titles) > 3 else ''}"
    return Comparison(title, groups, left_out)


def as_markdown(comparison: Comparison) -> str:
    """The tables of the page."""
    parts = [f"# {text(comparison.title)}: {_count(comparison)}\n"]
    parts += [f"## Final figures\n\n{_about_final(comparison)}\n\n{markdown(*comparison.final)}"]
    parts += [f"## Verdicts\n\n{markdown(*comparison.verdicts)}"]
    columns, rows = comparison.differences
    parts += [f"## What differs\n\n{markdown(columns, rows) if rows else _ALIKE}"]
    if comparison.left_out:
        parts += ["".join(f"- {text(line)}\n" for line in comparison.left_out)]
    return "\n".join(parts)


def as_html(comparison: Comparison) -> str:
    """The page: tables, and pictures with how to read them."""
    from .pictures import pictures  # matplotlib is slow to import

    columns, rows = comparison.differences
    drawn = [
        section(each.title, _drawing(each.figure, f"{comparison.title}: {each.says}", formula(each.caption)), level=3)
        for each in pictures(comparison.groups)
    ]
    return page(
        f"{comparison.title}: {_count(comparison)}",
        paragraph(*_about(comparison)),
        section("Final figures", paragraph(formula(_about_final(comparison)), quiet=True), _signs(comparison.final)),
        section(
            "Verdicts",
            paragraph("What the gradient does on its way down, in a word, and the evidence.", quiet=True),
            _long(comparison.verdicts),
        ),
        section("What differs", _long((columns, rows)) if rows else paragraph(_ALIKE)),
        section("Words used below", items(*map(formula, _WORDS))),
        section("Pictures", *drawn),
        *([section("Left out", items(*comparison.left_out))] if comparison.left_out else []),
        paragraph(_origin(comparison), quiet=True),
    )


_MOST_ROWS = 15
_ALIKE = "Nothing but names: the configs are the same.\n"


def _drawing(figure, says: str, caption: Html) -> Html:
    from .charts import to_svg

    return picture(to_svg(figure), says, caption)


def _count(comparison: Comparison) -> str:
    runs = sum(len(group.runs) for group in comparison.groups)
    groups = len(comparison.groups)
    several = f"{runs} runs" if runs != 1 else "1 run"
    return several if runs == groups else f"{several} in {groups} {'groups' if groups > 1 else 'group'}"


def _about(comparison: Comparison) -> list[str]:
    about = ["Where the gradient goes, layer by layer, and what training makes of it."]
    if len(comparison.groups) > 1:
        about.append(" What differs between the configs is in a table below; all else is the same.")
    if any(len(group.runs) > 1 for group in comparison.groups):
        about.append(" Runs that differ only in their seed are one group.")
    return about


def _about_final(comparison: Comparison) -> str:
    unit = loss_unit(comparison.groups)
    about = f"Losses in {unit}. " if unit else ""
    if any(len(group.shown) > 1 for group in comparison.groups):
        about += "Mean over the seeds ± half of the 95 % interval (Student's t)."
        if any(len(group.shown) == 1 for group in comparison.groups):
            about += " A single seed has no interval."
        if ABOVE in comparison.final[0]:
            about += (
                f" '{ABOVE}' is the mean of the differences of loss/val between runs of the same seed: what a seed "
                "does to all variants alike drops out, so it tells runs apart whose own intervals overlap."
            )
    else:
        about += (
            "One seed each, so no intervals: a small difference may be chance. "
            "Set sweep.seed=[0, 1, 2] when training to know."
        )
    return about + " |δ_0|/|δ_L| and the gain are of the last watched step."


def _signs(columns_and_rows: Table) -> Html:
    columns, rows = columns_and_rows
    return table([formula(column) for column in columns], rows)


def _long(columns_and_rows: Table) -> Html:
    """A table that does not keep the reader from what comes after it."""
    _, rows = columns_and_rows
    whole = table(*columns_and_rows)
    return whole if len(rows) <= _MOST_ROWS else folded(f"{len(rows)} rows", whole)


_WORDS = (
    "x_l is the residual stream entering block l: for each token the vector that blocks add to.",
    "δ_l = ∂loss/∂x_l is the gradient there. Backpropagation starts with δ_L at the last block's output and brings it "
    "down to δ_0 at the embedding, one block at a time, by the chain rule.",
    "The gain of block l is |δ_l| / |δ_(l+1)|: what passing back through it does to the gradient's size.",
    "The per-layer gain is one number for all blocks together (the slope of a line through log |δ_l|): below 1 the "
    "gradient vanishes on its way down, above 1 it explodes.",
)


def _origin(comparison: Comparison) -> str:
    """Where the runs were made."""
    summaries = [run.summary or {} for group in comparison.groups for run in group.runs]
    versions = [known for summary in summaries if isinstance(known := summary.get("versions"), dict)]
    machines = [str(summary["platform"]) for summary in summaries if "platform" in summary]
    machines += [f"jax {known['jax']}" for known in versions if "jax" in known]
    return "; ".join(["Made by deltaflow from the runs' own files", *dict.fromkeys(machines)]) + "."
