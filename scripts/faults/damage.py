"""Damaged checkpoint files: a run must go back to a whole one, and never restore what was not saved.

A trial is one fault in the newest of three checkpoints of a small state with Adam's moments. Held: the one before it is
chosen, with one line, and what is restored is, bit for bit, what was saved at its step.
"""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from scripts.faults.sweep import HELD, Broken, Sweep
from train.core.state import State
from train.errors import UserError
from train.store.checkpoint import Checkpoints

PROMISE = "goes back to the newest whole checkpoint; what is restored is what was saved"
STEPS = (10, 20, 30)


def sweeps(seed: int) -> Iterator[Sweep]:
    draw = random.Random(seed)
    with TemporaryDirectory(prefix="deltaflow-damage-") as folder:
        checkpoints = Checkpoints(Path(folder))
        rng = np.random.default_rng(seed)
        for step in STEPS:
            params, *moments = ({"q": rng.normal(size=(3, 4)).astype(np.float32)} for _ in range(3))
            checkpoints.save(State(params, moments, np.int32(step)), {"row": {}})  # pyright: ignore[reportArgumentType]
        before = checkpoints.arrays(STEPS[-2])
        path = checkpoints.path(STEPS[-1])
        whole, size = path.read_bytes(), path.stat().st_size

        def link(_: int) -> None:
            path.rename(path.parent.parent / "copy")
            path.symlink_to(path.parent.parent / "copy")

        faults = {
            "every bit flipped": (range(8 * size), lambda bit: path.write_bytes(flip(whole, bit))),
            "cut at every byte": (range(size), lambda end: path.write_bytes(whole[:end])),
            "bytes added": (range(1, 5001, 100), lambda more: path.write_bytes(whole + draw.randbytes(more))),
            # As a power cut leaves blocks that were not written.
            "64 zeros from every eighth byte": (
                range(0, size, 8),
                lambda at: path.write_bytes(whole[:at] + bytes(len(whole[at : at + 64])) + whole[at + 64 :]),
            ),
            "the oldest under its name": ([0], lambda _: path.write_bytes(checkpoints.path(STEPS[0]).read_bytes())),
            "a link to its own copy": ([0], link),
        }

        def try_damage(damage, place: int) -> tuple[str, float]:
            try:
                damage(place)
                lines: list[str] = []
                step = checkpoints.newest(lines.append)
                if step != STEPS[-2] or len(lines) != 1 or "\n" in lines[0]:
                    raise Broken(f"step {step} was used, with the lines {lines!r}")
                for name, array in checkpoints.arrays(step).items():
                    if array.tobytes() != before[name].tobytes() or array.dtype != before[name].dtype:
                        raise Broken(f"{name} is read as it was not saved")
            finally:
                path.unlink()
                path.write_bytes(whole)
            return HELD

        for name, (places, damage) in faults.items():
            yield Sweep(f"the newest checkpoint: {name}", PROMISE, places, partial(try_damage, damage))

        def flip_all(bit: int) -> None:
            for each in map(checkpoints.path, STEPS):
                each.write_bytes(flip(each.read_bytes(), bit))

        def try_all(bit: int) -> tuple[str, float]:
            flip_all(bit)
            try:
                raise Broken(f"step {checkpoints.newest(lambda _: None)} is taken for whole")
            except UserError as error:
                if "\n" in str(error) or not all(f"step {step}: " in str(error) for step in STEPS):
                    raise Broken(str(error)) from error
            finally:
                flip_all(bit)
            return HELD

        promise = "an error in one line that names each; never starts over by itself"
        bits = [draw.randrange(8 * size) for _ in range(100)]
        yield Sweep("one bit flipped in every checkpoint", promise, bits, try_all)


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8 % len(content)] ^= 1 << bit % 8
    return bytes(changed)
