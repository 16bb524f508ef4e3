"""The thread that appends events to a TensorBoard file.

tensorboardX's FileWriter blocks its caller for ever once its thread died (a full disk is enough), and its `flush`
does not wait for its queue; so only its record format is used, behind a thread of our own.
"""

import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..disk import sync_folder

PREFIX = "events.out.tfevents."
QUEUE = 1000  # events that may wait for the disk
FLUSH_S = 5.0  # TensorBoard sees an event at most this late
RETRY_S = 30.0  # from a failed write to a new event file; doubles each time


def new_name() -> str:
    """The name of an event file that no other has.

    It sorts by time, which is the order TensorBoard reads a run's files in; the process and the random part keep two
    writers apart that open in the same microsecond or from two containers with one host name.
    """
    return f"{PREFIX}{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"


class EventThread(threading.Thread):
    """Appends serialized events to an event file; after a failed write it goes on in a new file, some time later.

    `lost` counts events and flushes that failed; `failure` says how the last one did.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(name=f"events {directory.name}", daemon=True)
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        self.queue: queue.Queue[bytes | threading.Event | None] = queue.Queue(QUEUE)
        self.lost = 0
        self.failure: str | None = None
        self._directory = directory
        self._open_record = RecordWriter
        self._version = Event(file_version="brain.Event:2")
        self._record: RecordWriter | None = None
        self._dirty = False
        self._named = False  # whether the disk knows the file's name
        self._retry_at = 0.0
        self._retry_s = RETRY_S
        self._open()
        self.start()

    def _open(self) -> None:
        self._record = self._open_record(str(self._directory / new_name()))
        self._named = False
        self._version.wall_time = time.time()
        self._record.write(self._version.SerializeToString())

    def run(self) -> None:
        try:
            self._serve()
        finally:
            self._close()

    def _serve(self) -> None:
        flush_at = 0.0  # the first event is flushed at once
        while True:
            try:
                item = self.queue.get(timeout=FLUSH_S)
            except queue.Empty:
                item = b""
            if isinstance(item, bytes):
                if item:
                    self._attempt(lambda data=item: self._write(data))
                if time.monotonic() < flush_at:
                    continue
            self._attempt(self._flush)
            flush_at = time.monotonic() + FLUSH_S
            if isinstance(item, threading.Event):
                item.set()
            elif item is None:
                return

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever the disk or a file system driver throws: training goes on
            self.failure = f"{type(error).__name__}: {error}"
            self.lost += 1
            self._retry_at = time.monotonic() + self._retry_s
            self._retry_s *= 2
            self._dirty = False
            self._close()

    def _write(self, data: bytes) -> None:
        if self._record is None:
            if time.monotonic() < self._retry_at:
                self.lost += 1
                return
            self._open()
        assert self._record is not None
        self._record.write(data)
        self._dirty = True

    def _flush(self) -> None:
        if self._record is not None and self._dirty:
            self._record.flush()  # down to the disk: RecordWriter calls fsync
            if not self._named:
                sync_folder(self._directory)
                self._named = True
            self._dirty = False

    def _close(self) -> None:
        record, self._record = self._record, None
        if record is not None:
            with suppress(OSError):  # after a failed write: the rest of the buffer; the file is closed all the same
                record.close()
