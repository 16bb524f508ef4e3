"""One writer a run directory: a file `.lock` in it, held by the kernel for as long as the process lives.

The kernel's lock (flock) decides on one machine: it ends with its process, also by kill -9, so a file that is left
behind is no obstacle, and two that start at once cannot both get it. Its text tells people who holds it; and a second
machine, where a network file system may not pass flock on.
"""

import errno
import json
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..device import process
from ..disk import refusal
from ..errors import UserError

NAME = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_held: weakref.WeakSet["Lock"] = weakref.WeakSet()


@contextmanager
def locked(directories: Sequence[Path], note: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of every directory; they are made, and what of them is still empty afterwards is removed.

    Raises UserError, and holds none, when one of them is held by another process. `note` is told of a lock that was
    left behind and is taken over.
    """
    with ExitStack() as stack:
        for directory in directories:
            made = _made(directory)
            stack.callback(_unmade, made)
            stack.callback(Lock(directory, note).release)
        yield


class Lock:
    """The lock of one directory, from construction to `release`. Raises UserError when another process has it."""

    def __init__(self, directory: Path, note: Callable[[str], None]):
        self.path = directory / NAME
        self._owner, self._descriptor = os.getpid(), -1
        try:
            self._descriptor = self._acquired(note)
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, json.dumps(_self()).encode() + b"\n")
        except OSError as error:
            self.release()
            raise UserError(f"{self.path}: cannot lock: {refusal(error, directory)}") from None
        _held.add(self)

    def release(self) -> None:
        """Removes the file and lets go. In a forked child: nothing, the lock is its parent's."""
        if os.getpid() == self._owner and self._descriptor >= 0:
            if os.name == "nt":  # where an open file cannot be removed
                self.forget()
            with suppress(OSError):
                self.path.unlink()  # before letting go: afterwards it may be another's
            self.forget()

    def forget(self) -> None:
        """Closes the file and leaves it where it is."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _acquired(self, note: Callable[[str], None]) -> int:
        """The open file, locked. Raises OSError, UserError."""
        while True:
            descriptor, new = _open(self.path)
            try:
                lockable = _flock(descriptor)
                holder = {} if new else _holder(descriptor)
                if lockable is None and new:  # no locks here: that we made the file has to do
                    return descriptor
                if not lockable or _elsewhere(holder):
                    raise UserError(self._refusal(descriptor, lockable))
                if not _same(descriptor, self.path):  # its holder has just removed it
                    os.close(descriptor)
                    continue
                if holder:
                    note(f"{self.path.parent}: the lock of {_named(holder)}, which has ended, is taken over")
                return descriptor
            except BaseException:
                with suppress(OSError):
                    os.close(descriptor)
                raise

    def _refusal(self, descriptor: int, lockable: bool | None) -> str:
        deadline = time.monotonic() + 0.5
        while not (holder := _holder(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.02)  # it has been made and is not written yet
        who = _named(holder) if holder else "another process"
        wait = "wait for it, stop it, or choose another name (name=...)"
        remove = f"if that process is gone, delete {self.path}"
        return f"{self.path.parent}: is written by {who}; " + (wait if lockable is False else f"{wait}; {remove}")


def _self() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": process.boot(),
        "started": process.started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }


def _open(path: Path) -> tuple[int, bool]:
    """(the open file, whether it was made). Raises OSError."""
    flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        with suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
        with suppress(FileNotFoundError):  # removed since
            return os.open(path, flags), False


def _flock(descriptor: int) -> bool | None:
    """True: the lock is ours; False: another's; None: there are no such locks here. Raises OSError."""
    try:
        import fcntl  # absent on Windows
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _holder(descriptor: int) -> dict[str, Any]:
    """What the file says of its holder; empty when it says nothing that can be read."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = json.loads(os.read(descriptor, 4096))
    except (OSError, ValueError, RecursionError):
        return {}
    wanted = {"pid": int, "host": str}
    return found if isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in wanted.items()) else {}


def _elsewhere(holder: dict[str, Any]) -> bool:
    """Whether the holder may live although the kernel has given us its lock: on another machine whose locks this one
    does not see, or under another view of the same file system."""
    if not holder:
        return False
    boot = process.boot()
    if boot is not None and holder.get("boot") == boot:
        start = process.started(holder["pid"])
        return start is not None and start == holder.get("started") and holder["pid"] != os.getpid()
    return holder["host"] != socket.gethostname()


def _named(holder: dict[str, Any]) -> str:
    text = f"process {holder['pid']} on {holder['host']} (since {holder.get('since', 'an unknown time')})"
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _made(directory: Path) -> list[Path]:
    """Makes a directory; returns what had to be made, the deepest first. Raises UserError."""
    try:
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be made: {refusal(error, directory)}") from None
    return missing


def _unmade(made: Sequence[Path]) -> None:
    for path in made:
        with suppress(OSError):  # it is in use
            path.rmdir()


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):  # else a child would keep its parent's lock beyond the parent's end
    os.register_at_fork(after_in_child=_forget_all)
