"""From folders to groups of runs that differ in nothing but their seeds, and statistics over these seeds."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from ..config.schema import LABELS
from ..config.yaml import clean, unquoted
from ..errors import UserError
from ..store.rundir import no_folder
from ..text import MISSING
from .read import Run, depth_series, read_run

SEEDS = ("seed", "data.seed")  # data.seed follows seed unless it is set
LEVEL = 0.95  # of intervals
_UNREAD = "left out, cannot be read: "
_KEYS_DOWN = 6  # groups; with more, a table of differences has a row for each group


def gather(folders: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Returns the runs of run directories and experiments, and a line for each run that is left out.

    An experiment's runs are in the order of their names, with numbers by size.

    Raises:
        UserError: a folder is missing or holds no run, two are the same run, a file of a run that was named itself
            cannot be read, or nothing has been logged.
    """
    runs: list[Run] = []
    left_out: list[str] = []
    places: dict[Path, str] = {}
    for folder in map(Path, folders):
        directories = _directories(folder)
        alone = directories == [folder]
        for directory in directories:
            where = clean(str(directory), 200)
            if twin := places.get(directory.resolve()):
                raise UserError(f"{where}: expected different runs, got the same folder as {twin}")
            places[directory.resolve()] = where
            try:
                # Before its first row a run has an empty log, or none.
                run = read_run(directory) if (directory / "metrics.jsonl").exists() else None
            except UserError as error:
                if alone:
                    raise
                left_out.append(f"{_UNREAD}{clean(str(error), 400)}")
                continue
            if run is not None and run.steps:
                runs.append(run)
            elif alone:
                raise UserError(f"{where}: nothing to show yet (no line in metrics.jsonl)")
            else:
                left_out.append(f"{where}: left out, nothing logged yet")
    if not runs:
        unread = "; ".join(line for line in left_out if line.startswith(_UNREAD))
        where = ", ".join(clean(str(folder), 200) for folder in folders)
        raise UserError(f"{where}: {unread or 'nothing to show yet, no run has logged'}")
    return runs, left_out


def _directories(folder: Path) -> list[Path]:
    """The run directories in a folder, or the folder itself when it is one."""
    where = clean(str(folder), 200)
    try:
        members = [path for path in folder.iterdir() if (path / "config.yaml").is_file()] if folder.is_dir() else []
        if (folder / "config.yaml").is_file() and not members:  # a copy of its YAML makes no experiment a run
            return [folder]
        if not folder.is_dir():
            raise UserError(no_folder(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not members:
        below = sorted(path.parent.parent.name for path in folder.glob("*/*/config.yaml"))
        instead = f"; the experiments in it are {clean(', '.join(dict.fromkeys(below)), 200)}" if below else ""
        raise UserError(f"{where}: no run and no experiment (no config.yaml in it or in a folder of it{instead})")
    return sorted(members, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, float, str]]:
    """
    >>> sorted(["b,layers=16", "b,layers=4", "a"], key=_natural)
    ['a', 'b,layers=4', 'b,layers=16']
    """
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name)
    return [(1, float(part), "") if index % 2 else (0, 0.0, part) for index, part in enumerate(parts)]


def names_of(runs: Sequence[Run]) -> list[str]:
    """Returns a name for each run: its folder's, with as many of those above it as tell the runs apart.

    Runs of several experiments have the experiment in their names. The folders are different ones.
    """
    parts = [run.directory.resolve().parts for run in runs]
    one_folder = len({path[:-1] for path in parts}) == 1
    lengths = range(1 if one_folder else 2, max(map(len, parts)) + 1)
    candidates = (["/".join(path[-length:]) for path in parts] for length in lengths)
    return [clean(name, 200) for name in next(names for names in candidates if len(set(names)) == len(names))]


