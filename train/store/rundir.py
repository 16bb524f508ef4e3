"""The run directory of one variant: runs_dir/name/variant/."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.files import beside

from ..config.load import Variant, flatten, load, to_yaml
from ..config.schema import CHANGEABLE, LABELS, RunConfig
from ..config.yaml import show
from ..disk import read_json, write_atomically, write_json
from ..errors import UserError

_OF_A_START = ("config.yaml", "data.json", "tokenizer.json", "choices.json", "summary.json")


def directory_of(variant: Variant) -> Path:
    return Path(variant.config.runs_dir) / variant.config.name / variant.name


def own_directory_of(variant: Variant) -> Path:
    """The run directory, to write in. Raises UserError when a link leads out of runs_dir, or a file is in its place."""
    directory = directory_of(variant)
    root = Path(variant.config.runs_dir)
    for path in (directory.parent, directory, directory / "ckpt"):
        try:
            if not path.resolve().is_relative_to(root.resolve()):
                raise UserError(f"{path}: is a link that leads out of {root}, to {path.resolve()}; remove it")
            if path.exists() and not path.is_dir():
                raise UserError(f"{path}: expected a folder, got a file; choose another name (name=...)")
        except (OSError, RuntimeError) as error:  # a loop of links
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(f"{path}: cannot be used: {reason}") from None
    return directory


def claim(variant: Variant) -> Path:
    """Makes the directory and writes config.yaml. Raises UserError when it holds a run of another config.

    What is left of a run that failed before it had anything to show makes room.
    """
    directory = directory_of(variant)
    known = directory / "config.yaml"
    if known.exists() and not _has_begun(directory):
        for name in _OF_A_START:
            (directory / name).unlink(missing_ok=True)
    if known.exists():
        different = differences(read_config(directory), variant.config)
        if different:
            raise UserError(
                f"{directory}: holds a run of another config ({listed(different)}); "
                "choose another name (name=...) or delete that folder"
            )
    else:
        write_atomically(known, to_yaml(variant.config))
    return directory


def _has_begun(directory: Path) -> bool:
    log, checkpoints = directory / "metrics.jsonl", directory / "ckpt"
    saved = checkpoints.is_dir() and any(not entry.name.startswith(".") for entry in checkpoints.iterdir())
    return (log.exists() and log.stat().st_size > 0) or saved


def remember_data(
    directory: Path, sha256: str, source: str, tokenizer: Mapping[str, Any] | None, step: int = 0, allow: bool = False
) -> str | None:
    """Writes tokenizer.json and data.json at a run's first start, and compares them later.

    Raises UserError when the run was trained on other text, or the same text has other tokens now: its tokenizer is
    needed to read it. `allow` lets it go on with other text of the same tokens; data.json then says from which `step`
    on, and what to warn of is returned.
    """
    path, kept = directory / "data.json", directory / "tokenizer.json"
    if not path.exists():
        if tokenizer is not None:
            write_json(kept, tokenizer)
        write_json(path, {"sha256": sha256, "source": source})
        return None
    known = read_json(path)
    changed = known.get("sha256") != sha256
    if changed and not allow:
        raise UserError(
            f"{directory}: was trained on other data ({known.get('source')}; its hash differs from today's {source}); "
            "bring the old data back, go on all the same with --allow-data-change, choose another name (name=...) or "
            "delete that folder"
        )
    if tokenizer is not None and kept.exists() and read_json(kept) != json.loads(json.dumps(tokenizer)):
        if changed:
            raise UserError(
                f"{directory}: was trained on other data, whose tokens mean something else than those of {source}: "
                "--allow-data-change needs data with the same tokenizer"
            )
        raise UserError(
            f"{directory}: was trained with another tokenizer than {source} gives today (of bpe, another version of "
            "the package tokenizers may learn other merges); choose another name (name=...) or delete that folder"
        )
    if not changed:
        return None
    before = [*_earlier(known), {"sha256": known.get("sha256"), "source": known.get("source"), "until_step": step}]
    write_json(path, {"sha256": sha256, "source": source, "before": before})
    return f"{directory}: goes on from step {step} on other data ({source}), as --allow-data-change says"


def data_sum(directory: Path) -> str | None:
    """The hash of the data that a run is trained on now; None where nobody knows."""
    try:
        found = read_json(directory / "data.json").get("sha256")
    except UserError:
        return None
    return found if isinstance(found, str) else None


def data_sums(directory: Path) -> set[Any]:
    """The hashes of all data that a run has been trained on."""
    return {data_sum(directory), *(entry.get("sha256") for entry in _earlier(read_json(directory / "data.json")))}


def _earlier(known: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    before = known.get("before")
    return [entry for entry in before if isinstance(entry, dict)] if isinstance(before, list) else []


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    a, b = flatten(old), flatten(new)
    keys = [key for key in {**a, **b} if key not in (*LABELS, *CHANGEABLE)]
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def listed(different: Mapping[str, tuple[Any, Any]]) -> str:
    """`key: old there, new here` of the first few."""
    first = list(different.items())[:5]
    some = "; ".join(f"{key}: {_plain(old)} there, {_plain(new)} here" for key, (old, new) in first)
    return some + (f" and {len(different) - 5} more" if len(different) > 5 else "")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else show(value)


def read_config(directory: Path) -> RunConfig:
    """The resolved config of a run. Raises UserError: the folder is no run; ConfigError: it was edited badly."""
    path = directory / "config.yaml"
    if not path.is_file() or checkpoint_of(directory, path.name):
        raise UserError(no_run(directory, path.name))
    return load(path).variants[0].config


def no_run(folder: Path, lacks: str) -> str:
    """What to say of a folder without the file that a run has, and of one that is not there."""
    if not folder.exists():
        near = beside(folder, Path.is_dir)
        return f"{folder}: no such folder" + (f"; did you mean {near}?" if near else "")
    if run := checkpoint_of(folder, lacks):
        return f"{folder}: not a run directory, but part of one; did you mean {run}?"
    runs = sorted(found.parent.name for found in folder.glob(f"*/{lacks}"))
    instead = f"; the runs in it are {', '.join(runs[:12])}" if runs else ""
    return f"{folder}: not a run directory (no {lacks} in it{instead})"


def checkpoint_of(folder: Path, has: str) -> Path | None:
    """The run whose checkpoints, or one of them, lie in this folder; `has`: a file of every run."""
    for run, checkpoints in ((folder.parent, folder), (folder.parent.parent, folder.parent)):
        if checkpoints.name == "ckpt" and (run / has).is_file():
            return run
    return None
