"""A run that goes on over other numbers of devices: 1 -> 2 -> 4 -> 1 virtual CPU devices.

A trial is one run of a tiny transformer in as many fresh processes as its chain has device counts, each stopped as by
SIGTERM at its share of the steps and gone on with by the next; one unbroken run on one device is what all are compared
with. It holds when the losses and the parameters at the end are the same bit for bit, or within 1.3e-7 (relative, of an
array's largest entry), each step is logged once, and each change of the device count is told in one line.

The program computes on one device today, so what changes is how XLA's threads are shared out among devices.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scripts.torture.row import Row
from train.store.checkpoint import Checkpoints

CHAIN = (1, 2, 4, 1)
TOLERANCE = 1.3e-7
EACH = 4  # steps a process
CONFIG = """
name: tiny
model: {layers: 2, width: 32, heads: 2, dropout: 0.1}
data: {kind: copy, context: 16, batch: 8}
optimizer: {lr: 1e-2, min_lr: 1e-3, warmup: 2}
train: {steps: %d, eval_every: 4, eval_batches: 2, checkpoint_every: 4, steps_per_call: 2, unroll: 1}
watch: {every: 0}
"""
RUN = """
import sys
from train.config.load import load
from train.run import summary
from train.log.console import Console
from train.run.experiment import train
from train.device.signals import Stop

class Until(Console):
    def progress(self, variant, step, *rest):
        super().progress(variant, step, *rest)
        if step >= int(sys.argv[2]):
            stop.signal = 15

stop = Stop()
summary.write_report = lambda *_: None  # drawing it takes longer than all the rest
experiment = load(sys.argv[1], ["runs_dir=" + sys.argv[3]])
train(experiment, Until(), stop)
"""


def rows(scale: float, seed: int) -> Iterable[Row]:
    """One row; scaled down, a chain of two. `seed` is not used: there is nothing to draw."""
    chains: Sequence[Sequence[int]] = [CHAIN] if scale >= 0.5 else [(1, 4)]
    held, worst, broken = 0, 0.0, []
    with tempfile.TemporaryDirectory(prefix="deltaflow-topology-") as name:
        folder = Path(name)
        whole: dict[int, tuple[list[dict[str, Any]], dict[str, Any]]] = {}
        for index, chain in enumerate(chains):
            steps = EACH * len(chain)
            (folder / "tiny.yaml").write_text(CONFIG % steps, encoding="utf-8")
            if steps not in whole:
                _process(folder, 1, steps, f"whole{steps}")
                whole[steps] = _end(folder / f"whole{steps}" / "tiny" / "main")
            said = [_process(folder, n, EACH * (part + 1), f"chain{index}") for part, n in enumerate(chain)]
            far, wrong = _compared(_end(folder / f"chain{index}" / "tiny" / "main"), whole[steps])
            for old, new, text in zip(chain, chain[1:], said[1:], strict=False):
                if text.count(f"device count {old} then, {new} now") != 1:
                    wrong = wrong or f"{old} -> {new} was not told"
            worst = max(worst, far)
            held += wrong is None
            broken += [] if wrong is None else [f"{' -> '.join(map(str, chain))}: {wrong}"]
    what = ", ".join(" -> ".join(map(str, chain)) for chain in chains)
    note = "bitwise the same" if worst == 0.0 else f"largest relative difference {worst:.1e}"
    promise = f"ends as on one device, bitwise or within {TOLERANCE:g}; every step once"
    yield Row(f"other device counts on the way ({what})", promise, len(chains), held, note, tuple(broken))


def _process(folder: Path, devices: int, until: int, runs_dir: str) -> str:
    """Trains up to a step in a fresh process with that many devices; returns what was printed."""
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", RUN, "tiny.yaml", str(until), runs_dir]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[3:])}: {done.stderr[-2000:]}")
    return done.stdout


def _end(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the rows that were logged, but for what depends on the clock; the arrays of the parameters)."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]
    checkpoints = Checkpoints(run)
    return logged, checkpoints.params(checkpoints.only_newest())


def _compared(got: tuple[list, Any], wanted: tuple[list, Any]) -> tuple[float, str | None]:
    """(the largest relative difference, what is wrong)."""
    steps = [[row["step"] for row in rows] for rows, _ in (got, wanted)]
    if steps[0] != steps[1]:
        return 0.0, f"logged steps {steps[0]} instead of {steps[1]}"
    if [row.keys() for row in got[0]] != [row.keys() for row in wanted[0]]:
        return 0.0, "logged other tags"
    far = 0.0
    for one, other in zip(jax.tree.leaves(got[1]), jax.tree.leaves(wanted[1]), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        far = max(far, float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30)))
    for one, other in zip(got[0], wanted[0], strict=True):
        for tag in [tag for tag in other if tag.startswith("loss/")]:
            far = max(far, abs(one[tag] - other[tag]) / max(abs(other[tag]), 1e-30))
    return far, None if far <= TOLERANCE else f"differs by {far:.1e}"
