"""`deltaflow coordcheck CONFIG [key=value ...] [--only width|depth] [--widths N,N] [--depths N,N] [--html FILE]`."""

import argparse

from ..config.checks import MAX_WIDTH
from ..config.load import load
from .types import add_config, integer, integers, named_file, new_file


def arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "model.base_width=64")
    parser.add_argument("--only", choices=("width", "depth"), help="one of the two sweeps (default: both)")
    for option, default, top, key in (
        ("--widths", "64,128,256,512", MAX_WIDTH, "model.width"),
        ("--depths", "2,4,8,16", 10_000, "model.layers"),
    ):
        text = f"values of {key} (default {default})"
        parser.add_argument(option, type=integers(1, top), default=default, metavar="N,N,...", help=text)
    parser.add_argument("--steps", type=integer(1, 100), default=5, metavar="N", help="training steps (default 5)")
    parser.add_argument("--seeds", type=integer(1, 100), default=2, metavar="N", help="initial weights (default 2)")
    parser.add_argument(
        "--html", type=named_file(".html"), metavar="FILE", help="write charts and slopes there as a page"
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the measurement there as JSON")


def run(parsed: argparse.Namespace) -> int:
    """Prints two tables and a verdict for each variant and sweep; 1 when one of them is not flat.

    Raises ConfigError, DataError, UserError.
    """
    experiment = load(parsed.config, parsed.overrides)
    from ..disk import write_atomically, write_json
    from ..log.console import Console
    from ..report.coordcheck import coordinates_page, heading, sizes_table, slopes_table, verdict_line
    from ..run.coordcheck import coordcheck

    console, results = Console(), []
    sweeps = {"width": parsed.widths, "depth": parsed.depths}
    sweeps = {over: sizes for over, sizes in sweeps.items() if parsed.only in (None, over)}
    for result in coordcheck(experiment, sweeps, parsed.steps, parsed.seeds):
        console.table(f"{heading(result)}: rms after step {parsed.steps}", *sizes_table(result))
        console.table(f"slope of log2 rms over log2 {result['over']}", *slopes_table(result))
        console.note(verdict_line(result))
        console.note("")
        results.append(result)
    if parsed.json is not None:
        write_json(parsed.json, results)
    if parsed.html is not None:
        write_atomically(parsed.html, coordinates_page(results))
    return 0 if all(result["flat"] for result in results) else 1
