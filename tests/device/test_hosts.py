"""Several processes of one training over loopback: they agree, they end together, and they go on together."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from runs import rows, summary
from train.device import hosts
from train.errors import UserError
from train.store.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
CONFIG = """
name: t
model: {layers: 2, width: 8, heads: 2}
data: {kind: copy, context: 8, batch: 8}
train: {steps: 2000, eval_every: 20, eval_batches: 2, checkpoint_every: 20, steps_per_call: 2, unroll: 1}
watch: {every: 10}
variants: {with: {}, without: {model.residual: none}}
"""
MESH = "mesh={fsdp: 2}"  # over all four devices of the two processes
# The command, whose process ends a second after it has decided to.
LATE = """
import os, time
leave = os._exit
os._exit = lambda code: (time.sleep(1), leave(code))
from train.cli import script
script()
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(
    folder: Path, *arguments: str, devices: int = 2, program: Sequence[str] = ("-m", "train")
) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": os.environ["PATH"], "XLA_FLAGS": flags}
    command = [sys.executable, *program, "train", "t.yaml", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def both(
    folder: Path, *arguments: str, last: Sequence[str] = ("-m", "train"), apart: Path | None = None
) -> list[subprocess.Popen]:
    """The second one runs `last`, and in the folder `apart` if it is given."""
    address = f"127.0.0.1:{free_port()}"
    flags = [MESH, *arguments, "--coordinator", address, "--processes", "2", "--process"]
    return [started(folder, *flags, "0"), started(apart or folder, *flags, "1", program=last)]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Returns (exit code, stdout, stderr) of each."""
    try:
        printed = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, printed, strict=True)]


def until_saved(run: Path, step: int, processes: list[subprocess.Popen]) -> None:
    end = time.monotonic() + 180
    while not any(saved >= step for saved in Checkpoints(run).steps()):
        assert time.monotonic() < end and all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_stop_together_lose_one_and_go_on(tmp_path, wording):
    (tmp_path / "t.yaml").write_text(CONFIG, encoding="utf-8")
    run = tmp_path / "runs" / "t" / "with"
    processes = both(tmp_path, last=("-c", LATE))
    until_saved(run, 20, processes)
    processes[1].send_signal(signal.SIGTERM)  # to the one that saves nothing
    (code, out, _), (other, silent, _) = ended(processes)
    assert (code, other) == (143, 143) and "stopped and saved" in out
    assert all(line.startswith("[Gloo]") for line in silent.splitlines())
    assert summary(run)["exit_reason"] == f"signal {int(signal.SIGTERM)}"
    stopped = Checkpoints(run).steps()[-1]

    processes = both(tmp_path)
    until_saved(run, stopped + 20, processes)
    processes[1].kill()
    began = time.monotonic()
    (code, out, err), _ = ended(processes)
    assert code == 1 and time.monotonic() - began < 5
    (line,) = (line for line in err.splitlines() if line.startswith("deltaflow"))
    wording(line, "process 0")
    last = Checkpoints(run).steps()[-1]
    steps = last - last % 20 + 40

    (code, out, err), (other, _, _) = ended(both(tmp_path, f"train.steps={steps}"))
    assert (code, other) == (0, 0), err
    assert f"resuming at step {last}" in out
    alone = started(tmp_path, "name=alone", f"train.steps={steps}", devices=1)
    assert ended([alone])[0][0] == 0
    for variant in ("with", "without"):
        logged, expected = (rows(tmp_path / "runs" / name / variant) for name in ("t", "alone"))
        assert [*logged] == [*expected]
        for step, row in expected.items():
            np.testing.assert_allclose(logged[step]["loss/train"] if step else 0, row.get("loss/train", 0), rtol=2e-5)
            assert logged[step].keys() == row.keys()


@pytest.mark.slow
def test_what_ends_one_process_is_a_line_in_each(tmp_path, wording):
    apart = tmp_path / "apart"
    apart.mkdir()
    for folder in (tmp_path, apart):
        (folder / "t.yaml").write_text(CONFIG, encoding="utf-8")
    (apart / "t.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    (code, _, err), (other, _, line) = ended(both(tmp_path, "data.kind=text", "data.path=t.txt", apart=apart))
    assert (code, other) == (2, 1) and err.startswith("deltaflow: command line: data.path: 't.txt'")
    assert err.count("\n") == line.count("\n") == 1
    wording(line, "process 1")


@pytest.mark.slow
def test_a_dry_run_of_two_processes_is_of_both_and_writes_nothing(tmp_path):
    (tmp_path / "t.yaml").write_text(CONFIG, encoding="utf-8")
    (code, out, err), (other, silent, _) = ended(both(tmp_path, "--dry-run"))
    assert (code, other) == (0, 0), err
    assert "4 x cpu" in out and "expected time" in out and out.endswith("dry run: nothing was written\n")
    assert all(line.startswith("[Gloo]") for line in silent.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]


@pytest.mark.parametrize(
    ("given", "option", "code"),
    [
        (("a:1", 2, None), "--coordinator, --processes and --process", 2),
        (("here", 2, 0), "--coordinator", 2),
        (("here:x", 2, 0), "--coordinator", 2),
        (("here:1", 0, 0), "--processes", 2),
        (("here:1", 2, 2), "--process", 2),
        (("127.0.0.1:1", 2, 1), "--coordinator 127.0.0.1:1", 1),
    ],
)
def test_processes_that_cannot_be_connected(given, option, code, wording):
    with wording.raises(UserError, option) as caught:
        hosts.connect(*given, answer_s=0.3)
    assert caught.value.exit_code == code


def test_a_process_that_is_alone_decides_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    assert not hosts.connect(None, None, None) and not hosts.connect("127.0.0.1:1", 1, 0)
    assert hosts.agreed(None) is None and hosts.agreed(15) == 15 and hosts.broadcast_folder(tmp_path) == tmp_path
