"""Variants: the grid of a sweep over them, their names, and what each is expected to reach."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .fields import FIELDS, did_you_mean
from .schema import STATES
from .settings import Settings, flat, key_problems, merged, tree
from .yaml import BAD, Node, Place, Problem, clean, show

MAX_VARIANTS = 1000
MAX_NAME = 120
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]*")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # Windows', with any ending
START_FILES = ("config.yaml", "data.json", "tokenizer.json", "choices.json", "summary.json")  # of a run that starts
_OURS = {"ckpt", "metrics.jsonl", *START_FILES, "report.html", "report.md", "compare.html", "compare.md"}


@dataclass(frozen=True)
class Point:
    """The settings of a variant, or of one point of the sweep; `variant` is its name before the sweep added to it."""

    name: str
    variant: str
    place: Place
    settings: Settings


def unsafe(name: str) -> str | None:
    """The reason why a name cannot be the folder of a run or of a variant on some system; None if it can.

    >>> [unsafe(name) is None for name in ("with,seed=0", "../x", "-a", "a.", "NUL.txt", "ckpt", "Report.html", "null")]
    [True, False, False, False, False, False, False, True]
    """
    if len(name) > MAX_NAME:
        return f"expected a folder name of at most {MAX_NAME} characters, got {len(name)}: {show(name)}"
    if not _NAME.fullmatch(name) or ".." in name or name.endswith("."):
        rule = "letters, digits and _ . , = + -, the first a letter or digit, no '..', no dot at the end"
        return f"expected a folder name ({rule}), got {show(name)}"
    if _DEVICE.fullmatch(name):
        reason = "a device on Windows"
    elif name.lower() in _OURS:
        reason = "a name that runs use for their own files"
    elif "tfevents" in name:
        reason = "what TensorBoard takes for a file of events"
    else:
        return None
    return f"expected another folder name, got {show(name)}, which is {reason}"


def grid(sweep: Mapping[str, Node], variants: Sequence[Point], problems: list[Problem]) -> dict[str, list[Node]]:
    """The values of each swept key, checked, for these variants; what is wrong goes to `problems`."""
    axes: dict[str, list[Node]] = {}
    for key, node in sweep.items():
        if node.value and isinstance(node.value, list):
            axes[key] = node.value
        elif node.value is not BAD:
            problems.append(node.problem(f"expected a list of values for {key}, got {show(node.plain)}"))
    sizes = [len(variants), *map(len, axes.values())]
    if (count := math.prod(sizes)) > MAX_VARIANTS:
        place = next(iter(axes.values()))[0].place if axes else variants[MAX_VARIANTS].place
        got = f"{' * '.join(map(str, sizes))} = {count}" if axes else count
        message = f"expected at most {MAX_VARIANTS} variants, got {got}"
        problems.append(Problem(place, "sweep" if axes else "variants", message))
        return {}
    for key, items in axes.items():
        twice = [keys[key] for variant in variants if key in (keys := flat(variant.settings))]
        problems += [node.problem(f"the sweep sets {key} too; keep one of them") for node in twice]
        distinct: dict[str, Node] = {}
        for item in items:
            problems += key_problems(tree([(key, item)]))
            if (first := distinct.setdefault(label(item.plain).lower(), item)) is not item:
                twice = "is given twice" if first.plain == item.plain else "has the same name as a value before it"
                problems.append(item.problem(f"{show(item.plain)} {twice}"))
        axes[key] = list(distinct.values())
    return axes


def points(variants: Iterable[Point], axes: Mapping[str, Sequence[Node]]) -> list[Point]:
    """Every variant at every point of the grid, in the order written; the last swept key turns fastest."""
    spread = []
    for variant in variants:
        for nodes in itertools.product(*axes.values()):
            axis_values = dict(zip(axes, nodes, strict=True))
            name = ",".join([variant.name, *(f"{short(key)}={label(node.plain)}" for key, node in axis_values.items())])
            place = nodes[0].place if nodes else variant.place
            spread.append(Point(name, variant.name, place, merged(variant.settings, tree(axis_values.items()))))
    return spread


def indistinct(points: Iterable[Point]) -> Iterable[Problem]:
    """Problems with names: folders must differ even where case does not count, and each must be possible."""
    first: dict[str, str] = {}
    for point in points:
        key = clean(f"variants.{point.name}") if point.name == point.variant else "sweep"
        twin = first.setdefault(point.name.lower(), point.name)
        if message := unsafe(point.name):
            yield Problem(point.place, key, message)
            if key == "sweep":
                return
        elif twin is not point.name:
            message = f"expected names that differ in more than case, got {show(twin)} and {show(point.name)}"
            yield Problem(point.place, key, message)


def short(key: str) -> str:
    """The last part of a key when no other key ends like it, else the whole."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in FIELDS) == 1 else key


def label(value: Any) -> str:
    """A value as part of a folder's name: 0.0001, 1e-5, none, 0.9+0.99."""
    if isinstance(value, list):
        return "+".join(label(item) for item in value)
    text = value if isinstance(value, str) else show(value)
    return re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9_.+-]+", "-", text))


def promises(tags: Settings) -> Iterable[Problem]:
    """Problems with what is expected of one variant: tags with [low, high], and verdict with a state."""
    for tag, node in flat(tags).items():
        value = node.plain
        if value is BAD:
            continue
        if tag == "verdict":
            if value not in STATES:
                hint = did_you_mean(value, STATES) if isinstance(value, str) else ""
                yield node.problem(f"expected one of {', '.join(STATES)}, got {show(value)}{hint}")
        elif not (isinstance(value, list) and len(value) == 2 and all(type(x) in (int, float) for x in value)):
            yield node.problem(f"expected [low, high], two numbers, got {show(value)}")
        elif not (-math.inf < value[0] <= value[1] < math.inf):
            yield node.problem(f"expected finite numbers, low <= high, got {show(value)}")
