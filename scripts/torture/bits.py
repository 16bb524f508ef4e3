"""Damaged files of checkpoints: a run must go back to one that is whole, and never restore what was not saved.

A trial is one fault in one copy of a real run directory (three checkpoints of a tiny transformer with Adam's state,
written by Checkpoints.save): the newest checkpoint that verifies is asked for, and restored through Orbax. It holds
when what comes back is, bit for bit, what was saved at the step it claims to be, and is not of the damaged checkpoint.
"""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.source import DataSpec
from scripts.torture.row import Row
from train.config.load import from_mapping
from train.core.state import State, hparams_of, initial_state
from train.core.task import network_of
from train.errors import UserError
from train.store.checkpoint import Checkpoints

FLIPS, CUTS, SWAPS = 1000, 100, 100
PROMISE = "goes back to the newest whole checkpoint; what is restored is what was saved"
STEPS = (10, 20, 30)
Fault = Callable[[Path], str]  # damages something in the folder of a checkpoint, and tells what


def rows(scale: float, seed: int) -> Iterable[Row]:
    """One row for each kind of fault."""
    with tempfile.TemporaryDirectory(prefix="deltaflow-bits-") as folder:
        bench = _Bench(Path(folder))
        draw = random.Random(seed)
        for name, faults in (
            ("one bit flipped, in any file", [partial(_flip, draw)] * _count(FLIPS, scale)),
            ("a file cut short", [partial(_cut, draw)] * _count(CUTS, scale)),
            ("two files exchanged", [partial(_swap, draw)] * _count(SWAPS, scale)),
            ("each file deleted", [partial(_delete, index) for index in bench.each(scale)]),
            ("each file replaced by an empty one", [partial(_empty, index) for index in bench.each(scale)]),
            ("each file a link to its own copy", [partial(_link, index) for index in bench.each(scale)]),
            ("a whole checkpoint under another's name", [_renamed]),
        ):
            yield bench.row(name, faults)
        yield bench.all_damaged(_count(SWAPS, scale), draw)


def _count(trials: int, scale: float) -> int:
    return max(1, round(trials * scale))


class _Bench:
    """A run directory with three checkpoints, and what was saved in each."""

    def __init__(self, folder: Path):
        self.run, self.work = folder / "run", folder / "work"
        self.states = _states()
        for state in self.states.values():
            Checkpoints(self.run).save(state, {"row": {}})
        self.device = jax.devices()[0]

    def each(self, scale: float) -> list[int]:
        """Indices of the files of a checkpoint; of some when scaled down."""
        count = len(_files(Checkpoints(self.run).folder(STEPS[-1])))
        return list(range(count))[:: max(1, round(1 / max(scale, 1 / count)))] if scale < 1 else list(range(count))

    def row(self, name: str, faults: list[Fault]) -> Row:
        held, broken = 0, []
        for fault in faults:
            shutil.copytree(self.run, self.work)
            what = fault(Checkpoints(self.work).folder(STEPS[-1]))
            wrong = self._wrong(STEPS[-2])
            shutil.rmtree(self.work)
            held += wrong is None
            broken += [] if wrong is None else [f"{what}: {wrong}"]
        return Row(name, PROMISE, len(faults), held, broken=tuple(broken[:5]))

    def all_damaged(self, trials: int, draw: random.Random) -> Row:
        """A fault in each of the three: an error in one line, never a start from nothing."""
        held, broken = 0, []
        for _ in range(trials):
            shutil.copytree(self.run, self.work)
            what = "; ".join(_flip(draw, Checkpoints(self.work).folder(step)) for step in STEPS)
            try:
                broken.append(f"{what}: step {Checkpoints(self.work).newest(lambda _: None)} is taken for whole")
            except UserError as error:
                good = "\n" not in str(error) and all(f"step {step}: " in str(error) for step in STEPS)
                held += good
                broken += [] if good else [f"{what}: {error}"]
            shutil.rmtree(self.work)
        promise = "an error in one line that names each; never starts over by itself"
        return Row("one bit flipped in every checkpoint", promise, trials, held, broken=tuple(broken[:5]))

    def _wrong(self, expected: int) -> str | None:
        said: list[str] = []
        checkpoints = Checkpoints(self.work)
        try:
            step = checkpoints.newest(said.append)
            if step is None:
                return "starts over"
            found = checkpoints.restore(step, self.states[step], self.device)
        except UserError as error:
            return f"no restore: {error}"
        if not _equal(found, self.states[step]):
            return f"what was restored as step {step} was not saved there"
        if step != expected:
            return f"the damaged checkpoint of step {step} was used"
        return None if len(said) == 1 and "\n" not in said[0] else f"said {said!r}"


def _states() -> dict[int, State]:
    """The initial state of a tiny transformer, with every array filled anew for each step."""
    config = (
        from_mapping(
            {"name": "bits", "model.layers": 2, "model.width": 16, "model.heads": 2, "data.context": 8, "data.batch": 4}
        )
        .variants[0]
        .config
    )
    network = network_of(config, DataSpec("lm", 8, 24, 24), "float32", 1)
    like = jax.eval_shape(partial(initial_state, network, config), hparams_of(config))
    found = {}
    for step in STEPS:
        rng = np.random.default_rng(step)

        def filled(leaf: Any, rng=rng) -> np.ndarray:
            return rng.normal(size=leaf.shape).astype(leaf.dtype)

        found[step] = jax.tree.map(filled, like)._replace(step=np.int32(step))
    return found


def _equal(one: State, other: State) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _any(draw: random.Random, folder: Path) -> Path:
    """A file, in proportion to its size."""
    files = [path for path in _files(folder) if path.stat().st_size]
    return draw.choices(files, [path.stat().st_size for path in files])[0]


def _flip(draw: random.Random, folder: Path) -> str:
    path = _any(draw, folder)
    content = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {path.relative_to(folder.parent)}"


def _cut(draw: random.Random, folder: Path) -> str:
    path = _any(draw, folder)
    length = draw.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:length])
    return f"{path.relative_to(folder.parent)} cut to {length} bytes"


def _swap(draw: random.Random, folder: Path) -> str:
    """With another file of the same checkpoint, or the same file of another; their contents differ."""
    path = draw.choice(_files(folder))
    same = [folder.parent / f"{step:08d}" / path.relative_to(folder) for step in STEPS[:-1]]
    others = [other for other in [*_files(folder), *same] if other.is_file()]
    twin = draw.choice([other for other in others if other.read_bytes() != path.read_bytes()])
    mine, theirs = path.read_bytes(), twin.read_bytes()
    path.write_bytes(theirs)
    if twin.is_relative_to(folder):  # else the other checkpoint stays whole, and has to be found
        twin.write_bytes(mine)
    return f"{path.relative_to(folder.parent)} with {twin.relative_to(folder.parent)}"


def _delete(index: int, folder: Path) -> str:
    path = _files(folder)[index]
    path.unlink()
    return f"{path.relative_to(folder.parent)} deleted"


def _empty(index: int, folder: Path) -> str:
    path = _files(folder)[index]
    if path.stat().st_size == 0:
        path.write_bytes(b"\0")
    else:
        path.write_bytes(b"")
    return f"{path.relative_to(folder.parent)} emptied"


def _link(index: int, folder: Path) -> str:
    path = _files(folder)[index]
    copy = folder.parent.parent / "copy"
    path.rename(copy)
    path.symlink_to(copy)
    return f"{path.relative_to(folder.parent)} linked"


def _renamed(folder: Path) -> str:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / f"{STEPS[0]:08d}", folder)
    return "the oldest copied over the newest"
