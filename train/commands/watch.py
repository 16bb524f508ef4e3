"""`deltaflow watch RUN [--every SECONDS]`: the report of runs in progress."""

import argparse
import time
from pathlib import Path

from ..errors import UserError
from .types import integer


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_directory", metavar="RUN", help="an experiment's folder (runs/quickstart), or a variant's run directory"
    )
    parser.add_argument(
        "--every", type=integer(1, 86_400), default=30, metavar="SECONDS", help="between two reports (default 30)"
    )


def run(parsed: argparse.Namespace) -> int:
    """Rewrites report.html in RUN until no process trains there, or Ctrl-C. Raises UserError."""
    from ..disk import write_atomically
    from ..log.console import Console
    from ..report.comparison import as_html, compare
    from ..store.lock import held

    console, folder = Console(), Path(parsed.run_directory)
    page, busy, printed = folder / "report.html", True, ""

    def training() -> bool:
        return any(held(directory) for directory in (folder, *folder.glob("*/")))

    try:
        while busy:
            began = time.monotonic()
            # Variants of another shape start right after these: a second look, when the first one may fall between.
            busy = training() or (time.sleep(1.0) or training())
            try:
                write_atomically(page, as_html(compare([folder]), parsed.every if busy else None))
                line = f"report: {page.resolve().as_uri()}" + (f" (every {parsed.every} s; Ctrl-C ends)" * busy)
            except UserError as error:  # a training that has not logged yet, a full disk
                if not busy:
                    raise
                line = f"no report yet: {error}"
            if busy and line != printed:
                console.note(line)
                printed = line
            if busy:  # at most half of the time goes into reports of long logs
                took = time.monotonic() - began
                time.sleep(max(parsed.every - took, took))
    except KeyboardInterrupt:
        if page.exists():
            write_atomically(page, as_html(compare([folder])))  # which does not load itself again
        console.note("no longer watched")
        return 0
    console.note(f"nothing trains here now; the report is complete: {page.resolve().as_uri()}")
    return 0
