"""metrics.jsonl, a row a line: whole lines only, and none twice."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..disk import sync_folder
from ..errors import UserError

MAX_UNWRITTEN = 2**24  # bytes of rows that wait for a disk that refuses them


class Rows:
    """metrics.jsonl: a row is one whole line. A file that exists keeps its rows of `step < first_step`.

    Rows that the disk refuses are kept in memory, MAX_UNWRITTEN bytes at most, and written when it takes them again.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        """Raises OSError, and UserError of what is no regular file: a pipe would be waited for."""
        new = not os.path.lexists(path)
        if not new:
            if not path.is_file():
                raise UserError(f"{path}: not a regular file")
            _keep_before(path, first_step)
        self._file = open(path, "ab", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)
        self._torn = False
        self._unwritten = b""
        if new:
            sync_folder(path.parent)  # the file's name

    def append(self, *rows: Mapping[str, object]) -> None:
        """Raises OSError when not all could be written; what a full disk took of a row is cut off before the next."""
        texts = [json.dumps(row, allow_nan=False, ensure_ascii=False, separators=(",", ":")) for row in rows]
        lines = "".join(f"{text}\n" for text in texts).encode()
        if self._unwritten and len(self._unwritten) + len(lines) > MAX_UNWRITTEN:
            self._write()  # or these rows are dropped
        self._unwritten += lines
        self._write()

    def _write(self) -> None:
        if self._torn:
            self._file.truncate(self._end)
        self._torn = True
        rest = self._unwritten
        while rest:
            rest = rest[self._file.write(rest) :]
        self._torn = False
        self._end += len(self._unwritten)
        self._unwritten = b""

    def sync(self) -> None:
        """Raises OSError when something is not on the disk."""
        if self._unwritten:
            self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _keep_before(path: Path, first_step: int) -> None:
    """Takes rows of `first_step` and later out of a log, and lines that no writer has ended. Raises OSError."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [_is_row_before(line, first_step) for line in lines]
    begin = kept.index(False) if False in kept else len(lines)
    if not any(kept[begin:]):  # as every crash leaves it; cutting needs no room on a full disk
        with open(path, "r+b") as file:
            file.truncate(sum(map(len, lines[:begin])))
            os.fsync(file.fileno())
        return
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        file.writelines(line for line, keep in zip(lines, kept, strict=True) if keep)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def _is_row_before(line: bytes, first_step: int) -> bool:
    """Whether it is a whole row of an earlier step: not one that was cut short, nor what a power cut left of one."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] < first_step
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
