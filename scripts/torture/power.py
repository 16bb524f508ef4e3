"""What a power cut leaves of the calls that the shim noted: what was not synced may be gone.

The model is that of POSIX and not kinder: bytes are safe once their file was synced after they were written, a name
(made, or given by a rename) once its folder was synced after that. Of the rest anything may be there, and names are
lost from the last backwards. What was removed stays removed. A disk that says it has synced and has not is beyond
any program.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from scripts.torture.shim import Call


@dataclass
class Disk:
    """What of a folder is safe; `sizes` has the files that were there before, all of them safe."""

    sizes: dict[str, int]  # bytes of each file that survive
    dirty: set[str] = field(default_factory=set)
    names: list[Call] = field(default_factory=list)  # made or given, and not synced

    @classmethod
    def of(cls, folder: Path) -> "Disk":
        """Everything in it is safe."""
        return cls({str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()})

    def saw(self, noted: Sequence[Call]) -> None:
        """The calls that were done, in order."""
        for call in noted:
            if call.outcome == "ok":
                self._one(call)

    def _one(self, call: Call) -> None:
        match call.operation:
            case "create" | "mkdir":
                self.names.append(call)
                if call.operation == "create":
                    self.sizes[call.path] = 0
            case "empty" | "truncate":
                self.sizes[call.path] = min(self.sizes.get(call.path, 0), call.size)
            case "write":
                self.dirty.add(call.path)
            case "fsync":
                if Path(call.path).is_dir() or call.path not in self.sizes:
                    self.names = [name for name in self.names if str(Path(name.other or name.path).parent) != call.path]
                if call.path in self.sizes:
                    self.sizes[call.path] = call.size
                    self.dirty.discard(call.path)
            case "rename":
                moved = [replace(n, path=_moved(n.path, call), other=_moved(n.other, call)) for n in self.names]
                self.names = [*moved, call]
                self.sizes = {_moved(path, call): size for path, size in self.sizes.items() if path != call.other}
                self.dirty = {_moved(path, call) for path in self.dirty if path != call.other}
            case "unlink":
                self.sizes.pop(call.path, None)
                self.dirty.discard(call.path)

    def cut(self, keep: Path, draws: np.random.Generator) -> None:
        """Takes from the real folder what is not safe, or half of the time some of it; `keep` is the shim's."""
        all_of_it = bool(draws.random() < 0.5)
        for path in sorted(self.dirty):
            fate = 0 if all_of_it else int(draws.integers(3))
            with suppress(FileNotFoundError):
                safe, size = self.sizes.get(path, 0), os.path.getsize(path)
                if fate < 2:
                    os.truncate(path, min(safe, size))
                if fate == 1:  # the length was known to the disk, the bytes were not
                    os.truncate(path, size)
        survivors = 0 if all_of_it else int(draws.integers(len(self.names) + 1))
        for call in reversed(self.names[survivors:]):
            _undone(call, keep)


def _undone(call: Call, keep: Path) -> None:
    if call.operation == "rename":
        with suppress(OSError):  # it was removed since, or renamed once more
            os.rename(call.other, call.path)
            with suppress(FileNotFoundError):
                os.rename(keep / str(call.number), call.other)
    elif call.operation == "mkdir":
        shutil.rmtree(call.path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(call.path)


def _moved(path: str, call: Call) -> str:
    """Where a file is after a rename of it, or of a folder around it."""
    if path == call.path:
        return call.other
    return call.other + path[len(call.path) :] if path.startswith(f"{call.path}/") else path
