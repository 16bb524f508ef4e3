"""JSON and text written atomically, and messages about disks that refuse a write."""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.files import json_of, replacing

from .errors import UserError, first_line

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` to a file, which holds all of it or its former content. Raises UserError."""
    content = text.encode()
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot write: {refusal(error, path.parent, len(content))}") from None
    except ValueError as error:  # "." has no name; a null character
        raise UserError(f"{str(path)!r}: cannot write: {error}") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a mapping as JSON, atomically. Raises UserError."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of this project. Raises UserError when it cannot be read or holds something else."""
    try:
        value = json_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: cannot read: expected a mapping")
    return value


def refusal(error: BaseException, where: Path, needed: int | None = None) -> str:
    """The reason why a write of `needed` bytes below `where` failed, on one line; the free bytes when the disk is full.

    >>> refusal(OSError(errno.EIO, "Input/output error"), Path("."))
    'Input/output error'
    """
    number = error.errno if isinstance(error, OSError) else None
    reason = first_line(error)[:300] if number is None else os.strerror(number)
    if number not in _FULL:
        return reason
    free = free_bytes(where)
    parts = [] if needed is None else [f"about {needed:,} bytes are needed"]
    parts += [] if free is None else [f"{free:,} bytes are free on that disk"]
    return f"{reason} ({', '.join(parts)})" if parts else reason


def free_bytes(where: Path) -> int | None:
    """Free bytes of the disk that holds a path, or would hold it; None where the system does not tell."""
    for folder in (where, *where.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None
