"""Faults of a file system, injected into this process: a call fails, or is the last one before the process is killed.

While `injected` lasts, the functions of `os` that change files count the calls below one folder, and files are opened
for writing by Python's own `io`, whose every write is an `os.write`. A kill is a `Killed` that leaves the call; from
then on nothing has an effect, so that what is done on the way out (removing a temporary file, say) is not done, as
after kill -9. Bytes in the buffers of open files are lost. For Linux.
"""

import _pyio
import builtins
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch


class Killed(BaseException):
    """The end of a process by SIGKILL."""


class Call(NamedTuple):
    """operation: create, write, fsync, rename, unlink, mkdir, rmdir or truncate. path, other: with `runs` below."""

    operation: str
    path: str
    other: str = ""


class Fault(NamedTuple):
    """at: number of the call, from 1. code: an errno, or 0 for a kill. half: half of a write is done first.
    persistent: all later calls fail too. where: of all calls, those that are counted."""

    at: int
    code: int = 0
    half: bool = False
    persistent: bool = False
    where: Callable[[Call], bool] = lambda call: True


@dataclass
class Disk:
    """The calls below `root`, the one that fails, and what survives a power cut.

    after: called after each call that succeeds.

    The model is that of POSIX: the bytes of a file are safe once it was synced after they were written, a name once its
    folder was. What was removed stays removed. A disk that claims to have synced and has not is beyond any program.
    """

    root: str
    fault: Fault | None = None
    after: Callable[[Call], object] = lambda call: None
    calls: list[Call] = field(default_factory=list)  # so far, but for those that were refused
    count: int = 0
    dead: bool = False
    _files: dict[int, object] = field(default_factory=dict)  # by the inode's number, which is used again
    _bytes: dict[object, bytes] = field(default_factory=dict)  # by file
    _names: dict[str, dict[str, object]] = field(default_factory=dict)  # by folder: files, and None for a folder

    def __post_init__(self) -> None:
        for folder, _, names in os.walk(self.root):
            for path in (folder, *(f"{folder}/{name}" for name in names)):
                self._sync(path)

    def do(self, call: Call, real: Callable[[], Any], half: Callable[[], Any]) -> Any:
        """Does a call, or the fault in its place; `half` does half of a write."""
        if not call.path.startswith(f"{self.root}/") and call.path != self.root:
            return real()
        if self.dead:
            raise Killed
        fault = self.fault if self.fault is not None and self.fault.where(call) else None
        self.count += fault is not None
        if fault is not None and (self.count == fault.at or (fault.persistent and self.count > fault.at)):
            if fault.half and call.operation == "write":
                half()
            self.dead = not fault.code
            raise Killed if self.dead else OSError(fault.code, os.strerror(fault.code), call.path)
        self.calls.append(call)  # also what fails by itself, as to remove what is not there: it is counted too
        result = real()
        if call.operation == "create":
            self._files[os.stat(call.path).st_ino] = object()
        elif call.operation == "fsync":
            self._sync(call.path)
        elif call.operation == "unlink":
            self._names.get(os.path.dirname(call.path), {}).pop(os.path.basename(call.path), None)
        self.after(call)
        return result

    def refuse(self, operation: str, code: int, at: int = 1, where: Callable[[str], bool] = lambda path: True) -> None:
        """From now on the `at`-th call of an operation, and all later ones, fail; `where`: on those paths alone."""

        def chosen(call: Call) -> bool:
            return call.operation == operation and where(call.path)

        self.count, self.fault = 0, Fault(at, code, persistent=True, where=chosen)

    def _file(self, path: str) -> object:
        return self._files.setdefault(os.stat(path).st_ino, object())

    def _sync(self, path: str) -> None:
        if os.path.isdir(path):
            entries = list(os.scandir(path))
            self._names[path] = {entry.name: None if entry.is_dir() else self._file(entry.path) for entry in entries}
        else:
            self._bytes[self._file(path)] = Path(path).read_bytes()

    def cut(self, names_survive: bool) -> None:
        """Takes from the folder what is not safe: names and bytes, or the bytes alone, which are zeros then."""
        safe = self._image(self.root)
        for path in [str(path) for path in Path(self.root).rglob("*") if path.is_file()]:
            if names_survive and path not in safe:
                size = os.path.getsize(path)
                safe[path] = (self._bytes.get(self._file(path), b"") + bytes(size))[:size]
            os.unlink(path)
        for path, content in safe.items():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).write_bytes(content)

    def _image(self, folder: str) -> dict[str, bytes]:
        image = {}
        for name, file in self._names.get(folder, {}).items():
            path = f"{folder}/{name}"
            image |= self._image(path) if file is None else {path: self._bytes.get(file, b"")}
        return image


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")


# The functions of `os`: the operation that each is, and the path of its first argument.
FUNCTIONS = {
    "open": ("create", os.path.abspath),
    "write": ("write", _path_of),
    "fsync": ("fsync", _path_of),
    "ftruncate": ("truncate", _path_of),
    "replace": ("rename", os.path.abspath),
    "rename": ("rename", os.path.abspath),
    "unlink": ("unlink", os.path.abspath),
    "remove": ("unlink", os.path.abspath),
    "mkdir": ("mkdir", os.path.abspath),
    "rmdir": ("rmdir", os.path.abspath),
}


@contextmanager
def injected(disk: Disk) -> Iterator[Disk]:
    """Applies `disk` to all changes of files for the time of the `with`."""
    real_open = builtins.open
    raw_files: weakref.WeakSet[Any] = weakref.WeakSet()

    def replaced(name: str) -> Callable:
        real, (operation, located) = getattr(os, name), FUNCTIONS[name]

        def function(what, *rest, **more):
            if name == "open" and not (rest[0] & os.O_CREAT and not os.path.lexists(what)):
                return real(what, *rest, **more)
            other = os.path.abspath(rest[0]) if operation == "rename" else ""
            return disk.do(
                Call(operation, located(what), other),
                lambda: real(what, *rest, **more),
                lambda: real(what, bytes(rest[0])[: len(rest[0]) // 2]),
            )

        return function

    def python_open(file, mode="r", *rest, **more):
        if not isinstance(file, str | os.PathLike) or not set(mode) & set("wxa+"):
            return real_open(file, mode, *rest, **more)
        opened = _pyio.open(file, mode, *rest, **more)
        buffer = getattr(opened, "buffer", opened)
        raw_files.add(getattr(buffer, "raw", buffer))
        return opened

    with ExitStack() as stack:
        for name, function in {name: replaced(name) for name in FUNCTIONS}.items():
            stack.enter_context(patch.object(os, name, function))
        stack.enter_context(patch("builtins.open", python_open))
        stack.enter_context(patch("io.open", python_open))
        try:
            yield disk
        finally:
            if disk.dead:  # what it has left open leads to nowhere: its locks are let go, its buffers are lost
                nowhere = os.open(os.devnull, os.O_RDWR)
                for name in os.listdir("/proc/self/fd"):
                    with suppress(OSError):
                        if _path_of(int(name)).startswith(f"{disk.root}/"):
                            os.dup2(nowhere, int(name))
                os.close(nowhere)
                for raw in raw_files:  # closed when it is forgotten, without a warning
                    if not raw.closed:
                        raw._closefd = False
                        weakref.finalize(raw, os.close, raw.fileno())