@dataclass(frozen=True)
class Group:
    """Runs of one config and different seeds, in the order given."""

    name: str
    runs: tuple[Run, ...]

    @property
    def done(self) -> tuple[Run, ...]:
        """The runs that came to their end."""
        return tuple(run for run in self.runs if run.done)

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs that figures and curves are taken from: a seed that is still running would pull down the others."""
        return self.done or self.runs


def seed_groups(runs: Sequence[Run], names: Sequence[str]) -> list[Group]:
    """Returns the groups in the order of their first runs. `names` are the runs' own, all different.

    A second run of the same config and the same seed is no second sample, so it is in another group.
    """
    members: dict[tuple[int, str], list[int]] = {}
    twins: Counter[tuple[str, str]] = Counter()
    for index, run in enumerate(runs):
        config = dotted(run.config)
        key = repr(sorted((k, repr(v)) for k, v in config.items() if k not in (*LABELS, *SEEDS) and v is not None))
        same = key, seed_of(run)
        members.setdefault((twins[same], key), []).append(index)
        twins[same] += 1
    titles = []  # `with` of `with,seed=0` and `with,seed=1`; a single run keeps its name
    for indices in members.values():
        first, *more = (names[index] for index in indices)
        bare = {seedless(name) for name in (first, *more)}
        titles.append(first if not more else bare.pop() if len(bare) == 1 else f"{first} and {len(more)} more")
    titles = [t if titles.count(t) == 1 else names[g[0]] for t, g in zip(titles, members.values(), strict=True)]
    return [Group(t, tuple(runs[i] for i in g)) for t, g in zip(titles, members.values(), strict=True)]


def seedless(name: str) -> str:
    """
    >>> seedless("with,seed=0,lr=0.1"), seedless("seed=0")
    ('with,lr=0.1', '')
    """
    return ",".join(part for part in name.split(",") if part.partition("=")[0] not in SEEDS)


def seed_of(run: Run) -> str:
    config = dotted(run.config)
    return repr([config.get(key) for key in SEEDS])


def config_table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Returns a table of the keys whose values differ between groups, without labels and seeds; it may have no rows.

    A key that a run of another version lacks is `-`, and equal to null.
    """
    configs = [dotted(group.runs[0].config) for group in groups]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key not in (*LABELS, *SEEDS)]
    keys = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    cells = {key: [unquoted(c[key], 40) if key in c else MISSING for c in configs] for key in keys}
    names = [group.name for group in groups]
    if not keys or len(groups) <= _KEYS_DOWN:
        return ["key", *names], [[key, *line] for key, line in cells.items()]
    return ["run", *keys], [[name, *(cells[key][i] for key in keys)] for i, name in enumerate(names)]


def dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value; an empty mapping has no keys to differ in.

    >>> dotted({"model": {"residual": {"rule": "none"}}, "seed": 0})
    {'model.residual.rule': 'none', 'seed': 0}
    """
    out = {}
    for key, value in config.items():
        out |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def over_seeds(group: Group, tag: str) -> tuple[Int64[np.ndarray, " S"], Float64[np.ndarray, "n S"]]:
    """Returns a tag's values at the steps that all runs shown have; no steps when one of them never logged it."""
    return _aligned([run.steps.get(tag, (np.zeros(0, np.int64), np.zeros(0))) for run in group.counted])


def depths_over_seeds(group: Group, metric: str) -> tuple[Int64[np.ndarray, " S"], Float64[np.ndarray, "n S layers"]]:
    """Returns `depth_series` of the runs shown, at the steps that all of them have."""
    series = [depth_series(run.steps, metric) for run in group.counted]
    layers = min(values.shape[1] for _, values in series)
    return _aligned([(steps, values[:, :layers]) for steps, values in series])


def _aligned(series: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    steps = series[0][0]
    for other, _ in series[1:]:
        steps = np.intersect1d(steps, other)
    return steps, np.stack([values[np.searchsorted(at, steps)] for at, values in series])


class Estimate(NamedTuple):
    """A mean, and half the width of the interval around it; None for one value, of which nothing is known."""

    mean: Float[np.ndarray, "..."]
    half: Float[np.ndarray, "..."] | None


def estimate(values: Float[np.ndarray, "n ..."]) -> Estimate:
    """Returns the mean over the first axis and its two-sided 95 % interval (Student 1908, Biometrika 6:1-25).

    The half-width is t · s / √n, s the sample's standard deviation (n - 1): with three seeds 2.2 times as wide as a
    normal distribution's, with two 6.5 times. One value that is not finite makes the mean not finite.

    Raises ValueError: no values.
    """
    # scipy comes with jax; its special functions load in a tenth of the time of scipy.stats.
    from scipy.special import stdtrit

    values = np.asarray(values, np.float64)
    n = len(values)
    if not n:
        raise ValueError("expected at least one value")
    with np.errstate(invalid="ignore"):
        mean = values.mean(axis=0)
        if n == 1:
            return Estimate(mean, None)
        return Estimate(mean, stdtrit(n - 1, (1 + LEVEL) / 2) * values.std(axis=0, ddof=1) / np.sqrt(n))
