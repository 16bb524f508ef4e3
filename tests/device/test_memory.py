"""The bytes that training needs and those available, and that the suggested setting fits."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from train.cli import main
from train.device import memory
from train.device import programs as compiling
from train.device.memory import (
    Need,
    _of_groups,
    _of_limits,
    _of_machine,
    available_memory,
    bytes_of,
    complaint,
    suggestion,
)
from train.device.programs import Programs

CONFIG = """
name: m
runs_dir: {folder}/runs
model: {{layers: 1, width: 16, heads: 2}}
data: {{path: {corpus}, context: 64, batch: 12}}
optimizer: {{name: adamw}}
train: {{steps: 2, eval_every: 2, eval_batches: 1, checkpoint_every: 2, unroll: 1}}
watch: {{every: 0}}
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path, corpus):
    path = tmp_path / "m.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, corpus=corpus), encoding="utf-8")
    return path


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main(["train", *map(str, arguments)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("deltaflow: not enough memory") and err.count("\n") == 1
    return err


def roomy(monkeypatch, megabytes: float) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda platform: int(megabytes * 1e6))


def estimated(out: str) -> float:
    """Megabytes, as the start block has them."""
    found = re.search(r"memory +estimated ([\d.]+) (MB|kB)", out)
    assert found is not None
    return float(found[1]) * {"MB": 1.0, "kB": 1e-3}[found[2]]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["data.batch", "optimizer.accumulate"])
def test_what_does_not_fit_is_refused_before_the_first_step_and_what_is_suggested_fits(
    config, monkeypatch, capsys, key
):
    """Scores of attention [B, H, T, T] dominate here, so that a step's memory is nearly in proportion to B."""
    if key == "data.batch":  # an evaluation takes whole batches, so that accumulating does not help
        monkeypatch.setattr(memory, "need", lambda *given, real=memory.need: whole_batches(real(*given)))
    with monkeypatch.context() as patch:
        roomy(patch, 0.15)  # the states alone would fit
        whole = float(re.search(r"needs about ([\d.]+) MB \(", refused(capsys, config))[1])  # pyright: ignore
    scores = 12 * 2 * 64 * 64 * 4 / 1e6
    assert scores < whole < 20 * scores
    roomy(monkeypatch, 0.65 * whole)
    err = refused(capsys, config)
    assert f"needs about {whole:.3g} MB (" in err
    assert not (config.parent / "runs" / "m" / "main" / "ckpt").exists()
    advice = err.strip().partition("; try ")[2]
    assert advice == {"data.batch": "data.batch=6", "optimizer.accumulate": "optimizer.accumulate=2"}[key]
    assert main(["train", str(config), advice]) == 0
    assert estimated(capsys.readouterr().out) <= 0.65 * whole


def whole_batches(need: Need) -> Need:
    return Need(need.held, need.training, need.passing)


def test_one_setting_is_suggested_by_proportion(tiny):
    config = tiny({"data.batch": 12, "optimizer.accumulate": 2}).variants[0].config
    assert suggestion(config, Need(10, 300, 100), 160) == "optimizer.accumulate=4"
    assert suggestion(config, Need(10, 300, 100), 110) == "optimizer.accumulate=6"
    assert suggestion(config, Need(10, 300, 100), 60) == "data.batch=2"  # the evaluation takes whole batches
    assert suggestion(config, Need(10, 100, 300), 160) == "data.batch=6"
    assert suggestion(config, Need(10, 100, 300), 111) == "data.batch=4"
    assert suggestion(config, Need(10, 600, 0), 109) is None
    assert suggestion(config, Need(10, 100, 100), 10) is None


def test_states_that_have_no_room_are_refused_before_anything_is_compiled(config, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "compiled", lambda *_: pytest.fail("compiled"))
    err = refused(capsys, config, "model.width=32768", "model.layers=10000")
    assert "TB for parameters, optimizer and tokens, 0 bytes for a step), and there are" in err
    assert "lower model.width, model.layers or the number of variants" in err
    roomy(monkeypatch, 0.01)
    err = refused(capsys, config)
    assert "and there are 9,999 bytes" in err or "and there are 1" in err


def test_held_bytes_by_hand(config, monkeypatch, capsys):
    """adamw: parameters, two averages of them, two counts of steps; twice for two variants; and the tokens."""
    roomy(monkeypatch, 1e-6)
    seen = []
    monkeypatch.setattr(memory, "complaint", lambda need, *_: seen.append(need) or "not enough memory")
    refused(capsys, config, "variants={a: {}, b: {seed: 1}}")
    width, tokens, context = 16, 24, 64
    blocks = 4 * width**2 + 2 * 4 * width**2 + 2 * width
    parameters = blocks + width + (tokens + context) * width
    state = 3 * 4 * parameters
    counts = seen[0].held - 2 * state - 5000
    assert seen[0].passing == 0 and 0 < counts <= 2 * 4 * 4, (seen, state)


