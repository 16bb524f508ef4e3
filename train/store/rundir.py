"""The run directory of one variant: runs_dir/name/variant/."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.files import similar_path

from ..config.load import Variant, flatten, load
from ..config.schema import CHANGEABLE, LABELS, RunConfig
from ..config.variants import START_FILES
from ..config.yaml import clean, unquoted
from ..disk import read_json
from ..errors import UserError
from ..text import command


def directory_of(variant: Variant) -> Path:
    return Path(variant.config.runs_dir) / variant.config.name / variant.name


def own_directory_of(variant: Variant) -> Path:
    """Returns the run directory, to write in. Raises UserError when a link leads out of runs_dir, or it is a file."""
    directory = directory_of(variant)
    root = Path(variant.config.runs_dir)
    for path in (directory.parent, directory, directory / "ckpt"):
        try:
            if not path.resolve().is_relative_to(root.resolve()):
                raise UserError(f"{path}: is a link that leads out of {root}, to {path.resolve()}; remove it")
            if path.is_symlink():
                path.stat()  # raises for a loop, which resolve() lets pass from Python 3.13 on
            if path.exists() and not path.is_dir():
                raise UserError(f"{path}: expected a folder, got a file; choose another name (name=...)")
        except (OSError, RuntimeError) as error:  # a loop of links
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(f"{path}: cannot be used: {reason}") from None
    return directory


def check_config(variant: Variant) -> None:
    """Raises UserError when the directory holds a run of another config, apart from keys that may change."""
    directory = directory_of(variant)
    if not (directory / "config.yaml").exists() or not has_begun(directory):
        return
    if different := differences(read_config(directory), variant.config):
        raise UserError(
            f"{directory}: holds a run of another config ({listed(different)}); "
            "choose another name (name=...) or delete that folder"
        )


def clear_failed_start(directory: Path) -> None:
    """Removes what a start that failed before the first step left behind, and temporary files of a killed process."""
    if not has_begun(directory):
        for name in START_FILES:
            (directory / name).unlink(missing_ok=True)
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def has_begun(directory: Path) -> bool:
    """Returns true if something was logged or saved in a run directory, or if the run was finished there.

    Raises UserError when summary.json cannot be read.
    """
    log, checkpoints, summary = directory / "metrics.jsonl", directory / "ckpt", directory / "summary.json"
    saved = checkpoints.is_dir() and any(not entry.name.startswith(".") for entry in checkpoints.iterdir())
    if saved or (log.exists() and log.stat().st_size > 0):
        return True
    return summary.exists() and read_json(summary).get("exit_reason") == "done"


def data_record(
    directory: Path, sha256: str, source: str, tokenizer: Mapping[str, Any] | None, step: int = 0, allow: bool = False
) -> tuple[dict[Path, Mapping[str, Any]], str | None]:
    """Returns what data.json and tokenizer.json should hold, as far as they do not yet, and a line to warn with.

    allow: the run may go on with other text of the same tokens; data.json then holds the `step` from which it did, and
    the line says so. Raises UserError when the run was trained on other text, or the same text has other tokens now.
    """
    path, tokens = directory / "data.json", directory / "tokenizer.json"
    if not path.exists() or not has_begun(directory):
        record: dict[Path, Mapping[str, Any]] = {path: {"sha256": sha256, "source": source}}
        return record if tokenizer is None else {tokens: tokenizer, **record}, None
    recorded = read_json(path)
    other = recorded.get("sha256") != sha256
    if other and not allow:
        raise UserError(
            f"{directory}: was trained on other data ({recorded.get('source')}; its hash differs from today's {source})"
            "; bring the old data back, go on all the same with --allow-data-change, choose another name (name=...) or "
            "delete that folder"
        )
    if tokenizer is not None and tokens.exists() and read_json(tokens) != json.loads(json.dumps(tokenizer)):
        if other:
            raise UserError(
                f"{directory}: was trained on other data, whose tokens mean something else than those of {source}: "
                "--allow-data-change needs data with the same tokenizer"
            )
        raise UserError(
            f"{directory}: was trained with another tokenizer than {source} gives today (for bpe, another version of "
            "the package tokenizers may learn other merges); choose another name (name=...) or delete that folder"
        )
    if not other:
        return {}, None
    last = {"sha256": recorded.get("sha256"), "source": recorded.get("source"), "until_step": step}
    record = {path: {"sha256": sha256, "source": source, "before": [*_earlier(recorded), last]}}
    return record, f"{directory}: goes on from step {step} on other data ({source}), as --allow-data-change says"


def data_sums(directory: Path) -> set[str]:
    """Returns the hashes of all data that a run has been trained on, as far as data.json has them."""
    try:
        recorded = read_json(directory / "data.json")
    except UserError:
        return set()
    sums = (entry.get("sha256") for entry in (recorded, *_earlier(recorded)))
    return {sha256 for sha256 in sums if isinstance(sha256, str)}


def _earlier(recorded: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    before = recorded.get("before")
    return [entry for entry in before if isinstance(entry, dict)] if isinstance(before, list) else []


def differences(old: RunConfig, new: RunConfig, changeable: bool = False) -> dict[str, tuple[Any, Any]]:
    """Returns (old, new) by dotted key where two configs make different runs.

    changeable: instead where the keys differ that a run may change when it goes on.
    """
    a, b = flatten(old), flatten(new)
    keys = [key for key in {**a, **b} if key not in LABELS and a.get(key) != b.get(key)]
    may_change = {key for key in keys for one in CHANGEABLE if key == one or key.startswith(f"{one}.")}
    return {key: (a.get(key), b.get(key)) for key in keys if (key in may_change) == changeable}


def listed(different: Mapping[str, tuple[Any, Any]]) -> str:
    """Returns `key: old there, new here` for the first few."""
    first = list(different.items())[:5]
    some = "; ".join(f"{key}: {unquoted(old)} there, {unquoted(new)} here" for key, (old, new) in first)
    return some + (f" and {len(different) - 5} more" if len(different) > 5 else "")


def read_config(directory: Path) -> RunConfig:
    """Returns the resolved config of a run. Raises UserError: the folder is no run; ConfigError: config.yaml is bad."""
    path = directory / "config.yaml"
    if not path.is_file() or checkpoint_of(directory, path.name):
        raise UserError(no_run(directory, path.name))
    return load(path).variants[0].config


def no_run(folder: Path, lacks: str) -> str:
    """Returns the message about a folder without the file that a run has, or that does not exist."""
    if run := checkpoint_of(folder, lacks):
        return f"{folder}: not a run directory, but part of one; did you mean {run}?"
    if not folder.is_dir():
        return no_folder(folder)
    runs = sorted(path.parent.name for path in folder.glob(f"*/{lacks}"))
    instead = f"; the runs in it are {', '.join(runs[:12])}" if runs else ""
    return f"{folder}: not a run directory (no {lacks} in it{instead})"


def no_folder(path: Path) -> str:
    """Returns the message about a path that is no folder of runs, with the folder or the command that is meant."""
    where, is_file = clean(str(path), 200), path.exists()
    message = f"{where}: {'expected a folder, got a file' if is_file else 'no such folder'}"
    near = [path.parent] if any(path.parent.glob("*/config.yaml")) or (path.parent / "config.yaml").is_file() else []
    near = near if is_file else [similar_path(path, Path.is_dir), Path("runs", path)]
    if path.suffix in ("", ".yaml", ".yml"):
        with suppress(UserError):
            near = [directory_of(load(path).variants[0]).parent]  # of a config, also a shipped one
            if not near[0].is_dir():
                return f"{message}; {command('train', path)} makes runs of it"
    meant = next((folder for folder in near if folder is not None and folder.is_dir()), None)
    return message if meant is None else f"{message}; did you mean {meant}?"


def checkpoint_of(folder: Path, has: str) -> Path | None:
    """Returns the run whose checkpoints, or one of them, are at this path; `has`: a file of every run."""
    for run, checkpoints in ((folder.parent, folder), (folder.parent.parent, folder.parent)):
        if checkpoints.name == "ckpt" and (run / has).is_file():
            return run
    return None
