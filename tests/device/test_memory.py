"""What training needs, what there is, and that the advice fits."""

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
from train.device import available_memory as room
from train.device import budget
from train.device import programs as compiling
from train.device.advisor import Advisor, Setting
from train.device.available_memory import _of_groups, _of_limits, _of_machine
from train.device.budget import complaint
from train.device.memory import Need, bytes_of
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
    monkeypatch.setattr(budget, "available", lambda platform: int(megabytes * 1e6))


def estimated(out: str) -> float:
    """Megabytes, as the start block has them."""
    found = re.search(r"memory +estimated ([\d.]+) (MB|kB)", out)
    assert found is not None
    return float(found[1]) * {"MB": 1.0, "kB": 1e-3}[found[2]]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["data.batch", "optimizer.accumulate", "data.context"])
def test_what_does_not_fit_is_refused_before_the_first_step_and_what_is_advised_fits(config, monkeypatch, capsys, key):
    """Scores of attention [B, H, T, T] decide here, so a step's memory is nearly in proportion to B and to T^2."""
    with monkeypatch.context() as patch:
        patch.setattr(Advisor, "advice", lambda self: [])
        roomy(patch, 0.15)  # the states alone would fit
        whole = float(re.search(r"needs about ([\d.]+) MB \(", refused(capsys, config))[1])  # pyright: ignore
    scores = 12 * 2 * 64 * 64 * 4 / 1e6
    assert scores < whole < 20 * scores
    roomy(monkeypatch, 0.6 * whole)
    err = refused(capsys, config)
    assert f"needs about {whole:.3g} MB (" in err
    assert not (config.parent / "runs" / "m" / "main" / "ckpt").exists()
    advised = dict(re.findall(r"([a-z.]+)=(\d+) \(", err.partition("what fits: ")[2]))
    assert advised == {"optimizer.accumulate": "2", "data.batch": "6", "data.context": "32"}
    assert main(["train", str(config), "name=n", f"{key}={advised[key]}"]) == 0
    assert estimated(capsys.readouterr().out) <= 0.6 * whole


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0])
def test_the_largest_setting_that_fits_is_found_wherever_the_first_guess_was(power):
    """Memory that grows as some power of the batch: the guess assumes 1."""
    values = [512 >> shift for shift in range(10)]
    for fitting in range(len(values) + 1):
        tried = []

        def total(setting, fitting=fitting, tried=tried):
            tried.append(setting.batch)
            return 1000 if setting.batch <= ([*values, 0])[fitting] else 5000

        advisor = Advisor(None, (None, None), Need(0, int(1000 * 2**power)), 1000)
        advisor.total = total
        best = advisor._best(Setting(1024, 1, 8), "batch", values, [(value / 1024) ** power for value in values])
        assert best == ((values[fitting], 1000) if fitting < len(values) else None)
        assert len(tried) == len(set(tried))


def test_states_that_have_no_room_are_refused_before_anything_is_compiled(config, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "compiled", lambda *_: pytest.fail("compiled"))
    err = refused(capsys, config, "model.width=32768", "model.layers=10000")
    assert "TB for parameters, optimizer and tokens, 0 bytes for a step), and there are" in err
    assert "lower model.width, model.layers or the number of variants" in err
    roomy(monkeypatch, 0.01)
    assert "and there are 9,999 bytes" in refused(capsys, config) or "and there are 1" in refused(capsys, config)


def test_held_bytes_by_hand(config, monkeypatch, capsys):
    """adamw: parameters, two averages of them, two counts of steps; twice for two variants; and the tokens."""
    roomy(monkeypatch, 1e-6)
    seen = []
    monkeypatch.setattr(budget, "complaint", lambda need, *_: seen.append(need) or "not enough memory")
    refused(capsys, config, "variants={a: {}, b: {seed: 1}}")
    width, tokens, context = 16, 24, 64
    blocks = 4 * width**2 + 2 * 4 * width**2 + 2 * width
    parameters = blocks + width + (tokens + context) * width
    state = 3 * 4 * parameters
    counts = seen[0].held - 2 * state - 5000
    assert seen[0].passing == 0 and 0 < counts <= 2 * 4 * 4, (seen, state)


