"""Signals over the whole life of a run: SIGTERM and SIGINT in this process, and these and kill -9 to whole processes.

In this process a training has its own handlers in the main thread, and another thread sends a real signal at a moment
drawn evenly from the time that an unbroken run takes; every fourth run draws its report. No signal falls into a
compilation there, but it does in a process of its own, from its start to its end. Held: the exit code is 143 or 130
(0 when the run was over before), it came within 5 seconds, and the same command then ends as an unbroken run.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.faults.sweep import UNBROKEN, Broken, Sweep
from scripts.faults.tiny import Bench, bench, differing, prepare, snapshots

LIMIT_S = 5.0
ROOT = Path(__file__).parents[2]
PROMISE = "exit 143 or 130 within 5 s; the same command ends as an unbroken run, each step once"
OVERRIDES = (
    *("train.steps=30", "train.eval_every=6", "train.checkpoint_every=12", "train.steps_per_call=3"),
    *("watch={every: 3, instruments: {units: 12}}", "variants.without={model.residual: none}"),
    "variants.other={model.norm: none}",
)
STOPS = (signal.SIGINT, signal.SIGTERM)
Place = Sequence[tuple[signal.Signals, float]]  # signals, and shares of the life of a run


def sweeps(seed: int) -> Iterator[Sweep]:
    draw = random.Random(seed)
    with bench(*OVERRIDES) as tiny:
        lives = [min(life_of(tiny, report) for _ in range(3)) for report in (False, True)]  # else signals come too late
        once = [[(draw.choice(STOPS), draw.random())] for _ in range(100)]
        yield Sweep(
            "SIGTERM or SIGINT at a random moment, in one process", PROMISE, once, partial(signal_run, tiny, lives)
        )
        at = [draw.random() for _ in range(20)]
        twice = [[(signal.SIGINT, share), (signal.SIGINT, share + draw.uniform(0, 0.3))] for share in at]
        yield Sweep("SIGINT twice, in one process", PROMISE, twice, partial(signal_run, tiny, lives))
    with TemporaryDirectory(prefix="deltaflow-signals-") as name:
        folder = Path(name).resolve()
        prepare(folder)
        process(folder, "first")  # fills the cache of compiled programs
        _, life = process(folder, "whole")
        trial = partial(signal_processes, folder, snapshots(folder / "whole"), life)
        stops = [[(draw.choice(STOPS), draw.uniform(0.05, 1))] for _ in range(10)]
        yield Sweep("SIGTERM or SIGINT at a random moment, whole processes", PROMISE, stops, trial)
        kills = [[(signal.SIGKILL, draw.uniform(0.4, 1)) for _ in range(2)] for _ in range(12)]
        yield Sweep("kill -9 at random moments, twice, whole processes", UNBROKEN, kills, trial)


def life_of(tiny: Bench, report: bool) -> float:
    """Seconds of an unbroken run."""
    began = time.monotonic()
    tiny.train(report=report)
    tiny.clear()
    return time.monotonic() - began


def signal_run(tiny: Bench, lives: Sequence[float], place: Place) -> tuple[str, float]:
    report = place[0][1] < 0.25
    last = began = time.monotonic()

    def send() -> None:
        nonlocal last
        for number, share in place:
            time.sleep(max(0.0, began + share * lives[report] - time.monotonic()))
            last = time.monotonic()
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    before = {number: signal.signal(number, lambda *_: None) for number in STOPS}  # of one after the end of the run
    try:
        sender.start()
        code, _ = tiny.train(report=report)
        took = time.monotonic() - last
        sender.join()
        label = check_end(code, place[-1][0], took)
        tiny.again()
    finally:
        tiny.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
    return label, max(took, 0.0)


def signal_processes(folder: Path, whole: dict, life: float, place: Place) -> tuple[str, float]:
    """Sends each process in turn its signal, and the last one none."""
    slowest, labels = 0.0, []
    for number, share in place:
        code, took = process(folder, "runs", number, share * life)
        labels.append(check_end(128 + number if code == -number else code, number, took))  # it had no handlers yet
        slowest = max(slowest, took)
    if code := process(folder, "runs")[0]:
        raise Broken(f"the last command ended with {code}")
    if different := differing(whole, folder / "runs"):
        raise Broken("; ".join(different))
    shutil.rmtree(folder / "runs")
    return min(labels), slowest  # "" if any of them hit


def check_end(code: int | str, number: signal.Signals, took: float) -> str:
    """Returns a label for a run that was over, or all but over. Raises Broken for another end, or a late one."""
    if code not in (0, 128 + number):
        raise Broken(f"ended with {code}")
    if took > LIMIT_S:
        raise Broken(f"took {took:.1f} s to end")
    return "" if code else "came after the end"


def process(folder: Path, runs: str, number: int | None = None, after: float | None = None) -> tuple[int, float]:
    """A training that gets a signal `after` so many seconds. Returns the exit code and the seconds from the signal, or
    from the start, to the end."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "train", "train", "tiny.yaml", f"runs_dir={runs}", *OVERRIDES]
    began = time.monotonic()
    with open(folder / "log", "ab") as log:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            return child.wait(after), time.monotonic() - began if number is None else 0.0
        except subprocess.TimeoutExpired:
            began = time.monotonic()
            child.send_signal(number or signal.SIGKILL)
            return child.wait(600), time.monotonic() - began
