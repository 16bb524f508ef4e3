"""Faults of a file system, injected into this process: a call fails, or is the last one before the process is killed.

While `injected` lasts, the functions of `os` that change files count the calls below one folder, and files are opened
for writing by Python's own `io`, whose every write is an `os.write`. A kill is a `Killed` that leaves the call; from
then on nothing has an effect, so that what is done on the way out (removing a temporary file, say) is not done, as
after kill -9. Bytes in the buffers of open files are lost. For Linux.
"""

import _pyio
import builtins
import io
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np


class Killed(BaseException):
    """The end of a process by SIGKILL."""


class Call(NamedTuple):
    """operation: create, write, fsync, rename, unlink, mkdir, rmdir or truncate. path, other: with `runs` below."""

    operation: str
    path: str
    other: str = ""


@dataclass(frozen=True)
class Fault:
    """at: number of the call, from 1. code: an errno, or 0 for a kill. half: half of a write is done first.
    persistent: all later calls fail too."""

    at: int
    code: int = 0
    half: bool = False
    persistent: bool = False


@dataclass
class Disk:
    """The calls below `root` and, if `power` is set, what survives a power cut.

    The model is that of POSIX: the bytes of a file are safe once it was synced after they were written, a name once its
    folder was. What was removed stays removed. A disk that claims to have synced and has not is beyond any program.
    """

    root: str
    fault: Fault | None = None
    power: bool = False
    calls: list[Call] = field(default_factory=list)  # that had an effect
    count: int = 0
    dead: bool = False
    _generation: dict[int, int] = field(default_factory=dict)  # of an inode's number, which is used again
    _bytes: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _names: dict[str, dict[str, tuple[int, int] | None]] = field(default_factory=dict)  # by folder; None: a folder

    def __post_init__(self) -> None:
        if self.power:
            for folder, _, names in os.walk(self.root):
                self._sync_folder(folder)
                for name in names:
                    self._sync_file(f"{folder}/{name}")

    def do(self, call: Call, real: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        if not call.path.startswith(f"{self.root}/") and call.path != self.root:
            return real()
        if self.dead:
            raise Killed
        self.count += 1
        fault = self.fault
        if fault is not None and (self.count == fault.at or (fault.persistent and self.count > fault.at)):
            if fault.half and half is not None:
                half()
            self.dead = not fault.code
            raise Killed if self.dead else OSError(fault.code, os.strerror(fault.code), call.path)
        result = real()
        self.calls.append(call)
        if self.power:
            if call.operation == "create":
                number = os.stat(call.path).st_ino
                self._generation[number] = self._generation.get(number, 0) + 1
            elif call.operation == "fsync":
                self._sync_folder(call.path) if os.path.isdir(call.path) else self._sync_file(call.path)
            elif call.operation == "unlink":
                self._names.get(os.path.dirname(call.path), {}).pop(os.path.basename(call.path), None)
        return result

    def _key(self, path: str) -> tuple[int, int]:
        number = os.stat(path).st_ino
        return number, self._generation.get(number, 0)

    def _sync_file(self, path: str) -> None:
        self._bytes[self._key(path)] = Path(path).read_bytes()

    def _sync_folder(self, folder: str) -> None:
        entries = list(os.scandir(folder))
        self._names[folder] = {entry.name: None if entry.is_dir() else self._key(entry.path) for entry in entries}

    def cut(self, draws: np.random.Generator) -> None:
        """Takes from the folder what is not safe: names and bytes, or in half of the cases the bytes alone."""
        names_survive = bool(draws.random() < 0.5)
        files = {str(path): self._key(str(path)) for path in Path(self.root).rglob("*") if path.is_file()}
        safe = self._image(self.root)
        for path, key in files.items():
            synced = self._bytes.get(key, b"")
            if names_survive and path not in safe:
                size = os.path.getsize(path)
                safe[path] = (synced + bytes(size))[:size]  # the length was written, the bytes were not
        for path in files:
            os.unlink(path)
        for path, content in safe.items():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).write_bytes(content)

    def _image(self, folder: str) -> dict[str, bytes]:
        image = {}
        for name, key in self._names.get(folder, {}).items():
            path = f"{folder}/{name}"
            image |= self._image(path) if key is None else {path: self._bytes.get(key, b"")}
        return image


@contextmanager
def injected(disk: Disk) -> Iterator[Disk]:
    """Applies `disk` to all changes of files for the time of the `with`."""
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "ftruncate", "unlink", "mkdir", "rmdir")}
    replace, real_open = os.replace, builtins.open

    def path_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")

    def opened(path, flags, *rest, **more):
        call = lambda: real["open"](path, flags, *rest, **more)  # noqa: E731
        if flags & os.O_CREAT and not os.path.lexists(path):
            return disk.do(Call("create", os.path.abspath(path)), call)
        return call()

    def written(descriptor, data):
        half = lambda: real["write"](descriptor, bytes(data)[: len(data) // 2])  # noqa: E731
        return disk.do(Call("write", path_of(descriptor)), lambda: real["write"](descriptor, data), half)

    def by_descriptor(operation: str, name: str):
        return lambda descriptor, *rest: disk.do(
            Call(operation, path_of(descriptor)), lambda: real[name](descriptor, *rest)
        )

    def by_path(operation: str):
        def call(path, *rest, **more):
            return disk.do(Call(operation, os.path.abspath(path)), lambda: real[operation](path, *rest, **more))

        return call

    def renamed(source, target):
        call = Call("rename", os.path.abspath(source), os.path.abspath(target))
        return disk.do(call, lambda: replace(source, target))

    files: weakref.WeakSet[Any] = weakref.WeakSet()

    def python_open(file, mode="r", *rest, **more):
        if not isinstance(file, str | os.PathLike) or not set(mode) & set("wxa+"):
            return real_open(file, mode, *rest, **more)
        opened = _pyio.open(file, mode, *rest, **more)
        buffer = getattr(opened, "buffer", opened)
        files.add(getattr(buffer, "raw", buffer))
        return opened

    functions = {"open": opened, "write": written, "fsync": by_descriptor("fsync", "fsync")}
    functions |= {"ftruncate": by_descriptor("truncate", "ftruncate"), "replace": renamed, "rename": renamed}
    functions |= {name: by_path(name) for name in ("unlink", "mkdir", "rmdir")} | {"remove": by_path("unlink")}
    with ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(patch.object(os, name, function))
        for module in (builtins, io):
            stack.enter_context(patch.object(module, "open", python_open))
        try:
            yield disk
        finally:
            if disk.dead:
                for raw in files:
                    raw._fd = -1  # what is in a buffer has nowhere to go
                _close_all(disk.root)


def _close_all(root: str) -> None:
    """Turns what a killed run has left open below `root` to nowhere, which lets go of its locks."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"{root}/"):
                os.dup2(nowhere, int(name))
    os.close(nowhere)
