"""Random SIGTERM and SIGINT, over the whole life of a run.

A trial of the first two rows is a training through the command line's own function, in this process and its main
thread, with its own handlers; a thread sends the process a real signal at a moment drawn evenly from the time that an
unbroken run takes; every fourth run draws its report, for which it takes as long again. Then the same command is given
once more. Programs are compiled once for all trials, so no signal falls into a compilation there. A trial of the last
row is a process of its own, from its start to its end, compilation included, and another one that goes on from what it
left.

Held: the exit code is 130 or 143 (0 when the run was over before), it came within 5 seconds of the signal, and the
second command ends with bitwise the parameters and values of the unbroken run, each step once.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np

from scripts.faults.programs import shared
from scripts.faults.results import Row
from train.cli import main

LIMIT_S = 5.0
REPORTS = 4  # one trial in so many draws the report
ROOT = Path(__file__).parents[2]
CONFIG = """
name: t
model: {layers: 2, width: 16, heads: 2, dropout: 0.1}
data: {path: corpus.txt, context: 8, batch: 4}
optimizer: {lr: 1e-2, min_lr: 1e-3, warmup: 3}
train: {steps: 30, eval_every: 6, eval_batches: 2, checkpoint_every: 12, steps_per_call: 3, unroll: 1}
watch: {every: 3, instruments: {units: 12}}
variants: {with: {}, without: {model.residual: none}, other: {model.norm: none}}
"""
PROMISE = "exit 143 or 130 within 5 s; the same command ends as an unbroken run, each step once"


def rows(scale: float, seed: int) -> Iterable[Row]:
    """100 trials in this process, 20 of them more with a second SIGINT, and 10 whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        yield from inside(Path(folder), scale, seed)
    with tempfile.TemporaryDirectory() as folder:
        yield processes(Path(folder), max(1, round(10 * scale)), seed)


def inside(folder: Path, scale: float, seed: int, config: str = CONFIG) -> Iterator[Row]:
    _prepare(folder, config)
    with _ours(folder), shared():
        _train("warm")  # compiles
        life = {report: _life(runs, report) for runs, report in (("bare", False), ("whole", True))}
        rng = random.Random(seed)
        for fault, count, twice in (("SIGTERM or SIGINT at a random moment", 100, False), ("SIGINT twice", 20, True)):
            broken, slowest, over = [], 0.0, 0
            trials = max(1, round(count * scale))
            for trial in range(trials):
                number = signal.SIGINT if twice else rng.choice((signal.SIGINT, signal.SIGTERM))
                report = trial % REPORTS == 0
                at = rng.uniform(0, life[report])
                again = at + rng.uniform(0, 0.3) if twice else None
                code, took = _signalled(f"r{trial}", number, at, again, report)
                why = _judged(code, number, took) or _gone_on(folder, f"r{trial}")
                slowest, over = max(slowest, took), over + (code == 0)
                broken += [f"seed {seed}, trial {trial}, {number.name} after {at:.3f} s: {why}"] if why else []
                _remove(folder / f"r{trial}")
            note = f"slowest exit {slowest:.1f} s; {over} came after the end"
            yield Row(f"{fault}, in one process", PROMISE, trials, trials - len(broken), note, tuple(broken[:5]))


def processes(folder: Path, trials: int, seed: int) -> Row:
    """Whole processes."""
    _prepare(folder)
    _, whole = _process(folder, "whole", None, 0)
    rng, broken, slowest, early = random.Random(seed), [], 0.0, 0
    _, life = _process(folder, "again", None, 0)  # its programs come from the cache
    for trial in range(trials):
        number, at = rng.choice((signal.SIGINT, signal.SIGTERM)), rng.uniform(0.2, life)
        code, took = _process(folder, f"r{trial}", number, at)
        early += code < 0  # Python itself was starting, and had no handlers yet: what a shell reports as 130 and 143
        why = _judged(128 - code if code < 0 else code, number, took)
        if not why:
            code, _ = _process(folder, f"r{trial}", None, 0)
            why = (
                f"the second command ended with {code}" if code else _different(folder / "whole", folder / f"r{trial}")
            )
        slowest = max(slowest, took)
        broken += [f"seed {seed}, trial {trial}, {number.name} after {at:.2f} s: {why}"] if why else []
    note = f"slowest exit {slowest:.1f} s; {early} before the handlers were there"
    return Row("the same, whole processes", PROMISE, trials, trials - len(broken), note, tuple(broken[:5]))


