"""`deltaflow tensorboard [RUN] [--host ADDRESS] [--port N] [--no-browser]`: TensorBoard for this machine alone."""

import argparse
import contextlib
import importlib
import ipaddress
import json
import logging
import os
import shlex
import socket
import sys
import warnings
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from data import first_line

from ..errors import Failure, UserError
from ..text import command
from .types import integer

FIRST_PORT, PORTS = 6006, 100
# TensorBoard's own limits are 10 images and 1000 scalars a tag.
SAMPLES = ("--samples_per_plugin", "images=200,scalars=100000")
# Scalars on top of the page.
PINNED = ("loss/val", "flow/delta_ratio_log10", "flow_without/delta_ratio_log10", "flow/qk_share_log10")
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
    parser.add_argument("--no-browser", action="store_true", help="print the address only")


def run(parsed: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM. Raises UserError."""
    folder = Path(parsed.run_directory)
    if not loopback(parsed.host):
        public = shlex.join(["tensorboard", "--logdir", str(folder), "--bind_all", *SAMPLES])
        message = f"expected a loopback address, got {parsed.host!r}; to let others in, without a password: {public}"
        raise UserError(f"--host: {message}", "command line")
    if not folder.is_dir():
        from ..store.rundir import no_folder

        raise UserError(no_folder(folder))
    if not any(next(folder.glob(pattern), None) for pattern in _EVENTS):
        message = f"no event files in it (log.tensorboard: false?); {command('train', 'quickstart')} makes some"
        raise UserError(f"{folder}: {message}")
    port = free_port(parsed.host, parsed.port)
    if port is None:
        ports = f"port {parsed.port} is" if parsed.port else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are"
        raise Failure(f"{ports} taken on {parsed.host}; name another with --port")
    server = board(not parsed.no_browser and has_browser())
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


def deep_link(url: str) -> str:
    """Returns the address of the Time Series page with the headline scalars pinned.

    >>> deep_link("http://127.0.0.1:6006/")[:77]
    'http://127.0.0.1:6006/?pinnedCards=%5B%7B%22plugin%22:%22scalars%22,%22tag%22'
    """
    cards = json.dumps([{"plugin": "scalars", "tag": tag} for tag in PINNED], separators=(",", ":"))
    # The second smoothing is that of Custom Scalars, which keeps it when somebody goes there.
    return f"{url}?pinnedCards={quote(cards, safe='/,:')}&smoothing=0#timeseries&_smoothingWeight=0"


def has_browser() -> bool:
    """Returns True where somebody sees a window open: at a terminal of a machine with a display."""
    return sys.stdout.isatty() and (
        sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )


def board(browser: bool) -> Any:
    """Returns the package's server, which prints its deep link once it listens, and opens it in a `browser`.

    Raises UserError if it is missing or does not start with these versions.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its dependencies
            program, default = (importlib.import_module(f"tensorboard.{name}") for name in ("program", "default"))

        class Server(program.WerkzeugServer):
            def print_serving_message(self) -> None:
                link = deep_link(self.get_url())
                print(f"{link}\n(loss and gradient flow pinned, no smoothing; Ctrl-C ends it)")
                # The browser keeps that setting; no address can change it.
                print("(a loss at step 0 far above the rest is cut off until you untick Ignore outliers)", flush=True)
                if browser:
                    with contextlib.suppress(Exception):  # whatever stands in for a browser here
                        webbrowser.open(link)

        return program.TensorBoard(default.get_plugins(), server_class=Server)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "tensorboard":
            raise Failure("tensorboard is not installed; pip install tensorboard") from None
        raise Failure(f"tensorboard cannot be started: {first_line(error)}") from None
    except Exception as error:  # 2.20 with the newest setuptools, an old protobuf
        raise Failure(f"tensorboard cannot be started: {first_line(error)}") from None
