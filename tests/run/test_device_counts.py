"""A run that goes on over other numbers of virtual CPU devices and other meshes, a process each."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runs import rows
from train.store.checkpoint import Checkpoints

TESTS = Path(__file__).parents[1]
CHAIN = (1, 2, 8, 4, 1)
MESHES = {8: "mesh={fsdp: 2, tensor: 2}", 4: "mesh={fsdp: 4}"}  # else all of them divide the batch
EACH = 4  # steps a process
CONFIG = f"""
name: tiny
model: {{layers: 2, width: 32, heads: 2, dropout: 0.1}}
data: {{kind: copy, context: 16, batch: 8}}
optimizer: {{lr: 1e-2, min_lr: 1e-3, warmup: 2}}
train: {{steps: {EACH * len(CHAIN)}, eval_every: 4, eval_batches: 2, checkpoint_every: 4, steps_per_call: 2, unroll: 1}}
watch: {{every: 0}}
"""
RUN = """
import sys
from runs import train_until
train_until(int(sys.argv[1]), "tiny.yaml", *sys.argv[2:], action=lambda stop: setattr(stop, "signal", 15))
"""


def trained(folder: Path, devices: int, until: int, runs_dir: str) -> str:
    """Trains up to a step in a process with that many devices; returns what was printed."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
    }
    command = [sys.executable, "-c", RUN, str(until), f"runs_dir={runs_dir}", *filter(None, [MESHES.get(devices)])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(tmp_path):
    (tmp_path / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    steps = EACH * len(CHAIN)
    trained(tmp_path, 1, steps, "whole")
    printed = [trained(tmp_path, count, EACH * (part + 1), "chain") for part, count in enumerate(CHAIN)]
    for old, new, text in zip(CHAIN, CHAIN[1:], printed[1:], strict=False):
        assert text.count(f"device count {old} then, {new} now") == 1
    whole, chain = (tmp_path / name / "tiny" / "main" for name in ("whole", "chain"))
    logged, expected_rows = rows(chain), rows(whole)
    assert [*logged] == [*expected_rows]
    for step, row in expected_rows.items():
        assert logged[step].keys() == row.keys()
        for tag in (tag for tag in row if tag.startswith("loss/")):
            np.testing.assert_allclose(logged[step][tag], row[tag], rtol=1e-6)
    expected = Checkpoints(whole).arrays(steps)
    for path, array in Checkpoints(chain).arrays(steps).items():
        if path.startswith("params/"):
            largest = float(np.abs(expected[path]).max())
            np.testing.assert_allclose(array, expected[path], rtol=0, atol=2e-6 * largest)
