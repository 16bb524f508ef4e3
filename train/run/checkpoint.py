"""Checkpoints: one folder a step, written beside its final name and renamed into place.

ckpt/<step>/state is Orbax's (arrays, no pickle), ckpt/<step>/meta.json ours: the step and the row of metrics that was
still open, so that a resumed run logs what an unbroken one does.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from train.core.state import State
from train.run.disk import refusal
from train.run.errors import RunError, first_line
from train.run.quiet import quiet_storage

KEEP = 3


class Checkpoints:
    """The checkpoints of one variant."""

    def __init__(self, directory: Path):
        self.directory = (directory / "ckpt").absolute()

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdigit())

    def save(self, state: State, meta: dict[str, Any]) -> None:
        """Writes `state` under its step and removes all but the newest KEEP. Raises RunError when it cannot."""
        import orbax.checkpoint as ocp  # a second of import, not paid before the first save

        step = int(state.step)
        final, temporary = self.directory / f"{step:08d}", self.directory / f".{step:08d}.{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            with quiet_storage(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                checkpointer.save(temporary / "state", args=ocp.args.StandardSave(state))
            (temporary / "meta.json").write_text(json.dumps(meta | {"step": step}), encoding="utf-8")
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
        except Exception as error:  # Orbax raises whatever its storage layers do
            shutil.rmtree(temporary, ignore_errors=True)
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            raise RunError(f"{final}: cannot save: {refusal(error, self.directory, needed)}") from None
        for old in self.steps()[:-KEEP]:
            shutil.rmtree(self.directory / f"{old:08d}", ignore_errors=True)

    def meta(self, step: int) -> dict[str, Any]:
        path = self.directory / f"{step:08d}" / "meta.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot read: {error}") from None

    def restore(self, step: int, like: State, device: Any) -> State:
        """The state saved at `step`, with the shapes and dtypes of `like`, on `device`. Raises RunError."""
        sharding = jax.sharding.SingleDeviceSharding(device)
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
        return self._restored(step, lambda _: target)

    def params(self, step: int, device: Any) -> dict[str, Any]:
        """The parameters saved at `step`, whatever model they are of. Raises RunError."""
        sharding = jax.sharding.SingleDeviceSharding(device)

        def target(saved: Any) -> Any:
            tree = getattr(saved, "tree", saved)  # its type differs between versions of Orbax
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

        return self._restored(step, target)["params"]

    def _restored(self, step: int, target_of: Callable[[Any], Any]) -> Any:
        """`target_of` makes the shapes, dtypes and devices to restore from what the checkpoint says of itself."""
        import orbax.checkpoint as ocp

        path = self.directory / f"{step:08d}" / "state"
        try:
            with quiet_storage(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                target = target_of(checkpointer.metadata(path).item_metadata)
                return checkpointer.restore(path, args=ocp.args.StandardRestore(target))
        except Exception as error:  # Orbax raises whatever its storage layers do
            raise RunError(f"{path}: cannot restore: {first_line(error)[:300]}") from None


def newest_common(all_checkpoints: list[Checkpoints]) -> int | None:
    """The newest step that every variant of a group has, or None."""
    steps = [set(checkpoints.steps()) for checkpoints in all_checkpoints]
    return max(set.intersection(*steps), default=None)
