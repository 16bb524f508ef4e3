"""What an experiment leaves beside its runs when it ends: report.html, report.md, and means over seeds."""

from pathlib import Path

from ..disk import write_atomically
from ..log.console import Console
from ..report.page import as_html, as_markdown, compare
from ..report.seeds import write_means

# Of metrics.jsonl, all runs together: with more the end of a training would take more than about ten seconds.
MAX_BYTES = 50_000_000


def write_report(root: Path, console: Console) -> None:
    """Writes the report of all runs in `root`, and says where it is. Whatever fails is a warning: training is done."""
    page = root / "report.html"
    try:
        size = sum(log.stat().st_size for log in root.glob("*/metrics.jsonl"))
        if size > MAX_BYTES:
            console.note(f"no report yet ({size / 1e6:.0f} MB of logs): deltaflow compare {root} --html {page}")
            return
        comparison = compare([root])
        for line in comparison.left_out:
            console.warn(line)
        write_atomically(root / "report.md", as_markdown(comparison))
        write_atomically(page, as_html(comparison))
        if named := write_means(root, comparison.groups):
            console.note(f"means over seeds in TensorBoard: NAME@mean, @low and @high of {', '.join(map(repr, named))}")
    except Exception as error:  # of a drawing library, a full disk, a file edited by hand: nothing is lost by it
        console.warn(f"no report: {str(error) or type(error).__name__}")
        return
    console.note(f"report: {page}")