@pytest.mark.parametrize("moment", ["running", "compiling"])
def test_a_device_that_refuses_is_answered_by_the_same_advice(config, monkeypatch, capsys, moment):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    def exhausted(*_):
        raise error

    if moment == "running":
        monkeypatch.setattr(Programs, "window", exhausted)
    else:
        real = compiling.compiled
        large = lambda arguments: any(12 in leaf.shape for leaf in jax.tree.leaves(arguments[3:]))  # noqa: E731

        def small_alone(function, arguments, *options):
            return exhausted() if large(arguments) else real(function, arguments, *options)

        monkeypatch.setattr(compiling, "compiled", small_alone)
        roomy(monkeypatch, 10.0)
    asked = []

    def advice(self):
        asked.append(self)
        return ["data.batch=6 (1 MB)"]

    monkeypatch.setattr(Advisor, "advice", advice)
    err = refused(capsys, config, "data.context=8")
    assert err.endswith("; what fits: data.batch=6 (1 MB)\n")
    assert ("training needs about" in err) == (moment == "running")
    (advisor,) = asked
    assert advisor.room == int(0.75 * (advisor.need.total if moment == "running" else 10_005_000))
    for size, fits in ((6, True), (12, False)) if moment == "compiling" else ():
        assert (advisor.total(Setting(size, 1, 8)) is not None) == fits


def test_other_errors_are_left_as_they_are(config, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(Programs, "window", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        main(["train", str(config)])


def test_a_device_that_tells_nothing_is_trained_on(config, monkeypatch, capsys):
    monkeypatch.setattr(budget, "available", lambda platform: None)
    assert main(["train", str(config)]) == 0
    assert re.search(r"memory +estimated [\d.]+ MB\n", capsys.readouterr().out)
    summary = json.loads((config.parent / "runs" / "m" / "main" / "summary.json").read_text(encoding="utf-8"))
    assert summary["exit_reason"] == "done"


def test_what_a_device_has_left():
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 300})
    assert room.available(SimpleNamespace(device=device, kind="gpu")) == 700
    silent = SimpleNamespace(memory_stats=lambda: None)
    assert room.available(SimpleNamespace(device=silent, kind="tpu")) is None
    here = room.available(SimpleNamespace(device=silent, kind="cpu"))
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
from train.run import budget
if sys.argv[1] == "deaf":
    budget.available = lambda platform: None
jax.numpy.ones(3).block_until_ready()
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * used + 1_600_000_000, resource.RLIM_INFINITY))
sys.exit(main(["train", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize("ear", ["hears", "deaf"])
def test_a_real_limit_is_heard_and_a_real_refusal_answered(tmp_path, config, ear):
    """1.6 GB for a step that takes 2.2: one line with what would fit, and nothing that could be taken for a run."""
    name = [f"runs_dir={tmp_path}/{ear}", "data.kind=copy", "data.path=null", "data.context=1024", "data.batch=128"]
    command = [sys.executable, "-c", LIMITED, ear, str(config), *name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("deltaflow: not enough memory: training needs about 2.")
    assert ("and there are" in line) == (ear == "hears")
    assert re.search("; what fits: .*data.batch=", line)
    assert not list(tmp_path.rglob("ckpt"))


def test_bytes_of_arrays_and_of_their_shapes():
    tree = {"a": np.zeros((3, 4), np.float32), "b": [jax.ShapeDtypeStruct((5,), np.uint8), None]}
    assert bytes_of(tree) == 3 * 4 * 4 + 5


def test_the_complaint():
    said = complaint(Need(10**6, 5 * 10**9), 2 * 10**9, ["data.batch=4 (1 GB)"])
    assert said == (
        "not enough memory: training needs about 5 GB (1 MB for parameters, optimizer and tokens, 5 GB for a step), "
        "and there are 2 GB; what fits: data.batch=4 (1 GB)"
    )
    assert complaint(None, None, []) == ("not enough memory; lower model.width, model.layers or the number of variants")
