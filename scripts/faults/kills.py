"""kill -9 at random moments of whole processes, which import, compile and train.

A trial is one run of the tiny config that is killed up to twice and then left to end. Held: what it leaves is that of
an unbroken run.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from scripts.faults.calls import UNBROKEN
from scripts.faults.results import Row
from scripts.faults.snapshot import compared, snapshot_of
from scripts.faults.tiny import CONFIG, VARIANTS

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 12


def rows(scale: float, seed: int) -> Iterable[Row]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="deltaflow-kills-") as name:
        yield _row(Path(name).resolve(), max(1, round(scale * TRIALS)), seed)


def _row(folder: Path, trials: int, seed: int) -> Row:
    (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    (folder / "tiny.yaml").write_text(CONFIG + VARIANTS[1], encoding="utf-8")
    runs, kills, broken, draws = folder / "runs", 0, [], np.random.default_rng(seed)
    _process(folder, None)  # fills the cache of compiled programs
    shutil.rmtree(runs)
    began = time.monotonic()
    _process(folder, None)
    whole_s = time.monotonic() - began
    whole = {run.name: snapshot_of(run) for run in (runs / "tiny").iterdir() if run.is_dir()}
    shutil.rmtree(runs)
    for _ in range(trials):
        codes = [_process(folder, seconds) for seconds in draws.uniform(0.4 * whole_s, whole_s, 2).tolist()]
        kills += codes.count(None)
        codes.append(_process(folder, None))
        wrong = [f"ended with {code}" for code in codes if code] or compared(whole, runs / "tiny")
        broken += ["; ".join(wrong)] if wrong else []
        shutil.rmtree(runs)
    note = f"{kills} kills in these {trials} runs"
    return Row("kill -9 at random moments", UNBROKEN, trials, trials - len(broken), note, tuple(broken[:5]))


def _process(folder: Path, seconds: float | None) -> int | None:
    """The exit code of a training; None when it was killed after so many seconds."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "train", "train", "tiny.yaml", "runs_dir=runs"]
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None
