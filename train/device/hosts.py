"""Several processes of one training: their connection, their decisions and their end.

Each process runs the same program and has its part of the devices. All decide alike because the run directories have
the same content in each: process 0 has the real ones, every other process a private copy, deleted at its end.
"""

import io
import os
import signal
import socket
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np

from data import first_line
from data.source import DataError

from ..errors import Failure, UserError
from .signals import Stop

ANSWER_S = 10.0  # for a coordinator to answer
HEARTBEAT_S = 30  # until a process that hangs counts as lost; one that ends is missed at once
OWN_S = 0.3  # for a process to say itself why it ends, when another one has done so
LAST_S = 1.0  # for which process 0 outlives the others
_DONE, _FAILED = b".", b"!"  # said by a process that ends
_NOT_COPIED = ("events.out.tfevents.*", "*.html", "*.md", "*.csv", ".lock")


@contextmanager
def connected(coordinator: str | None, processes: int | None, process: int | None) -> Iterator[bool]:
    """Connects the processes of a training before JAX starts; yields true in the first, which prints for all.

    Does nothing for one that is alone.

    `coordinator`: HOST:PORT of process 0. With all three None the processes of a Slurm step or of a Cloud TPU slice
    are found by JAX. An error ends this process at once, as the others would wait for it. Raises UserError.
    """
    if not connect(coordinator, processes, process):
        yield True
        return
    try:
        _PEERS.extend(_linked())
        yield jax.process_index() == 0
        _tell(_DONE)
        jax.distributed.shutdown()  # together: one that outlives process 0 and is still connected to it is aborted
    except KeyboardInterrupt:  # also Stopped
        _disconnect()
        raise
    except Exception as error:
        trace = "" if isinstance(error, UserError | DataError) else traceback.format_exc()
        if trace:
            time.sleep(1)  # a lost process breaks what is computed, too; _listen has the line about it
        _end(f"{trace}deltaflow: {error}", getattr(error, "exit_code", 2 if isinstance(error, DataError) else 1))
    finally:
        _forget()


def _linked() -> list[socket.socket]:
    """Returns connections between process 0 and each other one, each watched by a thread. A collective.

    A process that is lost closes its own. JAX would abort the others after `HEARTBEAT_S`, with a trace of C++.
    """
    from jax._src.distributed import global_state  # the address that JAX found has no public name
    from jax.experimental.multihost_utils import broadcast_one_to_all

    first = jax.process_index() == 0
    host, server = str(global_state.coordinator_address).rpartition(":")[0], socket.create_server(("", 0))
    server.settimeout(ANSWER_S)
    port = int(broadcast_one_to_all(np.int32(server.getsockname()[1])))
    try:
        if first:
            peers = [server.accept()[0] for _ in range(jax.process_count() - 1)]
        else:
            peers = [socket.create_connection((host, port), timeout=ANSWER_S)]
    except OSError as error:
        raise Failure(f"processes cannot reach each other: port {port} of {host}: {first_line(error)}") from None
    for peer in peers:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        threading.Thread(target=_listen, args=(peer,), daemon=True).start()
    server.close()
    return peers


def _listen(peer: socket.socket) -> None:
    reason, word = "was lost", b""
    with suppress(OSError):
        word = peer.recv(1)
    if word == _DONE:
        return
    if word == _FAILED:
        time.sleep(OWN_S)
        reason = "has said why it ends"
    again = "the same command, in all of them, goes on from the last checkpoint"
    _end(f"deltaflow: process {jax.process_index()}: another process {reason}; {again}", 1)


def _tell(word: bytes) -> None:
    for peer in _PEERS:
        with suppress(OSError):  # it has ended
            peer.sendall(word)


def _disconnect() -> None:
    """Tells the others to end, once. Process 0 is the last, since JAX aborts those that outlive its service."""
    _ENDING.acquire()
    _tell(_FAILED)
    if jax.process_index() == 0:
        time.sleep(LAST_S)


def _end(line: str, code: int) -> NoReturn:
    """Ends the process without the barrier at which JAX would wait for the others."""
    _disconnect()
    os.write(2, f"{line}\n".encode())
    _forget()
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


def connect(coordinator: str | None, processes: int | None, process: int | None, answer_s: float = ANSWER_S) -> bool:
    """Returns true if there are several processes, now connected. Raises UserError."""
    if coordinator is None and processes is None and process is None:
        slurm, hosts = os.environ.get("SLURM_STEP_NUM_TASKS", "1"), os.environ.get("TPU_WORKER_HOSTNAMES", "")
        if slurm in ("", "1") and "," not in hosts:
            return False
    elif coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process: expected all three or none")
    else:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise UserError(f"--coordinator: expected HOST:PORT, got {coordinator}")
        if processes < 1:
            raise UserError(f"--processes: expected at least 1, got {processes}")
        if not 0 <= process < processes:
            raise UserError(f"--process: expected 0 to {processes - 1} with --processes {processes}, got {process}")
        if processes == 1:
            return False
        if process and not _answers(host, int(port), answer_s):
            raise Failure(f"--coordinator {coordinator}: no answer within {answer_s:g} s; is process 0 running there?")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_S)
    except (RuntimeError, ValueError) as error:
        raise Failure(f"--coordinator {coordinator or 'of this cluster'}: {first_line(error)}") from None
    signal.signal(signal.SIGTERM, handler)  # JAX has put its own there, which only takes note
    return True


def _answers(host: str, port: int, answer_s: float) -> bool:
    end = time.monotonic() + answer_s
    while (left := end - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), timeout=left).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


def agreed(number: int | None) -> int | None:
    """Returns the largest number that any process has, such as that of a signal, or None if all have 0 or None.

    A collective: every process must call it equally often, since each waits for the others.
    """
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number or 0)).max()) or None


def agreed_stop(stop: Stop) -> bool:
    """Returns true after a signal to any process, which is then that of `stop` in all of them. A collective."""
    if (signal := agreed(stop.signal)) is not None:  # else one that arrives meanwhile is kept for the next call
        stop.signal = signal
    return signal is not None


def broadcast_folder(folder: Path) -> Path:
    """Returns `folder` in process 0, and in every other a private copy of process 0's. A collective."""
    if jax.process_count() == 1:
        return folder
    from jax.experimental.multihost_utils import broadcast_one_to_all

    first, content = jax.process_index() == 0, io.BytesIO()
    if first and folder.is_dir():

        def selected(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            return None if any(Path(info.name).match(pattern) for pattern in _NOT_COPIED) else info

        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.add(folder, folder.name, filter=selected)
    high, low = map(int, broadcast_one_to_all(np.asarray(divmod(content.tell(), 2**30), np.int32)))
    sent = np.frombuffer(content.getvalue(), np.uint8) if first else np.zeros(high * 2**30 + low, np.uint8)
    received = broadcast_one_to_all(sent) if sent.size else sent
    if first:
        return folder
    copy = tempfile.TemporaryDirectory(prefix="deltaflow-process-")
    _COPIES.append(copy)
    if received.size:
        with tarfile.open(fileobj=io.BytesIO(received.tobytes())) as archive:
            archive.extractall(copy.name, filter="data")
    return Path(copy.name) / folder.name


_COPIES: list[tempfile.TemporaryDirectory] = []
_PEERS: list[socket.socket] = []
_ENDING = threading.Lock()


def _forget() -> None:
    while _COPIES:
        _COPIES.pop().cleanup()
