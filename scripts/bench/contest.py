"""Contestants in turn: every round gives each a short stretch, so that all share the machine's changes of speed.

`python -m scripts.bench.contest REQUEST` is one contestant in a process of its own, since two frameworks in one would
compete for its cores. REQUEST is a JSON object; lines out are `ready {facts}` or `failed "REASON"` once, then the
seconds for each number of steps that comes in. Between them the process sleeps. It ends with its input.
"""

import importlib
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from scripts.bench.contestant import Contestant, Facts, Shapes, Unavailable

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION_SECONDS = 0.3


@dataclass(frozen=True)
class Entry:
    """A row of the table: the module whose `contestant(**arguments)` builds it."""

    name: str
    label: str
    module: str
    arguments: dict[str, Any]


class Ended(Exception):
    """A contestant that cannot go on. The message is the one line that its row shows."""


class Runner(Protocol):
    """A contestant after its first window."""

    facts: Facts

    def run(self, n: int) -> float: ...

    def close(self) -> None: ...


class Here:
    """A contestant in this process, for programs that differ by less than two processes do. Raises Ended."""

    def __init__(self, entry: Entry) -> None:
        arguments = dict(entry.arguments)
        if "shapes" in arguments:
            arguments["shapes"] = Shapes(**arguments["shapes"])
        try:
            contestant: Contestant = importlib.import_module(entry.module).contestant(**arguments)
            contestant.run(contestant.facts.window)
        except ModuleNotFoundError as error:
            raise Ended(f"not installed: {error.name or error}") from None
        except (NotImplementedError, Unavailable) as error:
            raise Ended(f"not available: {error}") from None
        except Exception as error:
            first_line = str(error).strip().partition(os.linesep)[0]
            raise Ended(f"failed: {type(error).__name__}: {first_line}") from error
        self.facts, self._run = contestant.facts, contestant.run

    def run(self, n: int) -> float:
        return self._run(n)

    def close(self) -> None:
        """Nothing to end."""


def serve(request: str) -> None:
    """The process of a Worker."""
    # What a library prints must not end up between the answers: file descriptor 1 becomes stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        runner = Here(Entry("", "", **json.loads(request)))
    except Ended as ended:
        answers.write(f"failed {json.dumps(str(ended))}\n")
        return
    answers.write(f"ready {json.dumps(asdict(runner.facts))}\n")
    for line in sys.stdin:
        answers.write(f"seconds {runner.run(int(line))!r}\n")


class Worker:
    """A contestant in a process of its own. Raises Ended if it is missing, fails, dies or does not answer in time."""

    def __init__(self, entry: Entry, timeout: float, environment: dict[str, str] | None = None) -> None:
        start = time.perf_counter()
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115
        self._folder = tempfile.TemporaryDirectory(prefix="deltaflow-bench-")  # for what it writes
        request = json.dumps({"module": entry.module, "arguments": entry.arguments})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench.contest", request],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": self._folder.name, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            word, rest = self._answer()
            if word != "ready":
                raise Ended(json.loads(rest))
            self.facts = Facts(**json.loads(rest))
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - start

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self) -> tuple[str, str]:
        try:
            line = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            raise Ended(f"failed: no answer in {self._timeout:g} s") from None
        if not line:
            raise self._death()
        word, _, rest = line.strip().partition(" ")
        return word, rest

    def _death(self) -> Ended:
        code = self._process.wait()
        self._errors.seek(0)
        last = [line.strip() for line in self._errors if line.strip()][-1:]
        return Ended(": ".join([f"died with exit status {code}", *last]))

    def run(self, n: int) -> float:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{n}\n")
        except BrokenPipeError:
            raise self._death() from None
        return float(self._answer()[1])

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            try:
                pipe.close()
            except BrokenPipeError:
                continue
        self._folder.cleanup()


class ColdStart:
    """Seconds from the start of a new process to the end of its first window, as a contestant. Raises Ended."""

    def __init__(self, start: Callable[[], Worker]) -> None:
        self._start = start
        self.run(1)  # so that files are in the system's cache

    def run(self, n: int) -> float:
        worker = self._start()
        worker.close()
        self.facts = replace(worker.facts, window=1)
        return worker.start_seconds

    def close(self) -> None:
        """Each process has ended."""


@dataclass
class Lane:
    """A contestant's results: seconds a step, one figure a round, or the trouble that ended it."""

    entry: Entry
    facts: Facts | None = None
    seconds: list[float] = field(default_factory=list)
    trouble: str = ""


def contest(
    entries: Iterable[Entry],
    start: Callable[[Entry], Runner],
    rounds: int,
    seconds: float,
    pause: float = 0.25,
    say: Callable[[str], object] = lambda line: None,
) -> list[Lane]:
    """Starts all, then gives each a stretch of about `seconds` in each round; every other round backwards.

    The pause between two stretches lets the threads of the previous one stop spinning.
    """
    lanes = [Lane(entry) for entry in entries]
    runners: dict[str, Runner] = {}
    steps: dict[str, int] = {}
    try:
        for lane in lanes:
            say(f"starting {lane.entry.label}")
            try:
                runner = runners[lane.entry.name] = start(lane.entry)
                lane.facts = runner.facts
                steps[lane.entry.name] = steps_in(runner, seconds)
            except Ended as ended:
                lane.trouble = str(ended)
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            for lane in lanes if turn % 2 == 0 else reversed(lanes):
                if lane.trouble:
                    continue
                time.sleep(pause)
                n = steps[lane.entry.name]
                try:
                    lane.seconds.append(runners[lane.entry.name].run(n) / n)
                except Ended as ended:
                    lane.trouble = f"{ended} (in round {turn + 1})"
    finally:
        for runner in runners.values():
            runner.close()
    return lanes


def steps_in(runner: Runner, seconds: float) -> int:
    """Returns a number of steps that take about `seconds`, a multiple of the window; with 0 one window, untried."""
    n = window = runner.facts.window
    if seconds == 0:
        return window
    while (taken := runner.run(n)) < min(CALIBRATION_SECONDS, seconds):
        n *= 2
    return max(1, math.ceil(seconds / taken * n / window)) * window


if __name__ == "__main__":
    serve(sys.argv[1])
