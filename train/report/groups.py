"""Runs that differ in nothing but their seeds are one group; what the groups differ in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ..config.schema import LABELS
from ..config.yaml import show
from ..text import MISSING
from .read import Run, depth_series
from .tables import Table

SEEDS = ("seed", "data.seed")  # data.seed follows seed unless it is set
_KEYS_DOWN = 6  # groups; with more, a table of differences has a row for each group


@dataclass(frozen=True)
class Group:
    """Runs of one config and different seeds, in the order given."""

    name: str
    runs: tuple[Run, ...]

    @property
    def done(self) -> tuple[Run, ...]:
        """Those that came to their end."""
        return tuple(run for run in self.runs if run.done)

    @property
    def shown(self) -> tuple[Run, ...]:
        """Those that figures and curves are taken from: a seed that is still running would pull down the others."""
        return self.done or self.runs


def grouped(runs: Sequence[Run], names: Sequence[str]) -> list[Group]:
    """The groups in the order of their first runs. `names` are the runs' own, all different.

    A second run of the same config and the same seed is no second sample, so it is of another group.
    """
    members: dict[tuple[int, str], list[int]] = {}
    seeds: dict[tuple[int, str], set[str]] = {}
    for index, run in enumerate(runs):
        config = flat(run.config)
        key = repr(sorted((k, repr(v)) for k, v in config.items() if k not in (*LABELS, *SEEDS) and v is not None))
        seed = repr([config.get(name) for name in SEEDS])
        again = next(again for again in count() if seed not in seeds.get((again, key), ()))
        members.setdefault((again, key), []).append(index)
        seeds.setdefault((again, key), set()).add(seed)
    together = [[names[index] for index in group] for group in members.values()]
    called = [_without_seeds(group) for group in together]
    titles = [name if called.count(name) == 1 else group[0] for name, group in zip(called, together, strict=True)]
    return [
        Group(title, tuple(runs[index] for index in group))
        for title, group in zip(titles, members.values(), strict=True)
    ]


def _without_seeds(names: Sequence[str]) -> str:
    """`with` of `with,seed=0` and `with,seed=1`; a run alone keeps its name."""
    if len(names) == 1:
        return names[0]
    bare = {",".join(part for part in name.split(",") if part.partition("=")[0] not in SEEDS) for name in names}
    return bare.pop() if len(bare) == 1 else f"{names[0]} and {len(names) - 1} more"


def differences(groups: Sequence[Group]) -> Table:
    """The keys whose values differ between groups, labels and seeds left out; no rows when there are none.

    A key that a run does not know (one of another version) is `-`, and counts as one that is null.
    """
    configs = [flat(group.runs[0].config) for group in groups]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key not in (*LABELS, *SEEDS)]
    keys = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    cells = {key: [show(c[key], 40) if key in c else MISSING for c in configs] for key in keys}
    cells = {key: [cell.strip("'") for cell in line] for key, line in cells.items()}
    names = [group.name for group in groups]
    if not keys or len(groups) <= _KEYS_DOWN:
        return ["key", *names], [[key, *line] for key, line in cells.items()]
    return ["run", *keys], [[name, *(cells[key][i] for key in keys)] for i, name in enumerate(names)]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value.

    >>> flat({"model": {"residual": {"rule": "none"}}, "seed": 0})
    {'model.residual.rule': 'none', 'seed': 0}
    """
    return dict(_leaves(config, prefix))


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):  # an empty one has no keys to differ in
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def over_seeds(group: Group, tag: str) -> tuple[Int64[np.ndarray, " S"], Float64[np.ndarray, "n S"]]:
    """A tag's values at the steps that all runs shown have; no steps when one of them never logged it."""
    series = [run.steps.get(tag, (np.zeros(0, np.int64), np.zeros(0))) for run in group.shown]
    steps = _common([at for at, _ in series])
    return steps, np.stack([values[np.searchsorted(at, steps)] for at, values in series])


def depths_over_seeds(group: Group, metric: str) -> tuple[Int64[np.ndarray, " S"], Float64[np.ndarray, "n S layers"]]:
    """`depth_series` of the runs shown, at the steps that all of them have."""
    series = [depth_series(run, metric) for run in group.shown]
    steps = _common([at for at, _ in series])
    layers = min(values.shape[1] for _, values in series)
    return steps, np.stack([values[np.searchsorted(at, steps), :layers] for at, values in series])


def _common(steps: Sequence[np.ndarray]) -> np.ndarray:
    shared = steps[0]
    for other in steps[1:]:
        shared = np.intersect1d(shared, other)
    return shared
