"""`deltaflow compare RUN... [--html [FILE]] [--markdown [FILE]]`."""

import argparse

from .types import named_file


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a variant's run directory (runs/quickstart/with) or an experiment's (runs/quickstart: all in it)",
    )
    for option, ending, what in (("--html", ".html", "a page with charts"), ("--markdown", ".md", "the tables")):
        parser.add_argument(
            option,
            nargs="?",
            type=named_file(ending, hint="; give the runs first"),
            const=f"compare{ending}",
            metavar="FILE",
            help=f"write {what} (without FILE: compare{ending} in this folder)",
        )


def run(parsed: argparse.Namespace) -> int:
    """Prints the tables, and writes a page and markdown on request. Raises UserError."""
    from ..disk import write_atomically
    from ..log.console import Console
    from ..report.comparison import as_html, as_markdown, compare
    from ..report.groups import config_table
    from ..report.tables import final_table, verdict_table
    from ..text import command

    console = Console()
    comparison = compare(parsed.runs)
    console.table(f"{comparison.title}: final figures", *final_table(comparison.groups))
    columns, rows = config_table(comparison.groups)
    if rows:
        console.table("what differs", columns, rows)
    console.table("verdicts", *verdict_table(comparison.groups))
    console.finding(comparison.finding)
    for line in comparison.left_out:
        console.warn(line)
    for file, render in ((parsed.html, as_html), (parsed.markdown, as_markdown)):
        if file is not None:
            write_atomically(file, render(comparison))
            console.note(f"written: {file}")
    if parsed.html is None:
        console.note("charts, in compare.html in this folder:")
        console.command(command("compare", *parsed.runs, "--html"))
    return 0
