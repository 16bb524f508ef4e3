"""Runs contestants in turn: every round gives each of them a short stretch, so that the machine's moods are shared."""

import io
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .contestant import Facts
from .worker import prepare

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


class Worker:
    """A contestant in a process of its own. Raises Ended when it is not there, fails, dies or is silent too long."""

    def __init__(self, entry: Entry, timeout: float, environment: dict[str, str] | None = None) -> None:
        start = time.perf_counter()
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115
        self._folder = tempfile.TemporaryDirectory(prefix="deltaflow-bench-")  # what it writes; it is killed in the end
        request = json.dumps({"module": entry.module, "arguments": entry.arguments})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench.worker", request],
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
                raise Ended(_failure(rest))
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
            raise Ended(self._epitaph())
        word, _, rest = line.strip().partition(" ")
        return word, rest

    def _epitaph(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        last = [line.strip() for line in self._errors if line.strip()][-1:]
        return ": ".join([f"died with exit status {code}", *last])

    def run(self, n: int) -> float:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"run {n}\n")
        except BrokenPipeError:
            raise Ended(self._epitaph()) from None
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


class Here:
    """A contestant in this process, for programs that differ by less than two processes do. Raises Ended."""

    def __init__(self, entry: Entry) -> None:
        said = io.StringIO()
        contestant = prepare({"module": entry.module, "arguments": entry.arguments}, said)
        if contestant is None:
            raise Ended(_failure(said.getvalue().removeprefix("failed ")))
        self.facts, self._run = contestant.facts, contestant.run

    def run(self, n: int) -> float:
        return self._run(n)

    def close(self) -> None:
        """Nothing to end."""


def _failure(text: str) -> str:
    failure = json.loads(text)
    return f"{failure['kind']}: {failure['why']}"


@dataclass
class Lane:
    """A contestant's way through the contest: seconds a step, one figure a round, or the trouble that ended it."""

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
    """Starts all, then gives each a stretch of about `seconds` in each of the rounds; every other round backwards.

    The pause between two stretches lets the last one's threads stop spinning.
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
    """Steps that take about `seconds`, a multiple of the window."""
    window = runner.facts.window
    n = window
    while (taken := runner.run(n)) < min(CALIBRATION_SECONDS, seconds):
        n *= 2
    return max(1, math.ceil(seconds / taken * n / window)) * window


def cold_starts(
    entries: Iterable[Entry],
    start: Callable[[Entry], Worker],
    repeats: int,
    say: Callable[[str], object] = lambda line: None,
) -> list[Lane]:
    """Seconds from the start of a new process to the end of its first window, `repeats` times in turn."""
    lanes = [Lane(entry) for entry in entries]
    for turn in range(repeats):
        say(f"start {turn + 1} of {repeats}")
        for lane in lanes:
            if lane.trouble:
                continue
            try:
                worker = start(lane.entry)
            except Ended as ended:
                lane.trouble = str(ended)
                continue
            worker.close()
            lane.facts = worker.facts
            lane.seconds.append(worker.start_seconds)
    return lanes
