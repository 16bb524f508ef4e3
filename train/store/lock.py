"""One writer a run directory: the kernel's lock on its file `.lock`, for as long as the process lives.

The lock ends with its process, also by kill -9, so a file that is left behind is no obstacle. The file's text names the
holder.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.files import NO_SUCH_CALL, sync_folder

from ..errors import Failure, refusal

NAME = ".lock"
_NO_LOCKS = {*NO_SUCH_CALL, errno.ENOLCK}
_WAIT_S = 0.2  # a lock that is being released, or whose text is being written


@contextmanager
def locked(directories: Sequence[Path], warn: Callable[[str], None]) -> Iterator[None]:
    """Makes every directory and holds its lock; removes those that are still empty afterwards.

    Raises UserError, and holds none, when one of them is held by another process. A file system without locks, and a
    lock that a process of another machine has left, are warned about and used; `warn` may get one line several
    times.
    """
    warnings: list[str] = []
    with ExitStack() as stack:
        for directory in directories:
            stack.enter_context(_made(directory))
            stack.enter_context(_locked(directory, warnings.append))
        for line in warnings:
            warn(line)
        yield


def held(directory: Path) -> bool:
    """True while a process writes a run directory. A lock that a killed process has left does not count."""
    path = directory / NAME
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0, fallback_to_soft=False):
            return False
    except (Timeout, OSError):  # also on a file system without locks, where the file is all there is
        return True


@contextmanager
def _locked(directory: Path, warn: Callable[[str], None]) -> Iterator[None]:
    path = directory / NAME
    before = _holder(path)
    lock, owner, signed = FileLock(path, timeout=_WAIT_S, fallback_to_soft=False, on_acquired=_sign), os.getpid(), False
    wait = "wait for it, stop it, or choose another name (name=...)"
    try:
        lock.acquire()
    except Timeout:
        raise Failure(f"{directory}: is written by {_named(_holder(path))}; {wait}") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise Failure(f"{path}: cannot lock: {refusal(error, directory)}") from None
        if before and before["host"] == socket.gethostname() and before["pid"] != owner:
            try:
                os.kill(before["pid"], 0)
                lives = True
            except (OSError, OverflowError) as answer:
                lives = not isinstance(answer, ProcessLookupError)
            if lives:
                raise Failure(f"{directory}: is written by {_named(before)}; {wait}") from None
        with suppress(OSError), open(path, "ab") as file:  # the text alone has to do here
            _sign(file.fileno())
            signed = True
        root, reason = directory.parent, os.strerror(error.errno)
        warn(f"{root}: no file locks here ({reason}); make sure that no other process writes the same run")
    if lock.is_locked and before and before["host"] != socket.gethostname():
        warn(f"{directory}: was locked by {_named(before)}; if that still runs, stop one of the two")
    try:
        yield
    finally:
        if lock.is_locked:  # not in a forked child, whose parent holds it
            with suppress(OSError):
                path.unlink()  # before the release: afterwards it may be another's
            lock.release()
        elif signed and os.getpid() == owner:
            with suppress(OSError):
                path.unlink()


def _sign(descriptor: int) -> None:
    """Writes the holder's name into the lock's file."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S%z")}
    with suppress(OSError):  # a full disk: it is locked all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)


def _holder(path: Path) -> dict[str, Any] | None:
    """Returns the holder named in a lock's file, None if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            holder = json.loads(os.read(descriptor, 4096))
        finally:
            os.close(descriptor)
        return holder if isinstance(holder["pid"], int) and isinstance(holder["host"], str) else None
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def _named(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    text = f"process {holder['pid']} on {holder['host']} (since {holder.get('since', 'an unknown time')})"
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Makes a directory, and afterwards removes what was made and is still empty. Raises UserError."""
    try:
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        for path in missing:  # or a power cut could take the run with all that is synced in it
            sync_folder(path.parent)
    except OSError as error:
        raise Failure(f"{directory}: cannot be made: {refusal(error, directory)}") from None
    try:
        yield
    finally:
        for path in missing:  # the deepest first
            with suppress(OSError):  # it is in use
                path.rmdir()
