"""Contestants in turn: every round gives each a short stretch, so that all share the machine's changes of speed."""

import importlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from scripts.bench.contestant import Contestant, Facts, Unavailable

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
    """A contestant after its first dispatch."""

    facts: Facts

    def run(self, n: int, /) -> float: ...

    def close(self) -> None: ...


class Here:
    """A contestant in this process, for programs that differ by less than two processes do. Raises Ended."""

    def __init__(self, entry: Entry) -> None:
        try:
            contestant: Contestant = importlib.import_module(entry.module).contestant(**entry.arguments)
            contestant.run(contestant.facts.dispatch)
        except ModuleNotFoundError as error:
            raise Ended(f"not installed: {error.name or error}") from None
        except Unavailable as error:
            raise Ended(f"not available: {error}") from None
        except Exception as error:
            first_line = str(error).strip().partition(os.linesep)[0]
            raise Ended(f"failed: {type(error).__name__}: {first_line}") from error
        self.facts, self.run = contestant.facts, contestant.run

    def close(self) -> None:
        """Nothing to end."""


class Worker:
    """A contestant in a process of its own, since two frameworks in one would compete for its cores.

    Between two runs the process sleeps. It imports what it measures from `tree`, if one is given. Raises Ended if it is
    missing, fails, dies or does not answer in time.
    """

    def __init__(self, entry: Entry, timeout: float, environment: dict[str, str], tree: Path | None = None) -> None:
        start = time.perf_counter()
        self._timeout = timeout
        self._folder = TemporaryDirectory(prefix="deltaflow-bench-")  # for what it writes and prints
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, entry, Path(self._folder.name), environment, tree)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.facts: Facts = self._answer()
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - start

    def _answer(self) -> Any:
        if not self._pipe.poll(self._timeout):
            raise Ended(f"failed: no answer in {self._timeout:g} s")
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            output = Path(self._folder.name, "output").read_text(errors="replace")
            last = [line.strip() for line in output.splitlines() if line.strip()][-1:]
            raise Ended(": ".join([f"died with exit status {self._process.exitcode}", *last])) from None
        if isinstance(answer, Ended):
            raise answer
        return answer

    def run(self, n: int) -> float:
        with suppress(BrokenPipeError):
            self._pipe.send(n)
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._folder.cleanup()


def _serve(pipe: Connection, entry: Entry, folder: Path, environment: dict[str, str], tree: Path | None) -> None:
    """The process of a Worker: answers with the facts, then each number of steps with the seconds they took."""
    os.environ.update(environment, TMPDIR=str(folder))
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if tree is not None:
        sys.path.insert(0, str(tree))
    try:
        runner = Here(entry)
    except Ended as ended:
        pipe.send(ended)
        return
    pipe.send(runner.facts)
    with suppress(EOFError):
        while True:
            pipe.send(runner.run(pipe.recv()))


class ColdStart:
    """Seconds from the start of a new process to the end of its first dispatch, as a contestant. Raises Ended."""

    def __init__(self, start: Callable[[], Worker]) -> None:
        self._start = start
        self.run(1)  # so that files are in the system's cache

    def run(self, n: int) -> float:
        worker = self._start()
        worker.close()
        self.facts = replace(worker.facts, dispatch=1, flops=0.0, tokens=0)
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
    """Returns a number of steps that take about `seconds`, a multiple of a dispatch; with 0 one dispatch, untried."""
    n = dispatch = runner.facts.dispatch
    if seconds == 0:
        return dispatch
    while (taken := runner.run(n)) < min(CALIBRATION_SECONDS, seconds):
        n *= 2
    return max(1, math.ceil(seconds / taken * n / dispatch)) * dispatch
