"""Results of sweeps: one row of docs/faults.md for each kind of fault."""

import importlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`held` of `trials` faults of one kind ended as promised; `note` has further figures in a few words.

    `broken` describes the first few that did not, so that they can be done again (the seed and the place).
    """

    fault: str
    promise: str
    trials: int
    held: int
    note: str = ""
    broken: tuple[str, ...] = ()


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table, a line a row."""
    lines = ["| fault | promise | trials | held | further figures |", "|---|---|---|---|---|"]
    lines += [f"| {row.fault} | {row.promise} | {row.trials:,} | {row.held:,} | {row.note} |" for row in rows]
    return "\n".join(lines) + "\n"


def sweep(name: str, scale: float, seed: int) -> tuple[list[Row], list[str]]:
    """Returns the rows of a sweep (a module beside this one) and the lines to print.

    An error in it is a broken row; the other sweeps go on.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    began, rows = time.monotonic(), []
    try:
        for row in importlib.import_module(f"scripts.faults.{name}").rows(scale, seed):
            rows.append(row)
    except BaseException as error:
        rows.append(Row(f"the sweep {name} itself", "ends", 1, 0, broken=(f"{type(error).__name__}: {error}",)))
    lines = [f"{name}: {time.monotonic() - began:.0f} s"]
    for row in rows:
        lines.append(f"  {row.fault}: {row.held:,} of {row.trials:,} held{row.note and '; '}{row.note}")
        lines += [f"    broken: {line}" for line in row.broken]
    return rows, lines
