"""Two processes of one training, one of which gets a signal: both save the same step and end alike."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runs import summary
from train.device.platform import agreed
from train.store.checkpoint import Checkpoints

TESTS = Path(__file__).parents[1]
CONFIG = """
name: t
model: {layers: 1, width: 8, heads: 1}
data: {kind: copy, context: 8, batch: 2}
train: {steps: 40, eval_every: 40, eval_batches: 1, checkpoint_every: 40, steps_per_call: 2, unroll: 1}
watch: {every: 0}
"""
# Where a checkpoint of several processes lies is another question, so each has its own runs_dir.
PROGRAM = """
import os, sys
import jax
index, port, number = map(int, sys.argv[1:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
from runs import train_until
step = 6 if index == 1 else 10**9
train_until(step, "t.yaml", f"runs_dir=runs{index}", action=lambda stop: setattr(stop, "signal", number))
print(jax.process_count(), flush=True)
os._exit(0)  # the other may be gone already, and to wait for it at the end would be an error
"""


def test_a_process_that_is_alone_is_asked_alone():
    assert agreed(None) is None and agreed(15) == 15


@pytest.mark.slow
def test_all_processes_save_the_same_step(tmp_path):
    (tmp_path / "t.yaml").write_text(CONFIG, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{TESTS.parent}{os.pathsep}{TESTS}"
    environment = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
    processes = []
    for index in range(2):
        command = [sys.executable, "-c", PROGRAM, str(index), str(port), str(int(signal.SIGTERM))]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True))
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [out.strip().splitlines()[-1] for out, _ in printed] == ["2", "2"], printed
    runs = [tmp_path / f"runs{index}" / "t" / "main" for index in range(2)]
    assert [summary(run)["exit_reason"] for run in runs] == [f"signal {signal.SIGTERM}"] * 2
    steps = [Checkpoints(run).steps() for run in runs]
    assert steps[0] == steps[1] and len(steps[0]) == 1 and 6 < steps[0][0] < 12