@pytest.mark.parametrize("moment", ["running", "compiling"])
def test_a_device_that_refuses_is_answered_in_one_line(config, monkeypatch, capsys, moment):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    if moment == "running":
        monkeypatch.setattr(Programs, "dispatch", exhausted)
    else:
        monkeypatch.setattr(compiling, "compiled", exhausted)
    err = refused(capsys, config, "data.context=8")
    if moment == "running":
        assert "training needs about" in err and err.endswith("; try optimizer.accumulate=2\n")
    else:
        assert "data.batch, data.context, model.width" in err


def test_other_errors_are_left_as_they_are(config, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(Programs, "dispatch", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        main(["train", str(config)])


def test_a_device_that_tells_nothing_is_trained_on(config, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available_memory", lambda platform: None)
    assert main(["train", str(config)]) == 0
    assert re.search(r"memory +estimated [\d.]+ MB\n", capsys.readouterr().out)
    summary = json.loads((config.parent / "runs" / "m" / "main" / "summary.json").read_text(encoding="utf-8"))
    assert summary["exit_reason"] == "done"


def test_what_a_device_has_left():
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 300})
    assert available_memory(SimpleNamespace(device=device, kind="gpu")) == 700
    silent = SimpleNamespace(memory_stats=lambda: None)
    assert available_memory(SimpleNamespace(device=silent, kind="tpu")) is None
    here = available_memory(SimpleNamespace(device=silent, kind="cpu"))
    assert here is None or 2**20 < here < 2**50


def test_what_a_machine_has_left(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 9999 kB\nMemAvailable:    2000 kB\nSwapFree: 48 kB\nHugePages_Total: 0\n")
    assert _of_machine(file) == 2048 * 1024
    file.write_text("MemTotal: 9999 kB\n")
    assert _of_machine(file) is None
    assert _of_machine(tmp_path / "none") is None


def group(folder, version: int, limit: str, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    most, now, file = names if version == 2 else old
    (folder / most).write_text(f"{limit}\n")
    (folder / now).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 3\n{file} {cache}\n")


def test_what_control_groups_leave(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    group(tmp_path / "a" / "b", 2, "max", 10, 0)
    group(tmp_path / "a", 2, "1000", 700, 100)
    assert [left for left in _of_groups(tmp_path, own) if left is not None] == [400]
    own.write_text("4:cpu:/x\n3:memory:/c\n")
    group(tmp_path / "memory" / "c", 1, "500", 450, 50)
    group(tmp_path / "memory", 1, "9223372036854771712", 450, 50)
    assert list(_of_groups(tmp_path, own)) == [100, 9223372036854771712 - 400]
    own.write_text("nonsense\n")
    assert list(_of_groups(tmp_path, own)) == []
    assert list(_of_groups(tmp_path, tmp_path / "none")) == []


def test_what_the_limits_of_a_process_leave(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmSize:\t    1000 kB\nVmData:\t 300 kB\n")
    limits = {resource.RLIMIT_AS: 2_000_000, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], resource.RLIM_INFINITY))
    assert list(_of_limits(status)) == [2_000_000 - 1_024_000, None]
    limits[resource.RLIMIT_DATA] = 500_000
    assert list(_of_limits(status)) == [976_000, 500_000 - 307_200]
    status.write_text("Name:\tx\n")
    assert list(_of_limits(status)) == list(_of_limits(tmp_path / "none")) == []


LIMITED = """
import resource, sys
import jax
from train.cli import main
from train.device import memory
if sys.argv[1] == "deaf":
    memory.available_memory = lambda platform: None
jax.numpy.ones(3).block_until_ready()
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * used + 1_600_000_000, resource.RLIM_INFINITY))
sys.exit(main(["train", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize("ear", ["hears", "deaf"])
def test_a_real_limit_is_heard_and_a_real_refusal_answered(tmp_path, config, ear):
    """1.6 GB for a step that takes 2.2: one line with a setting to try, and nothing that could be taken for a run."""
    name = [f"runs_dir={tmp_path}/{ear}", "data.kind=copy", "data.path=null", "data.context=1024", "data.batch=128"]
    command = [sys.executable, "-c", LIMITED, ear, str(config), *name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("deltaflow: not enough memory: training needs about 2.")
    assert ("and there are" in line) == (ear == "hears")
    assert re.search("; try (data.batch|optimizer.accumulate)=[0-9]+$", line)
    assert not list(tmp_path.rglob("ckpt"))


def test_bytes_of_arrays_and_of_their_shapes():
    tree = {"a": np.zeros((3, 4), np.float32), "b": [jax.ShapeDtypeStruct((5,), np.uint8), None]}
    assert bytes_of(tree) == 3 * 4 * 4 + 5


def test_the_complaint():
    assert complaint(Need(10**6, 5 * 10**9), 2 * 10**9, "data.batch=4") == (
        "not enough memory: training needs about 5 GB (1 MB for parameters, optimizer and tokens, 5 GB for a step), "
        "and there are 2 GB; try data.batch=4"
    )
    assert complaint(None, None, None).startswith("not enough memory; lower data.batch")
    assert "data.batch" not in complaint(Need(10**6), 10, None)  # the states alone
