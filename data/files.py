"""Files that somebody else may have written, opened with care: regular ones only, of a size that was agreed on."""

import difflib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MOST_JSON = 2**26  # bytes: the tokenizer of a million merges has a third of that


def kind_of(mode: int) -> str | None:
    """What a file is that is no regular one, by its `st_mode`: a pipe would block, a device may never end."""
    kinds = {stat.S_IFREG: None, stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def content_of(path: str | os.PathLike[str], at_most: int | None = None) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it cannot be opened or read.
        ValueError: it is no regular file, or has more than `at_most` bytes; the message says which.
    """
    if kind := kind_of(os.stat(path).st_mode):  # before it is opened: to open a device may do something
        raise ValueError(f"expected a file, got {kind}")
    with open(path, "rb", opener=_without_waiting) as file:
        if kind := kind_of(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"expected a file, got {kind}")
        content = file.read() if at_most is None else file.read(at_most + 1)
    if at_most is not None and len(content) > at_most:
        raise ValueError(f"expected at most {at_most} bytes")
    return content


def beside(path: Path, fits: Callable[[Path], bool] = Path.exists) -> Path | None:
    """What `fits` in the same folder and has the name most like this one's; None where nothing comes close."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if fits(entry))[:1000]
    except (OSError, ValueError):
        return None
    found = difflib.get_close_matches(path.name, names, 1)
    return path.parent / found[0] if found else None


def json_of(path: Path, at_most: int = _MOST_JSON) -> Any:
    """The value in a JSON file. Raises OSError; ValueError for whatever is wrong with its content."""
    try:
        return json.loads(content_of(path, at_most).decode("utf-8"))
    except RecursionError:
        raise ValueError("lists or mappings nested too deeply") from None


def _without_waiting(path: str, flags: int) -> int:
    """A pipe that took the place of a file meanwhile is opened at once, and found out."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
