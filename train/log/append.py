"""Append-only log files that survive a full disk, and their two formats: JSON lines and TensorBoard event records."""

import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.files import replacing, sync_folder

from ..errors import UserError

MAX_PENDING = 2**24  # bytes that wait in memory for a disk that refuses them
EVENTS_PREFIX = "events.out.tfevents."


class AppendFile:
    """A file that grows by whole records, buffered in memory until `flush`.

    A failed flush loses nothing: the next one writes the same bytes at the same place, so that no torn record is left
    in front of a whole one. Records beyond MAX_PENDING bytes are dropped and counted in `lost`.

    Raises:
        OSError: the file cannot be opened.
        UserError: the path names something else than a regular file; opening a pipe would block.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self._path = path
        self._pending = bytearray()
        self._new = not os.path.lexists(path)
        if not self._new and not path.is_file():
            raise UserError(f"{path}: not a regular file")
        self._file = self._open()
        self._end = self._file.seek(0, os.SEEK_END)  # after the last whole record

    def append(self, record: bytes) -> None:
        """Never raises."""
        if len(self._pending) + len(record) > MAX_PENDING:
            with suppress(OSError):
                self.flush()
        if len(self._pending) + len(record) > MAX_PENDING:
            self.lost += 1
        else:
            self._pending += record

    def flush(self, sync: bool = False) -> None:
        """Writes the pending bytes; with `sync`, returns when they are on the disk. Raises OSError."""
        try:
            if self._file.closed:  # after an error: the descriptor of a network file may never work again
                self._file = self._open()
            self._file.seek(self._end)
            rest = memoryview(self._pending)
            while rest:
                rest = rest[self._file.write(rest) :]
            end, empty = self._end + len(self._pending), bytearray()
            self._end, self._pending = end, empty  # no call in between, in which a signal could raise
            if sync:
                os.fsync(self._file.fileno())
                if self._new:
                    sync_folder(self._path.parent)
                    self._new = False
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._end)
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; pending bytes are not written."""
        with suppress(OSError):
            self._file.close()

    def _open(self):
        return open(self._path, "r+b", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666))


def json_line(row: Mapping[str, object]) -> bytes:
    """A row of metrics.jsonl. Raises ValueError for NaN and infinities, which JSON has no word for."""
    return json.dumps(row, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def keep_rows_before(path: Path, first_step: int) -> None:
    """Removes rows of `first_step` and later from a metrics.jsonl, and lines torn by a crash. Raises OSError."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    keep = []
    for line in lines:
        try:
            keep.append(line.endswith(b"\n") and json.loads(line)["step"] < first_step)
        except (ValueError, TypeError, KeyError, RecursionError):
            keep.append(False)
    begin = keep.index(False) if False in keep else len(lines)
    if not any(keep[begin:]):  # the usual case after a crash; truncating needs no room on a full disk
        with open(path, "r+b") as file:
            file.truncate(sum(map(len, lines[:begin])))
            os.fsync(file.fileno())
        return
    with replacing(path) as file:
        file.writelines(line for line, whole in zip(lines, keep, strict=True) if whole)


def event_file_name() -> str:
    """Returns a unique name for an event file.

    Names sort by time, the order in which TensorBoard reads a run's files. The process id and the random suffix keep
    apart two writers that open in the same microsecond, or in two containers of one host name.
    """
    return f"{EVENTS_PREFIX}{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"


def event_record(**fields: Any) -> bytes:
    """An Event protocol buffer of these fields, dated now, framed as TensorBoard's files (TFRecord) hold it."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import masked_crc32c

    data = Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))


def event_file_header(first_step: int) -> bytes:
    """The first records of an event file: its version, and the step from which on TensorBoard drops earlier files."""
    from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

    start = SessionLog(status=SessionLog.START)
    return event_record(file_version="brain.Event:2") + event_record(step=first_step, session_log=start)
