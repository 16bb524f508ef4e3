"""Fine-tuning: parameters from another run's newest checkpoint in place of freshly drawn ones, where they fit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.files import json_of
from model.network import leaves_by_path, path_of

from ..config.schema import RunConfig
from ..core.optimizer import HParams
from ..core.parameters import TABLES
from ..core.state import State, state_at
from ..errors import UserError
from ..store.checkpoint import Checkpoints
from ..store.rundir import read_config

VOCABULARY_TABLES = frozenset(TABLES) - {"positions"}


@dataclass(frozen=True)
class PretrainedRun:
    """A run to start from: its parameters by path, and its tokenizer as JSON (None: unknown)."""

    directory: Path
    step: int
    params: Mapping[str, np.ndarray]
    tokenizer: Any


@dataclass(frozen=True)
class Transfer:
    """Transferred parameters, and a line for each parameter of either run."""

    params: Any
    matched: list[str]
    new: list[str]
    left_out: list[str]

    def rows(self) -> list[tuple[str, str]]:
        """Returns rows for the console: counts and names of matched, new and unused parameters."""
        lists = {"matched": self.matched, "new": self.new, "left out": self.left_out}
        return [(key, f"{len(paths)}: {', '.join(paths)}" if paths else "none") for key, paths in lists.items()]


def open_pretrained(directory: Path) -> PretrainedRun:
    """Opens the newest checkpoint of a run. Raises UserError if there is none."""
    try:
        read_config(directory)  # or it is no run
        checkpoints = Checkpoints(directory)
        step = checkpoints.only_newest()
        params = checkpoints.params(step)
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from None
    return PretrainedRun(directory, step, leaves_by_path(params), tokenizer_of(directory))


def tokenizer_of(directory: Path) -> Any:
    """Returns a run's tokenizer as JSON, or None if it is unknown."""
    try:
        return json_of(directory / "tokenizer.json")
    except (OSError, ValueError):
        return None


def tokenizers_differ(there: Any, here: Any) -> bool:
    """True if the tokenizer of a run is known and differs from `here` (its JSON; None: no text)."""
    return there is not None and there != json.loads(json.dumps(here))


def started_from(
    source: PretrainedRun, config: RunConfig, hparams: Sequence[HParams], states: Sequence[State], tokenizer: Any
) -> tuple[list[State], Transfer]:
    """Returns step 0 of each variant with the parameters of `source`, and the transfer, which is the same for all."""
    transfers = [transferred(source, state.params, tokenizer) for state in states]
    start = jax.jit(partial(state_at, config))
    return [start(hp, transfer.params) for hp, transfer in zip(hparams, transfers, strict=True)], transfers[0]


def transferred(source: PretrainedRun, params: Any, tokenizer: Any) -> Transfer:
    """Takes parameters of equal path and shape from `source`, cast to the dtype of `params`.

    Tables whose rows are tokens are left out if the tokenizers differ. Raises UserError if nothing matches.
    """
    here = leaves_by_path(params)
    foreign = VOCABULARY_TABLES if tokenizers_differ(source.tokenizer, tokenizer) else frozenset()
    matched, new = [], []
    for path, leaf in here.items():
        there = source.params.get(path)
        if there is None:
            new.append(path)
        elif there.shape != leaf.shape:
            new.append(f"{path} ({list(there.shape)} there, {list(leaf.shape)} here)")
        elif path in foreign:
            new.append(f"{path} (another tokenizer there)")
        else:
            matched.append(path)
    if not matched:
        raise UserError(f"train.init_from: {source.directory} has no parameter in common with this model")
    matched_paths = set(matched)

    def replaced(keys: tuple, leaf: Any) -> Any:
        path = path_of(keys)
        return source.params[path].astype(leaf.dtype) if path in matched_paths else leaf

    left_out = [path for path in source.params if path not in matched_paths]
    return Transfer(jax.tree_util.tree_map_with_path(replaced, params), matched, new, left_out)
