"""Damaged checkpoint files: a run must go back to a whole one, and never restore what was not saved.

A trial is one fault in a copy of a run directory with three checkpoints of a tiny state with Adam's moments. Held: the
newest whole checkpoint is chosen, with one line, and what is restored is, bit for bit, what was saved at its step.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from scripts.faults.results import Row
from train.core.state import State
from train.errors import UserError
from train.store.checkpoint import Checkpoints, arrays_of

PROMISE = "goes back to the newest whole checkpoint; what is restored is what was saved"
STEPS = (10, 20, 30)
DRAWN = {"one bit flipped": 1000, "cut short": 100, "bytes added": 50, "a stretch of zeros": 100}


def rows(scale: float, seed: int) -> Iterable[Row]:
    draw = random.Random(seed)
    once = {"deleted and made again, empty": empty, "a link to its own copy": link, "the oldest under its name": other}
    with tempfile.TemporaryDirectory(prefix="deltaflow-damage-") as folder:
        run, work = Path(folder) / "run", Path(folder) / "work"
        states = {step: state_at(step) for step in STEPS}
        for state in states.values():
            Checkpoints(run).save(state, {"row": {}})
        drawn = {"one bit flipped": flip, "cut short": cut, "bytes added": add, "a stretch of zeros": zeros}
        for name, fault in drawn.items():
            count = max(1, round(DRAWN[name] * scale))
            yield _row(name, [partial(fault, draw)] * count, run, work, states)
        for name, fault in once.items():
            yield _row(name, [fault], run, work, states)
        yield _all_damaged(max(1, round(100 * scale)), draw, run, work)


def _row(name: str, faults: list[Callable[[Path], str]], run: Path, work: Path, states: dict[int, State]) -> Row:
    broken = []
    for fault in faults:
        shutil.copytree(run, work)
        what = fault(Checkpoints(work).path(STEPS[-1]))
        if wrong := _wrong(work, states):
            broken.append(f"{what}: {wrong}")
        shutil.rmtree(work)
    return Row(f"the newest checkpoint: {name}", PROMISE, len(faults), len(faults) - len(broken), "", tuple(broken[:5]))


def _wrong(work: Path, states: dict[int, State]) -> str | None:
    lines: list[str] = []
    checkpoints = Checkpoints(work)
    try:
        step = checkpoints.newest(lines.append)
        if step != STEPS[-2]:
            return f"step {step} was used"
        restored = arrays_of(checkpoints.restore(step, states[step], jax.devices()[0]))
    except UserError as error:
        return f"no restore: {error}"
    saved = arrays_of(states[step])
    if any(restored[p].tobytes() != a.tobytes() or restored[p].dtype != a.dtype for p, a in saved.items()):
        return "what was restored was not saved there"
    return None if len(lines) == 1 and "\n" not in lines[0] else f"printed {lines!r}"


def _all_damaged(trials: int, draw: random.Random, run: Path, work: Path) -> Row:
    broken = []
    for _ in range(trials):
        shutil.copytree(run, work)
        what = "; ".join(flip(draw, Checkpoints(work).path(step)) for step in STEPS)
        try:
            broken.append(f"{what}: step {Checkpoints(work).newest(lambda _: None)} is taken for whole")
        except UserError as error:
            if "\n" in str(error) or not all(f"step {step}: " in str(error) for step in STEPS):
                broken.append(f"{what}: {error}")
        shutil.rmtree(work)
    promise = "an error in one line that names each; never starts over by itself"
    return Row("one bit flipped in every checkpoint", promise, trials, trials - len(broken), "", tuple(broken[:5]))


def state_at(step: int) -> State:
    rng = np.random.default_rng(step)
    params = {name: rng.normal(size=(16, 16)).astype(np.float32) for name in ("embed", "head", "q", "k")}
    moments = [{name: rng.normal(size=(16, 16)).astype(np.float32) for name in params} for _ in range(2)]
    return State(params, (np.int32(step), *moments), np.asarray(step, np.int32))  # pyright: ignore[reportArgumentType]


def flip(draw: random.Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {path.name}"


def cut(draw: random.Random, path: Path) -> str:
    length = draw.randrange(path.stat().st_size)
    os.truncate(path, length)
    return f"{path.name} cut to {length} bytes"


def add(draw: random.Random, path: Path) -> str:
    more = draw.randbytes(draw.randrange(1, 5000))
    path.write_bytes(path.read_bytes() + more)
    return f"{len(more)} bytes added to {path.name}"


def zeros(draw: random.Random, path: Path) -> str:
    """As a power cut leaves blocks that were not written."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(0, len(content), 512)
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)
    return f"zeros from byte {start} of {path.name}"


def empty(path: Path) -> str:
    path.write_bytes(b"")
    return "emptied"


def link(path: Path) -> str:
    copy = path.parent.parent / "copy"
    path.rename(copy)
    path.symlink_to(copy)
    return "linked"


def other(path: Path) -> str:
    shutil.copy(path.with_name(f"{STEPS[0]:08d}.safetensors"), path)
    return "the oldest copied over the newest"
