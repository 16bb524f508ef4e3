"""Two processes of one training, one of which gets a signal: both save the same step and end alike."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from train.device.platform import agreed

ROOT = Path(__file__).parents[2]
CONFIG = """
name: t
model: {layers: 1, width: 8, heads: 1}
data: {kind: copy, context: 8, batch: 2}
train: {steps: 40, eval_every: 40, eval_batches: 1, checkpoint_every: 40, steps_per_call: 2, unroll: 1}
watch: {every: 0}
"""
# Where a checkpoint of several processes lies is another question, so what would be saved is noted.
PROGRAM = """
import json, os, signal, sys
import jax
index, port, number = map(int, sys.argv[1:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
from train.cli import main
from train.log.console import Console
from train.run.loop import GroupRun
saved = []
GroupRun.save = lambda self, step, eval_pending=False: saved.append(step)
progress = Console.progress

def signalled(self, variant, step, *rest):
    progress(self, variant, step, *rest)
    if index == 1 and step == 6:
        os.kill(os.getpid(), number)

Console.progress = signalled
code = main(["train", "t.yaml", f"runs_dir=runs{index}"])
print(json.dumps([jax.process_count(), code, saved]), flush=True)
os._exit(0)  # the other may be gone already, and to wait for it at the end would be an error
"""


def test_a_process_that_is_alone_is_asked_alone():
    assert agreed(None) is None and agreed(15) == 15


def test_all_processes_save_the_same_step(tmp_path):
    (tmp_path / "t.yaml").write_text(CONFIG, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM]
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
    started = [
        subprocess.Popen(
            [*command, str(index), str(port), str(int(signal.SIGTERM))],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        printed = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    ended = [json.loads(out.strip().splitlines()[-1]) for out, _ in printed]
    saved = ended[0][2]
    assert ended == [[2, 143, saved], [2, 143, saved]]
    assert len(saved) == 1 and 6 < saved[0] < 12
