"""kill -9 at every call of save, log and prune, and at random moments.

A trial: the run of tiny.py is started, in a process forked from one that has imported everything, and
killed by SIGKILL at one call: before it, or when half of a write is done; then it is started again. It has to go on
from the last save, and what it leaves is compared with what an unbroken run left: parameters bitwise, metrics.jsonl,
TensorBoard's scalars and summary.json by value. The training is real, its programs were compiled once. At random:
killed by the clock, up to three times before it may end; and some with whole new processes that import and compile.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from scripts.torture.left import compared
from scripts.torture.row import Row
from scripts.torture.shim import Action, Fault, calls
from scripts.torture.stage import FLAGS, ROOT
from scripts.torture.tiny import Bench, Part, arguments, bench, lefts, saved, sites, some

PROMISE = "parameters bitwise and logged values as of an unbroken run, each step once"
RANDOM, FRESH = 200, 10
TOLD = 5
AGAIN = 5  # times that a place is tried again which was not met


def rows(scale: float, seed: int) -> Iterable[Row]:
    with bench(1) as made:
        yield at_calls(made, scale, seed)
    with bench(2) as made:
        yield at_calls(made, scale, seed, ("rename",))
        yield _at_random(made, scale, seed)
        yield _fresh(made, scale, seed)


def at_calls(made: Bench, scale: float, seed: int, operations: Sequence[str] = ()) -> Row:
    """At the calls of these operations; of all without. In full, places that were missed are tried again: the threads
    that write take their turns differently each time, so that a number may be another call's."""
    known, killing = set(), _Killing(made)
    for part in made.parts:
        wanted = [call for call in part.calls if not operations or call.operation in operations]
        known |= sites(wanted, part.runs)
        places = [(call.number, Action.BEFORE) for call in wanted]
        places += [(call.number, Action.DURING) for call in wanted if call.operation == "write"]
        for place in some(round(scale * len(places)), len(places), seed):
            killing.trial(part, *places[place - 1])
        for _ in range(AGAIN if scale >= 1 else 0):
            for call in wanted:
                if not sites([call], part.runs) <= killing.reached:
                    killing.trial(part, call.number, Action.BEFORE)
    note = f"{len(killing.reached & known)} of {len(known)} different places"
    fault = f"kill -9 at every {', '.join(operations) or 'write, fsync, rename, unlink, rmdir, mkdir, truncate'}"
    fault += f" of {len(made.whole)} variants" if len(made.whole) > 1 else ""
    held = killing.trials - len(killing.broken)
    return Row(fault, PROMISE, killing.trials, held, note, tuple(killing.broken[:TOLD]))


@dataclass
class _Killing:
    """What the trials so far have shown. `reached`: the places at which a run was killed."""

    made: Bench
    broken: list[str] = field(default_factory=list)
    trials: int = 0
    reached: set[tuple[str, str]] = field(default_factory=set)

    def trial(self, part: Part, at: int, action: Action) -> None:
        log = self.made.folder / "killed.log"
        with self.made.copy(part) as runs:
            ended = self.made.train(runs, Fault(str(runs), at, action, log=str(log)))
            noted = calls(log)
            last = noted[-1]
            log.unlink()
            if ended.code != -9 or ended.late:  # it had fewer calls this time: no trial
                return
            self.trials += 1
            self.reached |= sites([last], runs)
            if found := self.made.again(runs, saved(noted, runs, part.step)):
                self.broken.append(
                    f"{action.name.lower()} call {at} ({last.operation} {last.path}): {'; '.join(found)}"
                )


def _at_random(made: Bench, scale: float, seed: int) -> Row:
    draws = np.random.default_rng(seed)
    broken, kills, runs = [], 0, made.folder / "runs"
    whole_s = made.train(made.folder / "timed").seconds
    shutil.rmtree(made.folder / "timed")
    while kills < max(1, round(scale * RANDOM)):
        moments = draws.uniform(0, whole_s, 3).tolist()
        done = [made.train(runs, seconds=moment) for moment in moments]
        killed = sum(ended.late for ended in done)
        if bad := [ended.code for ended in done if not ended.late and ended.code]:
            broken += [f"after a kill it ended with {bad}"] * killed
        elif killed and (found := made.again(runs, 0)):
            broken += [f"killed after {', '.join(f'{s:.3f}' for s in moments)} s: {'; '.join(found)}"] * killed
        kills += killed
        shutil.rmtree(runs, ignore_errors=True)
    return Row(
        "kill -9 at random moments", PROMISE, kills, kills - len(broken), "up to 3 kills a run", tuple(broken[:TOLD])
    )


def _fresh(made: Bench, scale: float, seed: int) -> Row:
    draws = np.random.default_rng(seed + 1)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(made.folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **cache}
    environment["XLA_FLAGS"] = FLAGS
    runs, trials, kills, broken = made.folder / "runs", max(1, round(scale * FRESH)), 0, []

    def start(seconds: float | None) -> int | None:
        """The exit code; None when it was killed."""
        command = [sys.executable, "-m", "train", *arguments(runs)]
        process = subprocess.Popen(
            command, cwd=made.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    start(None)  # fills the cache
    shutil.rmtree(runs)
    began = time.monotonic()
    start(None)
    whole_s, whole = time.monotonic() - began, lefts(runs)
    shutil.rmtree(runs)
    for _ in range(trials):
        codes = [start(seconds) for seconds in draws.uniform(0.3 * whole_s, whole_s, 2).tolist()]
        kills += codes.count(None)
        codes.append(start(None))
        found = [f"ended with {code}" for code in codes if code] or compared(whole, runs / "tiny")
        if found:
            broken.append("; ".join(found))
        shutil.rmtree(runs)
    return Row(
        "the same, each time a new process that imports and compiles",
        PROMISE,
        trials,
        trials - len(broken),
        f"{kills} kills in these {trials} runs",
        tuple(broken[:TOLD]),
    )
