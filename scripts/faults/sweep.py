"""A sweep: one kind of fault at many places, tried one after another; and its row of docs/faults.md."""

import importlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

UNBROKEN = "parameters bitwise and logged values as of an unbroken run, each step once"
HELD = ("", 0.0)


class Broken(Exception):
    """A promise that was not kept."""


class Sweep(NamedTuple):
    """`trial(place)` puts the fault in one place and raises if the promise is not kept.

    It returns a label to count and the seconds taken; HELD is neither.
    """

    fault: str
    promise: str
    places: Sequence[Any]
    trial: Callable[[Any], tuple[str, float]]


class Row(NamedTuple):
    """broken: the first few places where the promise was not kept, and why. note: labels and seconds in words."""

    fault: str
    promise: str
    trials: int
    held: int
    note: str = ""
    broken: tuple[str, ...] = ()


def row_of(sweep: Sweep, scale: float = 1.0, shift: float = 0.0) -> Row:
    """Tries every place, or a share of them that is spread evenly; `shift` in [0, 1) selects another share."""
    count = max(1, round(min(scale, 1.0) * len(sweep.places)))
    labels, slowest, broken = Counter(), 0.0, []
    for index in range(count):
        place = sweep.places[int((index + shift) * len(sweep.places) / count)]
        try:
            label, seconds = sweep.trial(place)
        except BaseException as error:  # an interrupt that escapes from a run is a broken promise too
            broken.append(f"{place}: {type(error).__name__}: {error}")
        else:
            labels[label] += 1
            slowest = max(slowest, seconds)
    notes = [f"{number:,} {label}" for label, number in sorted(labels.items()) if label]
    notes += [f"the slowest took {slowest:.2f} s"] if slowest else []
    return Row(sweep.fault, sweep.promise, count, count - len(broken), "; ".join(notes), tuple(broken[:5]))


def rows_of(name: str, scale: float, seed: int) -> tuple[list[Row], list[str]]:
    """Returns the rows of a module of this package with `sweeps(seed)`, and the lines to print.

    An error in it is a broken row; other modules go on.
    """
    began, rows, shift = time.monotonic(), [], np.random.default_rng(seed).random()
    try:
        for sweep in importlib.import_module(f"scripts.faults.{name}").sweeps(seed):
            rows.append(row_of(sweep, scale, shift))
    except BaseException as error:
        rows.append(Row(f"the sweep {name} itself", "ends", 1, 0, broken=(f"{type(error).__name__}: {error}",)))
    lines = [f"{name}: {time.monotonic() - began:.0f} s"]
    for row in rows:
        lines.append(f"  {row.fault}: {row.held:,} of {row.trials:,} held{row.note and '; '}{row.note}")
        lines += [f"    broken: {line}" for line in row.broken]
    return rows, lines


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table, a line a row."""
    lines = ["| fault | promise | trials | held | further figures |", "|---|---|---|---|---|"]
    lines += [f"| {row.fault} | {row.promise} | {row.trials:,} | {row.held:,} | {row.note} |" for row in rows]
    return "\n".join(lines) + "\n"
