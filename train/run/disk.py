"""What is said of a disk that refuses: the system's reason, and of a full one what was needed and what is free."""

import errno
import os
import re
import shutil
from pathlib import Path

from train.run.errors import first_line

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_IN_TEXT = re.compile(r"os_error_code='(\d+)'")  # as TensorStore tells a number; it raises ValueError for everything


def refusal(error: BaseException, where: Path, needed: int | None = None) -> str:
    """Why a write of `needed` bytes below `where` failed, on one line. `error` is the system's, or a library's.

    >>> refusal(OSError(errno.EIO, "Input/output error"), Path("."))
    'Input/output error'
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _IN_TEXT.search(str(error))):
        number = int(found[1])
    reason = first_line(error)[:300] if number is None else os.strerror(number)
    if number not in _FULL:
        return reason
    free = free_bytes(where)
    parts = [] if needed is None else [f"about {needed:,} bytes are needed"]
    parts += [] if free is None else [f"{free:,} bytes are free on that disk"]
    return f"{reason} ({', '.join(parts)})" if parts else reason


def free_bytes(where: Path) -> int | None:
    """Of the disk that a path is on, or would be; None when that cannot be told."""
    for folder in (where, *where.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None
