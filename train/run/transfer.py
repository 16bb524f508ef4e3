"""Fine-tuning: the parameters of another run's newest checkpoint in the place of fresh ones, as far as they fit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.files import json_of

from ..config.schema import RunConfig
from ..core.optimizer import HParams
from ..core.parameters import TABLES, path_of
from ..core.state import State, state_at
from ..errors import UserError
from ..store.checkpoint import Checkpoints
from ..store.rundir import read_config

OF_THE_VOCABULARY = frozenset(TABLES) - {"positions"}


@dataclass(frozen=True)
class Source:
    """Another run: its parameters by path, and the tokenizer that its embedding's rows belong to (None: unknown)."""

    directory: Path
    step: int
    params: Mapping[str, np.ndarray]
    tokenizer: Any


@dataclass(frozen=True)
class Transfer:
    """`params` with what was taken, and one line for each parameter of either run."""

    params: Any
    matched: list[str]
    new: list[str]
    left_out: list[str]

    def rows(self) -> list[tuple[str, str]]:
        """For people: how many of each, and which."""
        lists = {"matched": self.matched, "new": self.new, "left out": self.left_out}
        return [(key, f"{len(found)}: {', '.join(found)}" if found else "none") for key, found in lists.items()]


def open_source(directory: Path) -> Source:
    """The newest checkpoint of a run. Raises UserError when there is none."""
    try:
        read_config(directory)  # or it is no run
        checkpoints = Checkpoints(directory)
        step = checkpoints.only_newest()
        params = checkpoints.params(step)
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from None
    by_path = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return Source(directory, step, by_path, tokenizer_of(directory))


def tokenizer_of(directory: Path) -> Any:
    """What a run's tokens stand for, as JSON; None where nobody knows."""
    try:
        return json_of(directory / "tokenizer.json")
    except (OSError, ValueError):
        return None


def another(there: Any, here: Any) -> bool:
    """Whether a run's tokens are known to be others than those of the tokenizer `here` (its JSON; None: no text)."""
    return there is not None and there != json.loads(json.dumps(here))


def started_from(
    source: Source, config: RunConfig, hparams: Sequence[HParams], states: Sequence[State], tokenizer: Any
) -> tuple[list[State], Transfer]:
    """Step 0 of each variant with the parameters of `source` in place of its own, and what was taken (by all alike)."""
    taken = [transferred(source, state.params, tokenizer) for state in states]
    start = jax.jit(partial(state_at, config))
    return [start(hp, each.params) for hp, each in zip(hparams, taken, strict=True)], taken[0]


def transferred(source: Source, params: Any, tokenizer: Any) -> Transfer:
    """What path and shape have in common is taken from `source`, in the dtype of `params`.

    Tables whose rows are tokens are left out when the two tokenizers differ: their rows mean other tokens. Raises
    UserError when nothing matches.
    """
    here = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    foreign = OF_THE_VOCABULARY if another(source.tokenizer, tokenizer) else frozenset()
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
    taken = set(matched)

    def one(keys: tuple, leaf: Any) -> Any:
        path = path_of(keys)
        return source.params[path].astype(leaf.dtype) if path in taken else leaf

    left_out = [path for path in source.params if path not in taken]
    return Transfer(jax.tree_util.tree_map_with_path(one, params), matched, new, left_out)
