"""Checkpoints: one folder a step, written beside its final name, synced, renamed into place and read again.

ckpt/<step>/state is Orbax's (arrays, no pickle), meta.json what the log still needs at that step, config.yaml the
resolved config, manifest.json the hashes of it all (train/store/manifest.py). Nothing is restored that does not verify.
docs/checkpoints.md tells what is promised.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from ..config.load import to_yaml
from ..config.schema import RunConfig
from ..core.state import State
from ..disk import refusal, sync_folder, sync_tree
from ..errors import UserError, first_line
from . import manifest as manifests
from .manifest import Damaged, Manifest
from .provenance import origin_of
from .quiet import quiet_storage
from .rundir import data_sum

KEEP = 3  # the newest, and the best by held-out loss
_WRITING, _ASIDE = ".writing", ".aside"  # endings of folders that no reader takes


class Checkpoints:
    """The checkpoints of one variant. `config` is needed to save only, and goes into each checkpoint."""

    def __init__(self, directory: Path, config: RunConfig | None = None):
        self.run, self.config = directory, config
        self.directory = (directory / "ckpt").absolute()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or not, oldest first."""
        if not self.directory.is_dir():
            return []
        names = (entry.name for entry in self.directory.iterdir() if re.fullmatch("[0-9]{8,19}", entry.name))
        return sorted(int(name) for name in names if name == f"{int(name):08d}")

    def folder(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    # -- writing

    def save(self, state: State, meta: Mapping[str, Any]) -> None:
        """Writes `state` under its step, reads it again, and then removes all but the newest KEEP and the best.

        meta: what JSON can hold; its `row` may have a `loss/val`. Raises UserError when it cannot, and has changed
        nothing then.
        """
        step = int(state.step)
        final, writing = self.folder(step), self._beside(step, _WRITING)
        try:
            _remove(writing)
            self._write(writing, state, {**meta, "step": step})
            sync_tree(writing)
            aside = self._set_aside(step) if os.path.lexists(final) else None
            try:
                os.replace(writing, final)
            except OSError:
                if aside is not None:
                    os.replace(aside, final)
                raise
            sync_folder(self.directory)
            manifests.verify(final, step)
        except Exception as error:  # Orbax raises whatever its storage layers do
            with suppress(OSError):
                _remove(writing)
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            raise UserError(f"{final}: cannot save: {refusal(error, self.directory, needed)}") from None
        with suppress(OSError):  # what cannot be removed now is removed another time
            self._prune(step)

    def _write(self, folder: Path, state: State, meta: Mapping[str, Any]) -> None:
        import orbax.checkpoint as ocp  # a second of import, not paid before the first save

        made = not self.directory.exists()
        folder.mkdir(parents=True)
        if made:
            sync_folder(self.directory.parent)
        with quiet_storage(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(folder / "state", args=ocp.args.StandardSave(state))
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        if self.config is not None:
            (folder / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
        loss = meta.get("row", {}).get("loss/val")
        finite = isinstance(loss, float) and abs(loss) < float("inf")
        origin = origin_of(self.config, data_sum(self.run))
        manifests.write(folder, meta["step"], manifests.array_sums(state), origin, loss if finite else None)

    def _prune(self, step: int) -> None:
        """After `step` has been saved and verified."""
        steps = [there for there in self.steps() if there <= step]
        losses = {there: loss for there in steps if (loss := self._loss(there)) is not None}
        best = min(losses, key=lambda there: (losses[there], there), default=step)
        for old in steps[:-KEEP]:
            if old != best:
                self._set_aside(old)
        for entry in self.directory.glob(f".*{_ASIDE}"):
            _remove(entry)

    def _loss(self, step: int) -> float | None:
        try:
            return manifests.read(self.folder(step)).loss_val
        except Damaged:
            return None

    def go_on_from(self, step: int) -> None:
        """Makes room for what follows `step`, once this process may write here. Raises UserError.

        What a save that was cut off has left is removed. Newer checkpoints, which are damaged or which other variants
        of the group do not have, are set aside; the next save removes them.
        """
        try:
            for entry in self.directory.glob(f".*{_WRITING}"):
                _remove(entry)
            for newer in self.steps():
                if newer > step:
                    self._set_aside(newer)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be changed: {refusal(error, self.directory)}") from None

    def _set_aside(self, step: int) -> Path:
        """Out of every reader's way, at once and whole."""
        aside = self._beside(step, _ASIDE)
        _remove(aside)
        os.replace(self.folder(step), aside)
        return aside

    def _beside(self, step: int, ending: str) -> Path:
        return self.directory / f".{step:08d}{ending}"

    # -- reading

    def damage(self, step: int) -> str | None:
        """Why the checkpoint of a step cannot be used, None when it is whole."""
        try:
            manifests.verify(self.folder(step), step)
        except Damaged as why:
            return str(why)
        return None

    def newest(self, warn: Callable[[str], None] | None = None) -> int | None:
        """The newest step whose checkpoint is whole; None when there is none at all.

        `warn` is told in one line which were skipped and why (None: on stderr). Raises UserError when there are some
        and none is whole.
        """
        return newest_common([self], warn)

    def only_newest(self) -> int:
        """`newest`, for readers of a run. Raises UserError also when there is no checkpoint."""
        step = self.newest()
        if step is None:
            raise UserError(f"{self.run}: no checkpoint in {self.directory}")
        return step

    def manifest(self, step: int) -> Manifest:
        """What a checkpoint says of itself; its other files are not looked at. Raises UserError."""
        try:
            return manifests.read(self.folder(step))
        except Damaged as why:
            raise UserError(f"{self.folder(step)}: cannot restore: {why}") from None

    def _verified(self, step: int) -> Manifest:
        if (why := self.damage(step)) is not None:
            raise UserError(f"{self.folder(step)}: cannot restore: {why}")
        return self.manifest(step)

    def meta(self, step: int) -> dict[str, Any]:
        """What `save` was given. Raises UserError."""
        self._verified(step)
        path = self.folder(step) / "meta.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot read: {error}") from None

    def restore(self, step: int, like: State, device: Any) -> State:
        """The state saved at `step`, bit for bit, on `device`. Raises UserError, also when its arrays are not those of
        `like`: the names, shapes and dtypes that differ are listed."""
        manifest = self._verified(step)
        wanted = {manifests.state_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(like)}
        here = {path: f"{leaf.dtype} {list(leaf.shape)}" for path, leaf in wanted.items()}
        there = {path: str(array) for path, array in manifest.arrays.items()}
        different = [path for path in sorted({**here, **there}) if here.get(path) != there.get(path)]
        if different:
            some = [f"{p}: {there.get(p, 'nothing')} there, {here.get(p, 'nothing')} here" for p in different[:3]]
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise UserError(f"{self.folder(step)}: cannot restore: other arrays ({'; '.join(some)}{more})")
        target = jax.tree.map(_on(device), like)
        return self._restored(step, manifest, lambda _: target)

    def params(self, step: int, device: Any) -> dict[str, Any]:
        """The parameters saved at `step`, whatever model they are of. Raises UserError."""

        def target(saved: Any) -> Any:
            return jax.tree.map(_on(device), getattr(saved, "tree", saved))  # its type differs between Orbax's versions

        return self._restored(step, self._verified(step), target)["params"]

    def _restored(self, step: int, manifest: Manifest, target_of: Callable[[Any], Any]) -> Any:
        """`target_of` makes the shapes, dtypes and devices to restore from what the checkpoint says of itself."""
        import orbax.checkpoint as ocp

        path = self.folder(step) / "state"
        try:
            with quiet_storage(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                target = target_of(checkpointer.metadata(path).item_metadata)
                state = checkpointer.restore(path, args=ocp.args.StandardRestore(target))
        except Exception as error:  # Orbax raises whatever its storage layers do
            raise UserError(f"{path}: cannot restore: {first_line(error)[:300]}") from None
        found = manifests.array_sums(state)
        for name in sorted({**manifest.arrays, **found}):
            if manifest.arrays.get(name) != found.get(name):
                raise UserError(f"{path}: cannot restore: {name} is not what was saved")
        return state


def newest_common(all_checkpoints: Sequence[Checkpoints], warn: Callable[[str], None] | None = None) -> int | None:
    """The newest step that every variant of a group has whole; None when one of them has no checkpoint at all.

    `warn` is told in one line which were skipped and why (None: on stderr). Raises UserError when each has some and no
    step is whole for all.
    """
    listed = [set(checkpoints.steps()) for checkpoints in all_checkpoints]
    if not all(listed):
        return None
    skipped = []
    for step in sorted(set.intersection(*listed), reverse=True):
        damaged = next(((c, why) for c in all_checkpoints if (why := c.damage(step)) is not None), None)
        if damaged is None:
            if skipped:
                _told(warn)(f"{_where(all_checkpoints)}: goes back to step {step}; skipped {'; '.join(skipped)}")
            return step
        whose = f"{damaged[0].run.name}, " if len(all_checkpoints) > 1 else ""
        skipped.append(f"{whose}step {step}: {damaged[1]}")
    raise UserError(
        f"{_where(all_checkpoints)}: no checkpoint can be used ({'; '.join(skipped) or 'they share no step'}); bring "
        "back a copy of one, or delete what is there to start the run anew"
    )


def _where(all_checkpoints: Sequence[Checkpoints]) -> str:
    first, more = all_checkpoints[0], len(all_checkpoints) - 1
    return str(first.run / "ckpt") + (f" and of {more} more" if more else "")


def _on(device: Any) -> Callable[[Any], jax.ShapeDtypeStruct]:
    sharding = jax.sharding.SingleDeviceSharding(device)
    return lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _told(warn: Callable[[str], None] | None) -> Callable[[str], None]:
    return warn or (lambda line: print(f"warning: {line}", file=sys.stderr))


def _remove(path: Path) -> None:
    """A folder with all in it, or a file or link, if it is there. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
