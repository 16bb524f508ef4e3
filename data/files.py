"""Files of users and of runs: located, read and memory-mapped with care, and replaced atomically."""

import difflib
import errno
import json
import os
import re
import secrets
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import DataError, reason

_MOST_JSON = 2**28  # bytes: a tokenizer of a million merges, each byte of which takes six
NO_SUCH_CALL = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WINDOWS = re.compile(r"([A-Za-z]):[\\/]|\\\\")  # a drive's letter, or \\server\share


def kind_of(mode: int) -> str | None:
    """The kind of a file that is not a regular one, by its `st_mode`: a pipe would block, a device may never end."""
    kinds = {stat.S_IFREG: None, stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def content_of(path: str | os.PathLike[str], at_most: int | None = None) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it cannot be opened or read.
        ValueError: it is not a regular file, or has more than `at_most` bytes; the message says which.
    """
    if kind := kind_of(os.stat(path).st_mode):  # before it is opened: to open a device may do something
        raise ValueError(f"expected a file, got {kind}")
    # A pipe that took the place of the file meanwhile is opened without waiting, and noticed.
    flags = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda path, mode: os.open(path, mode | flags)) as file:
        if kind := kind_of(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"expected a file, got {kind}")
        content = file.read() if at_most is None else file.read(at_most + 1)
    if at_most is not None and len(content) > at_most:
        raise ValueError(f"expected at most {at_most} bytes")
    return content


def json_of(path: Path, at_most: int = _MOST_JSON) -> Any:
    """The value in a JSON file. Raises OSError; ValueError for whatever is wrong with its content."""
    try:
        return json.loads(content_of(path, at_most).decode("utf-8"))
    except RecursionError:
        raise ValueError("lists or mappings nested too deeply") from None


def similar_path(path: Path, fits: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The entry of the same folder that `fits` and has the name most like this one's; None if none comes close."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if fits(entry))[:1000]
    except (OSError, ValueError):
        return None
    for name in difflib.get_close_matches(path.name, names, 20):
        if difflib.get_close_matches(path.stem, [Path(name).stem]):  # a common ending alone is no likeness
            return path.parent / name
    return None


def located(where: str, label: str, expected: str) -> Path:
    """The path of a regular file that the user names, which is not opened. Raises DataError, beginning with `label`."""
    path = Path(where)
    try:
        path = path.expanduser()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if other_system := foreign(where):
            raise DataError(f"{label} {other_system}") from None
        hint = "" if path.is_absolute() else f" (the current folder is {os.getcwd()!r})"
        if os.name != "nt" and Path(slashes := where.replace("\\", "/")).exists():
            hint += f"; did you mean {slashes!r}?"
        elif not path.parent.is_dir():
            hint += f"; nor does its folder {str(path.parent)!r}"
        elif near := similar_path(path):
            hint += f"; did you mean {str(near)!r}?"
        raise DataError(f"{label} does not exist{hint}") from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a null character; no such user's home
        raise DataError(f"{label} can't be opened ({reason(error)})") from None
    if kind := kind_of(mode):
        raise DataError(f"{label} is {kind}, expected {expected}")
    return path


def foreign(where: str) -> str | None:
    """The explanation for a path that this system cannot have: a URL, or a path of Windows; None for others."""
    if match := _URL.match(where):
        if match[0].lower() == "file://":
            return "is a URL; give the path alone, without file://"
        return "is a URL, and only files are read; download it first (curl -LO URL) and give the path of the file"
    if os.name != "nt" and (match := _WINDOWS.match(where)):
        drive = f"; WSL has that drive at /mnt/{match[1].lower()}" if match[1] else ""
        return f"is a path of Windows, and this is another system; give the path that the file has here{drive}"
    return None


def cache_folder() -> Path:
    """`DELTAFLOW_CACHE`, or else the user's cache folder for deltaflow. It need not exist."""
    if folder := os.environ.get("DELTAFLOW_CACHE"):
        return Path(folder).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("deltaflow"))


@contextmanager
def replacing(path: Path, check: Callable[[Path], object] | None = None) -> Iterator[BinaryIO]:
    """Yields a binary file that takes the place of `path` once it is whole and on the disk, its name included.

    The temporary name is random, so that two processes that write one path do not tear it; after an error nothing of
    it is left, and `path` is as it was. `check` gets the temporary path before the rename. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.replace("tfevents", "")  # TensorBoard reads every file with that in its name
    temporary = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the disk: made, renamed, removed. Raises OSError.

    File systems without such a call (SMB, 9p, some FUSE) are left to write the names in their own time.
    """
    if os.name == "nt":  # where a folder cannot be opened, and its names are journalled
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL:
            raise
    finally:
        os.close(descriptor)


def mapped_npy(path: Path) -> np.ndarray:
    """The memory-mapped array of an .npy, never unpickled. Raises OSError; ValueError for a file of another format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's on a header that Python 2 wrote, or on an empty one
            return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        raise
    except Exception as error:  # a crafted header: SyntaxError, TokenError, OverflowError, RecursionError ...
        raise ValueError(f"no header of an .npy: {type(error).__name__}") from None


@dataclass(frozen=True)
class MappedFile:
    """A memory-mapped file, and its status when it was opened.

    Reading a map of a file that was cut since then ends the process (SIGBUS), and a file that was written to would give
    other batches; so every reader calls `check` first. A file that was removed or replaced stays as it is in the map.
    """

    label: str
    path: Path
    status: os.stat_result

    @staticmethod
    def of(label: str, path: Path) -> "MappedFile":
        """Raises DataError when the file is gone."""
        try:
            return MappedFile(label, path, path.stat())
        except OSError as error:
            raise DataError(f"{label} can't be read ({reason(error)})") from None

    def check(self) -> None:
        """Raises DataError when the file has changed."""
        was = self.status
        with suppress(OSError):
            now = self.path.stat()
            changed = (now.st_size, now.st_mtime_ns) != (was.st_size, was.st_mtime_ns)
            if (now.st_dev, now.st_ino) == (was.st_dev, was.st_ino) and changed:
                raise DataError(f"{self.label} changed while it was in use; start again when it is as it was")
