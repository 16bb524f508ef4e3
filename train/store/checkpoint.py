"""Checkpoints of one variant: one safetensors file a step, ckpt/00000500.safetensors.

The arrays of the state are stored by path; the metadata holds the step, the resolved config, the provenance, and the
part of the log that is needed to go on. A file is written under a random name, synced, read back, and then renamed, so
that a name of a step never stands for anything but a whole checkpoint. docs/checkpoints.md states the guarantees.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.files import replacing, sync_folder

from ..config.schema import RunConfig
from ..core.state import State
from ..errors import Failure, UserError, refusal
from . import tensors
from .tensors import Damaged

KEEP = 3  # newest checkpoints, in addition to the best by held-out loss
SUFFIX = ".safetensors"
_FORMAT = "1"
_ASIDE = ".aside"  # ending of superseded checkpoints, which the next save removes


@dataclass(frozen=True)
class Header:
    """Metadata of a checkpoint. config: the resolved config as nested mappings, None where it was not given."""

    step: int
    meta: dict[str, Any]
    config: dict[str, Any] | None
    provenance: dict[str, Any]

    @property
    def loss_val(self) -> float | None:
        """Held-out loss at this step; None where it was not measured or is not finite."""
        row = self.meta.get("row")
        loss = row.get("loss/val") if isinstance(row, dict) else None
        return loss if isinstance(loss, float) and math.isfinite(loss) else None

    def as_text(self) -> dict[str, str]:
        parts = {"meta": self.meta, "config": self.config, "provenance": self.provenance}
        return {"format": _FORMAT, "step": str(self.step)} | {key: json.dumps(value) for key, value in parts.items()}

    @classmethod
    def from_text(cls, metadata: Mapping[str, str]) -> "Header":
        """Raises Damaged."""
        try:
            if metadata["format"] != _FORMAT:
                raise Damaged(f"expected format {_FORMAT}, got {metadata['format'][:20]}")
            meta, config, provenance = (json.loads(metadata[key]) for key in ("meta", "config", "provenance"))
            header = cls(int(metadata["step"]), meta, config, provenance)
        except (LookupError, ValueError, RecursionError):
            raise Damaged("its metadata is not that of a checkpoint") from None
        if not (isinstance(header.meta, dict) and isinstance(header.provenance, dict)):
            raise Damaged("its metadata is not that of a checkpoint")
        return header


class Checkpoints:
    """The checkpoints in a run directory. `config` and `provenance` (data, versions, device) are stored with each."""

    def __init__(
        self, directory: Path, config: RunConfig | None = None, provenance: Mapping[str, Any] | None = None
    ) -> None:
        self.run_directory, self.config, self.provenance = directory, config, dict(provenance or {})
        self.folder = directory / "ckpt"
        self._losses: dict[int, float | None] = {}  # of checkpoints that this process has saved or verified

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, whole or damaged, in ascending order."""
        if not self.folder.is_dir():
            return []
        names = (entry.name for entry in self.folder.iterdir())
        matches = (re.fullmatch(rf"([0-9]{{8,19}}){SUFFIX}", name) for name in names)
        return sorted(step for match in matches if match and self.path(step := int(match[1])).name == match[0])

    def of_earlier_versions(self) -> bool:
        """Returns true if there are checkpoints of the former format: a folder a step."""
        if not self.folder.is_dir():
            return False
        return any(re.fullmatch("[0-9]{8,19}", entry.name) and entry.is_dir() for entry in self.folder.iterdir())

    def path(self, step: int) -> Path:
        return self.folder / f"{step:08d}{SUFFIX}"

    def save(self, state: State, meta: Mapping[str, Any]) -> None:
        """Writes `state` under its step, then removes all but the newest KEEP checkpoints and the best.

        meta: JSON values; `row` may hold a `loss/val`. Raises UserError, and leaves everything as it was.
        """
        step, arrays = int(state.step), {path: np.asarray(leaf) for path, leaf in leaves_of(state).items()}
        config = None if self.config is None else self.config.model_dump(mode="json")
        header = Header(step, dict(meta), config, self.provenance)
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                sync_folder(self.folder.parent)
            with replacing(self.path(step), tensors.read_metadata) as file:
                tensors.write(file, arrays, header.as_text())
        except OSError as error:
            why = refusal(error, self.folder, sum(array.nbytes for array in arrays.values()))
            raise Failure(f"{self.path(step)}: cannot save: {why}") from None
        except Damaged as error:
            raise Failure(f"{self.path(step)}: cannot save: what was written reads back otherwise: {error}") from None
        self._losses[step] = header.loss_val
        with suppress(OSError):
            steps, best = [saved for saved in self.steps() if saved <= step], self.best(step)
            old = [self.path(saved) for saved in steps[:-KEEP] if saved != best]
            for path in [*old, *self.folder.glob(f".*{SUFFIX}{_ASIDE}")]:
                with suppress(OSError):  # what cannot be removed now is removed after the next save
                    path.unlink()

    def best(self, up_to: int | None = None) -> int | None:
        """Returns the first step of the least held-out loss, of whole checkpoints; None where none has a loss."""
        steps = [saved for saved in self.steps() if up_to is None or saved <= up_to]
        for saved in steps:
            if saved not in self._losses:
                with suppress(Damaged):
                    self._losses[saved] = self._header(saved).loss_val
        losses = {saved: loss for saved in steps if (loss := self._losses.get(saved)) is not None}
        return min(losses, key=lambda saved: (losses[saved], saved), default=None)

    def go_on_from(self, step: int) -> None:
        """Sets newer checkpoints aside until the next save, and removes what an interrupted save left.

        Newer ones are damaged, or the other variants of the group do not have them. Raises UserError.
        """
        try:
            for leftover in self.folder.glob(f".*{SUFFIX}.*.tmp"):
                leftover.unlink()
            for newer in (saved for saved in self.steps() if saved > step):
                path = self.path(newer)
                os.replace(path, path.with_name(f".{path.name}{_ASIDE}"))
        except OSError as error:
            raise Failure(f"{error.filename}: cannot be changed: {refusal(error, self.folder)}") from None

    def _header(self, step: int) -> Header:
        """Raises Damaged."""
        return self._checked(step, tensors.read_metadata(self.path(step)))

    def _checked(self, step: int, metadata: Mapping[str, str]) -> Header:
        header = Header.from_text(metadata)
        if header.step != step:
            raise Damaged(f"it was saved at step {header.step}")
        return header

    def damage(self, step: int) -> str | None:
        """Returns the reason why the checkpoint of a step cannot be used, None when it is whole."""
        try:
            self._header(step)
        except Damaged as error:
            return str(error)
        return None

    def newest(self, warn: Callable[[str], None] | None = None) -> int | None:
        """Returns the newest step whose checkpoint is whole; None when there is none at all.

        `warn` gets one line about those that were skipped (None: stderr). Raises UserError when there are some and none
        is whole.
        """
        return newest_common([self], warn)

    def only_newest(self) -> int:
        """Returns `newest`, for readers of a run. Raises UserError also when there is no checkpoint."""
        step = self.newest()
        if step is None:
            raise UserError(f"{self.run_directory}: no checkpoint in {self.folder}")
        return step

    def header(self, step: int) -> Header:
        """Returns the metadata of a whole checkpoint. Raises UserError."""
        try:
            return self._header(step)
        except Damaged as error:
            raise UserError(f"{self.path(step)}: cannot restore: {error}") from None

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Returns the arrays of a whole checkpoint by path, such as optimizer/0/mu/embed. Raises UserError."""
        try:
            metadata, arrays = tensors.read(self.path(step))
            self._checked(step, metadata)
        except Damaged as error:
            raise UserError(f"{self.path(step)}: cannot restore: {error}") from None
        return arrays

    def restore(self, step: int, like: State) -> State:
        """Returns the state saved at `step`, bit for bit, as numpy arrays.

        like: arrays, or their shapes and dtypes. Raises UserError, also when the arrays differ from those of `like`:
        the names, shapes and dtypes that differ are listed.
        """
        arrays = self.arrays(step)
        here, there = (
            {path: f"{leaf.dtype} {list(leaf.shape)}" for path, leaf in leaves.items()}
            for leaves in (leaves_of(like), arrays)
        )
        different = [path for path in sorted({**here, **there}) if here.get(path) != there.get(path)]
        if different:
            some = [f"{p}: {there.get(p, 'nothing')} there, {here.get(p, 'nothing')} here" for p in different[:3]]
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise UserError(f"{self.path(step)}: cannot restore: other arrays ({'; '.join(some)}{more})")
        return jax.tree_util.tree_map_with_path(lambda keys, _: arrays[leaf_path(keys)], like)

    def params(self, step: int) -> dict[str, Any]:
        """Returns the parameters saved at `step` as nested mappings of numpy arrays, of any model. Raises UserError."""
        params: dict[str, Any] = {}
        for path, array in self.arrays(step).items():
            if path.startswith("params/"):
                _, *parents, name = path.split("/")
                inner = params
                for key in parents:
                    inner = inner.setdefault(key, {})
                inner[name] = array
        return params


def check_dtypes(state: Any) -> None:
    """Raises UserError when a leaf, or its shape and dtype, has a dtype that a checkpoint cannot hold: a key, say."""
    for path, leaf in leaves_of(state).items():
        if str(leaf.dtype) not in tensors.CODES:
            raise UserError(f"optimizer.name: {path} is {leaf.dtype}, which a checkpoint cannot hold")


def leaves_of(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by path, such as params/blocks/attn/q/kernel."""
    return {leaf_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def leaf_path(keys: tuple) -> str:
    """Joins the keys of a leaf as they are, `blocks/mlp/in_/kernel`, so that `params` can take the path apart again."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def newest_common(all_checkpoints: Sequence[Checkpoints], warn: Callable[[str], None] | None = None) -> int | None:
    """Returns the newest step that every variant of a group has whole; None when one of them has no checkpoint at all.

    `warn` gets one line about those that were skipped (None: stderr). Raises UserError when each has some and no step
    is whole for all.
    """
    steps = [set(checkpoints.steps()) for checkpoints in all_checkpoints]
    if not all(steps):
        return None
    more = len(all_checkpoints) - 1
    where = str(all_checkpoints[0].folder) + (f" and of {more} more" if more else "")
    skipped = []
    for step in sorted(set.intersection(*steps), reverse=True):
        damaged = next(((c, why) for c in all_checkpoints if (why := c.damage(step)) is not None), None)
        if damaged is None:
            if skipped:
                line = f"{where}: resuming from step {step}; skipped {'; '.join(skipped)}"
                print(f"warning: {line}", file=sys.stderr) if warn is None else warn(line)
            return step
        whose = f"{damaged[0].run_directory.name}, " if more else ""
        skipped.append(f"{whose}step {step}: {damaged[1]}")
    raise UserError(
        f"{where}: no checkpoint can be used ({'; '.join(skipped) or 'they share no step'}); bring back a copy of one, "
        "or delete what is there to start the run over"
    )
