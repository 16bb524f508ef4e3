"""Trials under an audit hook: what was written, which programs were started, and how long it took.

The hook sees every file that is opened for writing, made, renamed or removed, and every program that is started.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.torture.row import Row

LIMIT_S = 5.0
_SHOWN = 5
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
_RUNS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pickle.find_class"}


@dataclass
class Watch:
    """What an audit hook saw since `clear`."""

    written: list[str]
    run: list[str]
    on: bool = False

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writing and isinstance(path, str | bytes | os.PathLike):
                self.written.append(os.path.abspath(os.fsdecode(path)))
        elif event in _WRITES:
            paths = [a for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
            self.written += [os.path.abspath(os.fsdecode(path)) for path in paths]
        elif event in _RUNS:
            self.run.append(f"{event} {arguments[:2]!r:.80}")


_WATCH: list[Watch] = []  # a hook cannot be taken away, so there is one a process


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Listens for the time of the `with`."""
    if not _WATCH:
        _WATCH.append(Watch([], []))
        sys.addaudithook(_WATCH[0].hook)
    watch = _WATCH[0]
    watch.written, watch.run, watch.on = [], [], True
    try:
        yield watch
    finally:
        watch.on = False


Trial = tuple[str, Callable[[], str]]  # what it is, and a call that says what is wrong


def sweep(fault: str, promise: str, trials: Iterable[Trial], root: Path) -> Row:
    """Runs trials that may write below `root`/runs and `root`/work, and nowhere else."""
    broken, count, slowest = [], 0, 0.0
    for name, trial in trials:
        count += 1
        before = _listing(root)
        began = time.process_time()
        with watching() as watch:
            wrong = trial()
        seconds = time.process_time() - began
        slowest = max(slowest, seconds)
        outside = sorted({path for path in watch.written if not _allowed(path, root)})
        new = sorted(_listing(root) - before)
        if seconds > LIMIT_S:
            wrong = wrong or f"took {seconds:.1f} s"
        if watch.run:
            wrong = f"ran {watch.run[0]}"
        if outside or new:
            wrong = f"wrote {(outside or new)[0]}"
        if (root / "executed").exists():
            wrong = "was executed"
            (root / "executed").rmdir()
        if wrong:
            broken.append(f"{name}: {wrong}")
    note = f"0 executed, 0 writes outside; the slowest took {slowest:.2f} s" if not broken else ""
    return Row(fault, promise, count, count - len(broken), note, tuple(broken[:_SHOWN]))


def _allowed(path: str, root: Path) -> bool:
    """Runs go to runs/; the trials' own files are in work/. Python's caches of compiled modules are no harm."""
    inside = any(path == str(root / part) or path.startswith(f"{root / part}{os.sep}") for part in ("runs", "work"))
    return inside or path == os.devnull or "__pycache__" in path


def _listing(root: Path) -> set[str]:
    """All but what lies in runs/ and work/."""
    return {str(path) for path in root.iterdir() if path.name not in ("runs", "work", "executed")} | {
        str(path) for path in root.parent.glob(f"{root.name}*") if path != root
    }


def refused(call: Callable[[], object], *kinds: type[Exception]) -> str:
    """What is wrong with an answer that has to be one of these errors, in one line."""
    try:
        call()
    except kinds as error:
        return "" if "\n" not in str(error) and len(str(error)) < 2000 else f"said {str(error)[:80]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:80]!r}"
    return "was taken"
