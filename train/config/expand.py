"""From an experiment as written to its variants: the sweep's grid over them, their names, what each promises."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from .fields import FIELDS, did_you_mean
from .names import safe, unsafe
from .overrides import Draft, Overrides, merged
from .schema import STATES
from .yaml12 import BAD, Node, Problem, clean, number, show

MAX_VARIANTS = 1000


def expand(draft: Draft) -> list[Overrides]:
    """The variants, each with its full name and all it sets, in the order written; the last swept key turns fastest.

    What is wrong with names and with the grid is reported to the draft; a grid that is wrong is left out.
    """
    variants = list(draft.variants.values()) or [Overrides("main", "main", draft.source, {})]
    for variant in draft.variants.values():
        if not safe(variant.name):
            draft.problems.append(Problem(variant.place, clean(f"variants.{variant.name}"), unsafe(variant.name)))
    grid = _grid(draft)
    count = len(variants) * math.prod(len(nodes) for nodes in grid.values())
    if count > MAX_VARIANTS:
        sizes = " * ".join(str(size) for size in (len(variants), *map(len, grid.values())))
        place = next(iter(grid.values()))[0].place if grid else variants[MAX_VARIANTS].place
        message = f"expected at most {MAX_VARIANTS} variants, got {f'{sizes} = {count}' if grid else count}"
        draft.problems.append(Problem(place, "sweep" if grid else "variants", message))
        grid, variants = {}, variants[:MAX_VARIANTS]
    for variant in variants:
        for key in grid.keys() & variant.keys.keys():
            draft.report(variant.keys[key], f"the sweep sets {key} too; keep one of them")
    points = [_point(variant, grid, nodes) for variant in variants for nodes in itertools.product(*grid.values())]
    _distinct(draft, points)
    return points


def _grid(draft: Draft) -> dict[str, list[Node]]:
    grid: dict[str, list[Node]] = {}
    for key, node in draft.sweep.items():
        if isinstance(node.value, list) and node.value:
            grid[key] = distinct = []
            labels: set[str] = set()
            for item in node.value:
                name = label(item.plain).lower()
                if name in labels:
                    draft.report(item, f"{show(item.plain)} has the same name as a value before it")
                else:
                    distinct.append(item)
                labels.add(name)
        else:
            draft.doubts.add(key)
            if node.value is not BAD:
                draft.report(node, f"expected a list of values for {key}, got {show(node.plain)}")
    return grid


def _point(variant: Overrides, grid: dict[str, list[Node]], nodes: Sequence[Node]) -> Overrides:
    if not grid:
        return variant
    settings = dict(zip(grid, nodes, strict=True))
    name = ",".join([variant.name, *(f"{short(key)}={label(node.plain)}" for key, node in settings.items())])
    return Overrides(name, variant.name, nodes[0].place, merged(variant.keys, settings))


def _distinct(draft: Draft, points: list[Overrides]) -> None:
    """Folders must differ even where case does not count, and their names must fit."""
    seen: dict[str, str] = {}
    for point in points:
        key = "variants" if point.name == point.variant else "sweep"
        where = clean(f"variants.{point.name}") if key == "variants" else key
        twin = seen.setdefault(point.name.lower(), point.name)
        if twin is not point.name and safe(point.variant):
            message = f"expected names that differ in more than case, got {show(twin)} and {show(point.name)}"
            draft.problems.append(Problem(point.place, where, message))
        if key == "sweep" and safe(point.variant) and not safe(point.name):
            draft.problems.append(Problem(point.place, where, unsafe(point.name)))
            break


def short(key: str) -> str:
    """The last part of a key when no other key ends like it, else the whole."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in FIELDS) == 1 else key


def label(value: Any) -> str:
    """A value as part of a folder's name: 0.0001, 1e-5, none, 0.9+0.99."""
    if isinstance(value, list):
        return "+".join(label(item) for item in value)
    text = number(value) if isinstance(value, float) else value if isinstance(value, str) else show(value)
    return re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9_.+-]+", "-", text))


def expectations(draft: Draft, points: Sequence[Overrides]) -> dict[str, dict[str, Any]]:
    """What each variant promises, by full name; an entry for a variant counts for all its sweep points.

    Entries of the file for variants that the command line took away are left out; all else that is wrong is
    reported to the draft.
    """
    names = {name for point in points for name in (point.variant, point.name)}
    checked: dict[str, dict[str, Any]] = {}
    for name, node in draft.expect.items():
        if name in names:
            checked[name] = _promise(draft, node)
        elif not (draft.reshaped and node.place.source == draft.source.source):
            draft.report(node, f"no such variant{did_you_mean(name, names)}")
    promised = {point.name: {**checked.get(point.variant, {}), **checked.get(point.name, {})} for point in points}
    return {name: tags for name, tags in promised.items() if tags}


def _promise(draft: Draft, node: Node) -> dict[str, Any]:
    if not isinstance(node.value, dict):
        if node.value is not BAD:
            draft.report(node, f"expected a mapping of tags to [low, high], got {show(node.plain)}")
        return {}
    for tag, child in node.value.items():
        value = child.plain
        if tag == "verdict":
            if value is not BAD and value not in STATES:
                hint = did_you_mean(value, STATES) if isinstance(value, str) else ""
                draft.report(child, f"expected one of {', '.join(STATES)}, got {show(value)}{hint}")
        elif value is not BAD and not (isinstance(value, list) and len(value) == 2 and all(map(_finite, value))):
            draft.report(child, f"expected [low, high], two numbers, got {show(value)}")
        elif value is not BAD and value[0] > value[1]:
            draft.report(child, f"expected low <= high, got {show(value)}")
    return node.plain


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
