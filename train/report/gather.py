"""From folders to runs: a variant's run directory, or an experiment's with all variants in it."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config.yaml import clean
from ..errors import UserError
from .read import Run, read_run

_UNREAD = "left out, cannot be read: "


def gather(folders: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """The runs, an experiment's in the order of their names (numbers by size), and a line for each left out of one.

    Raises:
        UserError: a folder is missing or holds no run, two are the same run, a file of one that was named itself
            cannot be read, or nothing has been logged.
    """
    runs: list[Run] = []
    left_out: list[str] = []
    seen: dict[Path, str] = {}
    for folder in folders:
        for directory, alone in _directories(Path(folder)):
            where = clean(str(directory), 200)
            if twin := seen.get(directory.resolve()):
                raise UserError(f"{where}: expected different runs, got the same folder as {twin}")
            seen[directory.resolve()] = where
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
        said = "; ".join(line for line in left_out if line.startswith(_UNREAD))
        where = ", ".join(clean(str(folder), 200) for folder in folders)
        raise UserError(f"{where}: {said or 'nothing to show yet, no run has logged'}")
    return runs, left_out


def names_of(runs: Sequence[Run]) -> list[str]:
    """What to call the runs: the folder's name, with as many of those above it as tell the runs apart.

    Runs of several experiments have the experiment in their names.
    """
    parts = [run.directory.resolve().parts for run in runs]
    together = len({run.directory.resolve().parent for run in runs}) == 1
    for length in range(1 if together else 2, max(map(len, parts)) + 1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            return [clean(name, 200) for name in names]
    raise ValueError("expected runs of different folders")


def _directories(folder: Path) -> Iterator[tuple[Path, bool]]:
    """(run directory, whether the folder is one itself)."""
    where = clean(str(folder), 200)
    try:
        found = [path for path in folder.iterdir() if (path / "config.yaml").is_file()] if folder.is_dir() else []
        if (folder / "config.yaml").is_file() and not found:  # a copy of its YAML makes no experiment a run
            yield folder, True
            return
        if not folder.is_dir():
            raise UserError(f"{where}: {'expected a folder, got a file' if folder.exists() else 'no such folder'}")
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        inside = sorted(path.parent.parent.name for path in folder.glob("*/*/config.yaml"))
        instead = f"; the experiments in it are {clean(', '.join(dict.fromkeys(inside)), 200)}" if inside else ""
        raise UserError(f"{where}: no run and no experiment (no config.yaml in it or in a folder of it{instead})")
    for path in sorted(found, key=lambda path: _natural(path.name)):
        yield path, False


def _natural(name: str) -> list[tuple[int, float, str]]:
    """
    >>> sorted(["b,layers=16", "b,layers=4", "a"], key=_natural)
    ['a', 'b,layers=4', 'b,layers=16']
    """
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name)
    return [(1, float(part), "") if index % 2 else (0, 0.0, part) for index, part in enumerate(parts)]
