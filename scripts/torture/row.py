"""What a sweep reports: one row of docs/faults.md."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`held` of `trials` faults of one kind ended as promised; `note` says what was measured besides, in a few words.

    `broken` describes the first few that did not, so that they can be done again (the seed and the place).
    """

    fault: str
    promise: str
    trials: int
    held: int
    note: str = ""
    broken: tuple[str, ...] = ()


def markdown(rows: Sequence[Row]) -> str:
    """The table, a line a row."""
    lines = ["| fault | promise | trials | held | measured besides |", "|---|---|---|---|---|"]
    lines += [f"| {row.fault} | {row.promise} | {row.trials:,} | {row.held:,} | {row.note} |" for row in rows]
    return "\n".join(lines) + "\n"
