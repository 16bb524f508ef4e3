"""`deltaflow tensorboard [RUN] [--host ADDRESS] [--port N]`: TensorBoard for this machine alone."""

import argparse
import contextlib
import importlib
import ipaddress
import logging
import shlex
import socket
import warnings
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from ..text import command
from .types import integer

FIRST_PORT, PORTS = 6006, 100
# TensorBoard's own limits are 10 images and 1000 scalars a tag.
SAMPLES = ("--samples_per_plugin", "images=200,scalars=100000")
_EVENTS = ("events.out.tfevents*", "*/events.out.tfevents*", "*/*/events.out.tfevents*")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_directory",
        nargs="?",
        default="runs",
        metavar="RUN",
        help="a run directory, an experiment's, or the folder of all (default: runs)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="a loopback address (default 127.0.0.1); no other"
    )
    parser.add_argument(
        "--port", type=integer(1, 65535), metavar="N", help=f"default: the first free one from {FIRST_PORT}"
    )


def run(parsed: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM. Raises UserError."""
    folder = Path(parsed.run_directory)
    if not loopback(parsed.host):
        public = shlex.join(["tensorboard", "--logdir", str(folder), "--bind_all", *SAMPLES])
        message = f"expected a loopback address, got {parsed.host!r}; to let others in, without a password: {public}"
        raise UserError(f"--host: {message}", "command line", 2)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'expected a folder, got a file' if folder.exists() else 'no such folder'}")
    if not any(next(folder.glob(pattern), None) for pattern in _EVENTS):
        raise UserError(f"{folder}: no runs in it; {command('train', 'quickstart')} makes some")
    port = free_port(parsed.host, parsed.port)
    if port is None:
        ports = f"port {parsed.port} is" if parsed.port else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are"
        raise UserError(f"{ports} taken on {parsed.host}; name another with --port")
    server = board()
    if port != (parsed.port or FIRST_PORT):
        print(f"port {FIRST_PORT} is taken: {port} instead", flush=True)
    logdir = ["--logdir", str(folder), "--host", parsed.host, "--port", str(port)]
    server.configure(["tensorboard", *logdir, *SAMPLES, "--load_fast", "false"])
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with contextlib.suppress(KeyboardInterrupt):
        return 1 if server.main() else 0
    return 0


def loopback(host: str) -> bool:
    """Returns True if only this machine reaches an address.

    >>> [loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.0.2", "example.org", "")]
    [True, True, True, False, False, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_port(host: str, wanted: int | None) -> int | None:
    """Returns the wanted port, or the first from FIRST_PORT on, if it is free; None if none is."""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS) if wanted is None else (wanted,):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just closed is free
            with contextlib.suppress(OSError):
                tried.bind((host, port))
                return port
    return None


def board() -> Any:
    """Returns the package's server. Raises UserError if it is missing or does not start with these versions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its dependencies
            program, default = (importlib.import_module(f"tensorboard.{name}") for name in ("program", "default"))
            return program.TensorBoard(default.get_plugins())
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "tensorboard":
            raise UserError("tensorboard is not installed; pip install tensorboard") from None
        raise UserError(f"tensorboard cannot be started: {first_line(error)}") from None
    except Exception as error:  # 2.20 with the newest setuptools, an old protobuf
        raise UserError(f"tensorboard cannot be started: {first_line(error)}") from None
