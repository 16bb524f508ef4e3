"""A process that runs `deltaflow` many times at little cost: `python -m scripts.torture.stage FOLDER`.

It imports everything and starts nothing: no thread, no JAX backend. For every request it forks, and the child is a
`deltaflow` process like any other, but for two things: it does not spend two seconds on imports, and the programs that
it would compile are read from FOLDER when an earlier child has compiled them (XLA's own serialized executables: the
same machine code, so the same bits). Pictures and the report of the whole experiment are left out.

Requests and answers are lines of JSON. A request has argv and cwd, out (where the child's output goes), seconds (after
which it is killed) and fault (shim.py's, or null); an answer has code (the exit code, negative for a signal), seconds
and late.
"""

import atexit
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from scripts.torture.shim import Fault, arm, preloaded

ROOT = Path(__file__).resolve().parents[2]
# One device; and the least optimization, which compiles soonest: what is computed does not matter here.
FLAGS = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative: the signal that killed it), after how long, and what it printed.

    `late`: it did not end by itself within its time.
    """

    code: int
    seconds: float
    late: bool
    output: str

    @property
    def last(self) -> str:
        """The last line that it printed."""
        return (self.output.strip().splitlines() or [""])[-1]


class Stage:
    """The client; a context manager. Not for two threads at once. Raises Unavailable where there is no shim."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            **preloaded(),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": FLAGS,
            "OPENBLAS_NUM_THREADS": "1",  # or numpy starts a thread at its import, which no child would have
            "PYTHONPATH": str(ROOT),
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.torture.stage", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )

    def run(self, argv: Sequence[str], cwd: Path, fault: Fault | None = None, seconds: float = 60.0) -> Ended:
        """`deltaflow ARGV` in `cwd`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as out:
            request = {
                **{"argv": list(argv), "cwd": str(cwd), "out": out.name, "seconds": seconds},
                "fault": None if fault is None else asdict(fault),
            }
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(f"the stage ended with {self._process.wait()}")
            return Ended(**json.loads(line), output=out.read())

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def main() -> int:
    """The server; ends with its input."""
    answers = os.dup(1)
    os.dup2(2, 1)
    command = _prepared(Path(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        began = time.monotonic()
        child = os.fork()
        if not child:
            os.close(answers)
            _one(request, command)
        code, late = _waited(child, began + request["seconds"])
        answer = {"code": code, "seconds": time.monotonic() - began, "late": late}
        os.write(answers, json.dumps(answer).encode() + b"\n")
    return 0


def _waited(child: int, until: float) -> tuple[int, bool]:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), False
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), True
        time.sleep(0.002)


def _one(request: dict[str, Any], command: Callable[[list[str]], int]) -> NoReturn:
    """In the child."""
    nothing, out = os.open(os.devnull, os.O_RDONLY), os.open(request["out"], os.O_WRONLY)
    for fd, number in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(fd, number)
    os.chdir(request["cwd"])
    if request["fault"] is not None:
        arm(Fault(**request["fault"]))
    code = command(request["argv"])
    atexit._run_exitfuncs()  # what a process does at its end, but for taking its memory apart, which takes 0.4 s
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _prepared(folder: Path) -> Callable[[list[str]], int]:
    """The command line, with everything imported that a run imports on its way."""
    import tensorboardX.summary

    from model.network import Network
    from train import cli
    from train.commands import train as command
    from train.device import programs
    from train.run import experiment, summary
    from train.run.metrics import RunMetrics

    assert all((tensorboardX.summary, command, experiment))
    summary.write_report = lambda root, console: None
    RunMetrics.draw = lambda self: None
    Network.shapes = cache(Network.shapes)  # traced five times by a start
    keep_programs(programs.Programs, folder)
    return cli.main


def keep_programs(cls: Any, folder: Path) -> None:
    """`cls.prepare` (train/device/programs.py) loads what it compiled before from `folder`. One config a folder."""
    from jax.experimental.serialize_executable import deserialize_and_load, serialize

    prepare = cls.prepare

    def kept(self: Any, key: Any, function: Callable, arguments: tuple, *rest: Any, **more: Any) -> Future:
        file = folder / f"{abs(hash_of(repr(key)))}.program"
        if key in self._compiled or not file.exists():
            future = prepare(self, key, function, arguments, *rest, **more)
            if not file.exists():
                future.add_done_callback(lambda done: write(file, done.result()))
            return future
        self._compiled[key], self.feeds[key] = Future(), arguments[3:]
        # Pickled by this very process's parent or sibling, into a folder of its own: nobody else's.
        self._compiled[key].set_result(deserialize_and_load(*pickle.loads(file.read_bytes())))
        return self._compiled[key]

    def write(file: Path, program: Any) -> None:
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_bytes(pickle.dumps(serialize(program)))
        os.replace(beside, file)

    cls.prepare = kept


def hash_of(text: str) -> int:
    """The same in every process."""
    return int.from_bytes(text.encode(), "big") % (2**61 - 1)


if __name__ == "__main__":
    sys.exit(main())
