"""Errors that the user caused or can mend: one clear line, an exit code, and no traceback."""

import errno
import os
import shutil
from pathlib import Path

from data import first_line


class UserError(Exception):
    """An error that is printed without a traceback; something that the user gave cannot be used.

    Args:
        message: what was expected and what was found, on one line; begins with the config's key where one is to blame.
        place: file and line, or "command line", in front of the message.
    """

    exit_code = 2

    def __init__(self, message: str, place: object = None) -> None:
        super().__init__(message)
        self.message, self.place = message, place

    def __str__(self) -> str:
        return self.message if self.place is None else f"{self.place}: {self.message}"


class Failure(UserError):
    """An error where all that the user gave can be used: a full disk, too little memory, a run that is locked."""

    exit_code = 1


# Messages of devices without memory; XLA's matrix products on a CPU (YNNPACK) give no reason of their own.
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")


def out_of_memory(error: BaseException) -> bool:
    """Returns true for errors of Python, numpy or a device (known by its class's name) about missing memory."""
    of_device = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (of_device and any(text in str(error) for text in _NO_MEMORY))


_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def refusal(error: BaseException, where: Path, needed: int | None = None) -> str:
    """The reason why a write of `needed` bytes below `where` failed, on one line; the free bytes when the disk is full.

    >>> refusal(OSError(errno.EIO, "Input/output error"), Path("."))
    'Input/output error'
    """
    number = error.errno if isinstance(error, OSError) else None
    reason = first_line(error) if number is None else os.strerror(number)
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