def _prepare(folder: Path, config: str = CONFIG) -> None:
    (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    (folder / "t.yaml").write_text(config, encoding="utf-8")


@contextmanager
def _ours(folder: Path) -> Iterator[None]:
    """In `folder`, where a signal that comes after the end of a run does nothing."""
    before = Path.cwd()
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _train(runs: str, report: bool = False) -> int:
    drawn = nullcontext() if report else patch("train.run.summary.write_report", lambda *_: None)
    with drawn, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return main(["train", "t.yaml", f"runs_dir={runs}"])


def _life(runs: str, report: bool) -> float:
    """Seconds of an unbroken run."""
    began = time.monotonic()
    assert _train(runs, report) == 0, "the unbroken run failed"
    return time.monotonic() - began


def _signalled(runs: str, number: signal.Signals, at: float, again: float | None, report: bool) -> tuple[int, float]:
    """(exit code, seconds from the last signal to the end); at most 0 when the end came first."""
    sent: list[float] = []

    def send() -> None:
        for moment in (at, again):
            if moment is not None:
                time.sleep(max(0.0, began + moment - time.monotonic()))
                sent.append(time.monotonic())
                os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    began = time.monotonic()
    sender.start()
    try:
        code = _train(runs, report)
    except BaseException as error:  # what a user would see as a traceback
        code = f"a traceback: {error!r}"
    ended = time.monotonic()
    sender.join()
    return code, ended - sent[0]  # pyright: ignore[reportReturnType]


def _judged(code: int, number: signal.Signals, took: float) -> str:
    """What is wrong with an end; empty when nothing is. A run that was over, or all but over, ends with 0."""
    if code not in (0, 128 + number) or (code == 0 and took > LIMIT_S):
        return f"ended with {code}"
    return f"took {took:.1f} s to end" if took > LIMIT_S else ""


def _gone_on(folder: Path, runs: str) -> str:
    code = _train(runs)
    return f"the second command ended with {code}" if code else _different(folder / "whole", folder / runs)


def _process(folder: Path, runs: str, number: signal.Signals | None, at: float) -> tuple[int, float]:
    """(exit code, seconds from the signal, or else from the start, to the end)."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    command = [sys.executable, "-m", "train", "train", "t.yaml", f"runs_dir={runs}"]
    began = time.monotonic()
    with open(folder / f"{runs}.log", "ab") as log:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        if number is not None:
            try:
                child.wait(at)
            except subprocess.TimeoutExpired:
                child.send_signal(number)
            began = time.monotonic()
        try:
            return child.wait(600), time.monotonic() - began
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait(), time.monotonic() - began


def _different(whole: Path, other: Path) -> str:
    """What is not as in the unbroken run; empty when all is."""
    for run in sorted(path.parent for path in whole.rglob("metrics.jsonl")):
        twin = other / run.relative_to(whole)
        if (a := _logged(run)) != (b := _logged(twin)):
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return f"{run.name}: row {at} of {len(a)} and {len(b)} differs"
        if not all(np.array_equal(x, y) for x, y in zip(_saved(run), _saved(twin), strict=True)):
            return f"{run.name}: other parameters"
        ends = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (run, twin)]
        for key in ("steps", "loss_train", "loss_val", "best_val", "verdict", "exit_reason"):
            if ends[0][key] != ends[1][key]:
                return f"{run.name}: summary.json: {key}: {ends[0][key]} and {ends[1][key]}"
    return ""


def _logged(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{tag: x for tag, x in json.loads(line).items() if not tag.startswith("perf/")} for line in lines]


def _saved(run: Path) -> list[np.ndarray]:
    """The last state."""
    from train.store.checkpoint import Checkpoints

    checkpoints = Checkpoints(run)
    return [*checkpoints.arrays(checkpoints.only_newest()).values()]


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
