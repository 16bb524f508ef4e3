"""The counting shim (shim.c): built where it is used, armed in a process, and its log read back."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")


class Unavailable(Exception):
    """This machine cannot build or load the shim; says why."""


class Action(IntEnum):
    """What happens at the n-th call; the numbers are those of shim.c."""

    NOTHING = 0
    BEFORE = 1  # killed instead of it
    DURING = 2  # killed when half of a write, or the whole of another call, is done
    ONCE = 3  # it fails
    FROM = 4  # it and all after it fail
    SHORT = 5  # half of a write is done, and all after it fails: a disk that becomes full


@dataclass(frozen=True)
class Fault:
    """At the call number `at` (from 1; 0: never) on what lies below `root`, `action`; a failure has errno `code`.

    `log`: where the calls are noted. `keep`: a folder on the same disk for hard links to files that were replaced.
    """

    root: str
    at: int = 0
    action: int = Action.NOTHING
    code: int = 0
    log: str | None = None
    keep: str | None = None

    def environment(self) -> dict[str, str]:
        """Arms a new process that is started with these variables, and those of `preloaded`."""
        return {f"FAULT_{key.upper()}": str(value) for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Call:
    """A line of the log. `outcome`: ok, killed, or an errno. `size`: bytes written, or of the file that was synced."""

    number: int
    operation: str  # create, empty, open, write, truncate, allocate, fsync, rename, link, mkdir, unlink, rmdir
    outcome: str
    size: int
    path: str
    other: str


@cache
def library() -> Path:
    """The compiled shim. Raises Unavailable."""
    if sys.platform != "linux":
        raise Unavailable("the shim is for Linux")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("no C compiler (cc) for the shim")
    text = SOURCE.read_bytes()
    # A folder of this user alone: what lies in it is loaded into processes.
    folder = Path(tempfile.gettempdir()) / f"deltaflow-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise Unavailable(f"{folder} belongs to another user")
    built = folder / f"{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not built.exists():
        beside = built.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(beside), str(SOURCE), "-ldl", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{compiler} cannot build the shim: {done.stderr.strip()[:200]}")
        os.replace(beside, built)
    return built


def preloaded() -> dict[str, str]:
    """The environment of a process that has the shim in it. Raises Unavailable."""
    others = os.environ.get("LD_PRELOAD", "")
    return {"LD_PRELOAD": f"{library()} {others}".strip()}


def arm(fault: Fault | None) -> None:
    """Counts from now on in this process, which has the shim in it; None: no more. Raises Unavailable."""
    try:
        function = ctypes.CDLL(None).fault_arm
    except AttributeError:
        raise Unavailable("this process was started without the shim") from None
    function.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_long, ctypes.c_int, ctypes.c_int]
    if fault is None:
        function(None, None, None, 0, 0, 0)
        return
    texts = [None if text is None else os.fsencode(text) for text in (fault.root, fault.log, fault.keep)]
    if not function(*texts, fault.at, fault.action, fault.code):
        raise Unavailable(f"{fault.root}: the shim cannot watch it")


def calls(log: str | Path) -> list[Call]:
    """What a log holds, in the order in which it happened."""
    lines = Path(log).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    split = [line.split("\t") for line in lines]
    return [Call(int(n), kind, outcome, int(size), path, other) for n, kind, outcome, size, path, other in split]
