"""The bytes that training needs and those available, and that the suggested setting fits."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from data.text import open_text
from train.cli import main
from train.device import platform as platforms
from train.device.memory import Budget, Need, available_memory, bytes_of, complaint, suggestion
from train.device.platform import Platform
from train.device.programs import Programs
from train.errors import UserError
from train.run.experiment import build_group

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
    assert err.startswith("deltaflow: ") and err.count("\n") == 1
    return err


def device_of(free: int | None) -> Platform:
    stats = None if free is None else {"bytes_limit": free + 300, "bytes_in_use": 300}
    return Platform(SimpleNamespace(memory_stats=lambda: stats), "gpu")


@pytest.fixture(scope="module")
def budget(tiny):
    """A function of the bytes that there are, and of keys: the budget of a group with a dispatch of one step."""
    prepared = {}

    def of(available: int | None, **keys) -> Budget:
        if str(keys) not in prepared:
            variants = tiny({"data.context": 64, "data.batch": 12, "model.layers": 1, "watch.every": 0} | keys).variants
            source = open_text(variants[0].config.data)
            group = build_group(variants, source.spec, platforms.select(variants[0].config.train))
            programs = Programs(group, np.asarray(source.train))
            programs.prepare_dispatch(source.train_batches(variants[0].config.data.batch, 0, 0, 1), False)
            prepared[str(keys)] = programs
        return Budget(prepared[str(keys)], prepared[str(keys)].corpus, available)

    return of


@pytest.mark.parametrize("key", [pytest.param("optimizer.accumulate", marks=pytest.mark.slow), "data.batch"])
def test_what_does_not_fit_is_refused_before_the_first_step_and_what_is_suggested_fits(budget, key, wording):
    """Scores of attention [B, H, T, T] dominate here, so that a step's memory is nearly in proportion to B."""
    with wording.raises(UserError, volatile=r"[\d.]+(?= [kM]?B)|(?<=accumulate=)\d+") as caught:
        budget(1_500_000).waves()
    whole = budget(None)
    whole.waves()
    assert re.fullmatch(r"estimated [\d.]+ MB", whole.line)  # a device that tells nothing is trained on
    assert whole.need is not None and complaint(whole.need, None, None).partition(" (")[0] in str(caught.value)
    scores = 12 * 2 * 64 * 64 * 4
    assert scores < whole.need.passing < 20 * scores
    # An evaluation takes whole batches: where it takes as much, accumulating does not help.
    measuring = whole.need.passing if key == "data.batch" else 0
    like = replace(whole.need, measuring=measuring)
    advice = suggestion(whole.programs.group, like, int(0.65 * whole.need.total)) or ""
    assert advice == {"data.batch": "data.batch=6", "optimizer.accumulate": "optimizer.accumulate=2"}[key]
    fits = budget(int(0.65 * whole.need.total), **{key: int(advice.partition("=")[2])})
    fits.waves()
    assert fits.line.startswith("estimated ") and " of " in fits.line


EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


@pytest.mark.parametrize(
    ("count", "unit", "vmapped", "available", "sizes"),
    [
        (8, 1, True, None, [8]),
        (8, 1, True, 10 + 8 * 25, [8]),
        (8, 1, True, 10 + 8 * 25 - 1, [4, 4]),
        (8, 1, True, 10 + 4 * 25 - 1, [3, 3, 2]),
        (5, 1, True, 10 + 3 * 25, [3, 2]),
        (3, 1, True, 10 + 25, [1, 1, 1]),
        (8, 2, True, 10 + 6 * 25, [4, 4]),
        (6, 2, True, 10 + 4 * 25, [4, 2]),  # mesh.variants: parts are multiples of it
        (8, 2, True, 10 + 4 * 25 - 1, [2, 2, 2, 2]),
        (8, 1, False, 30 + 4 * 5, [4, 4]),  # in turn: only what is held is in proportion
    ],
)
def test_a_grid_goes_in_the_fewest_equal_waves_that_fit(budget, count, unit, vmapped, available, sizes, wording):
    """Tokens take 10 bytes, a variant's state 5, its step 20."""
    group = replace(budget(None).programs.group, vmapped=vmapped, mesh=Mesh(unit, 1))
    group = replace(group, variants=group.variants * count)
    calls, together = (1, count) if vmapped else (count, 1)
    step = {"output_size_in_bytes": 0, "alias_size_in_bytes": 0, "temp_size_in_bytes": 20 * together}
    program = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**step))
    programs = SimpleNamespace(group=group, calls=calls, abstract_state=np.zeros(5 * together, np.uint8))
    programs.ready = {("dispatch",): (program, ())}
    grid = Budget(programs, np.zeros(10, np.uint8), available)
    assert [len(wave.variants) for wave in grid.waves()] == sizes
    least = 10 + 5 * unit + 20 * (unit if vmapped else 1)
    grid.available = least - 1
    with wording.raises(UserError, volatile=r"\d+") as caught:
        grid.waves()
    assert f" {least} bytes (" in str(caught.value)


def test_a_grid_that_a_compiler_refuses_is_halved(budget):
    class Refused(SimpleNamespace):
        abstract_state = ()

        @property
        def ready(self):
            raise EXHAUSTED

    group = budget(None).programs.group
    grid = replace(group, variants=group.variants * 5, vmapped=True)
    assert [len(wave.variants) for wave in Budget(Refused(group=grid), [], 10**9).waves()] == [3, 2]
    for refused in (group, replace(grid, vmapped=False)):
        with pytest.raises(jax.errors.JaxRuntimeError):  # for `explain`
            Budget(Refused(group=refused), [], 10**9).waves()


@pytest.mark.slow
def test_a_wave_needs_what_was_expected(budget):
    """Scores dominate as above, so that the step of two takes not much more than half of that of four."""
    keys = {"train.group": "vmap", "sweep": {"seed": [0, 1, 2, 3]}}
    four = budget(None, **keys)
    four.waves()
    assert four.need is not None
    two = budget(int(0.7 * four.need.total), **keys | {"sweep": {"seed": [0, 1]}})
    assert len(budget(two.available, **keys).waves()) == 2 and len(two.waves()) == 1


class Mesh:
    def __init__(self, variants: int, fsdp: int) -> None:
        self.shape = {"variants": variants, "data": 1, "fsdp": fsdp, "tensor": 1}
        self.devices = np.array(jax.devices()[:1])


def test_one_setting_is_suggested_by_proportion(tiny):
    variants = tiny({"data.batch": 12, "optimizer.accumulate": 2}).variants
    group: Any = SimpleNamespace(config=variants[0].config, variants=[*variants] * 3, vmapped=False, mesh=Mesh(1, 1))
    assert suggestion(group, Need(10, 300, 100), 160) == "optimizer.accumulate=4"
    assert suggestion(group, Need(10, 300, 100), 110) == "optimizer.accumulate=6"
    assert suggestion(group, Need(10, 300, 100), 60) == "data.batch=2"  # the evaluation takes whole batches
    assert suggestion(group, Need(10, 100, 300), 160) == "data.batch=6"
    assert suggestion(group, Need(10, 100, 300), 111) == "data.batch=4"
    assert suggestion(group, Need(10, 600, 0), 109) is None
    assert suggestion(group, Need(10, 100, 100), 10) is None
    group.mesh = Mesh(1, 3)  # whose devices need three rows at least
    assert suggestion(group, Need(10, 300, 100), 160) == "optimizer.accumulate=4"
    assert suggestion(group, Need(10, 300, 100), 110) is None
    group.vmapped = True
    assert suggestion(group, Need(10, 300, 100), 110) == "train.group=turn"
    assert suggestion(group, Need(10, 300, 100), 109) is None
    group.mesh = Mesh(3, 1)
    assert suggestion(group, Need(10, 100, 100), 110) == "train.group=turn mesh.variants=1"


def test_states_that_have_no_room_are_refused_before_anything_is_compiled(config, device_memory, capsys, wording):
    device_memory(10**9)
    err = refused(capsys, config, "model.width=32768", "model.layers=10000")
    wording(err, volatile=r"[\d.e+]+(?= [kMGT]?B)")
    assert not (config.parent / "runs").exists()


def test_held_bytes_by_hand(budget):
    """adamw: parameters, two averages of them, two counts of steps; twice for two variants; and the tokens."""
    two = budget(10**9, variants={"a": {}, "b": {"seed": 1}})
    two.waves()
    width, tokens, context = 16, 24, 64
    blocks = 4 * width**2 + 2 * 4 * width**2 + 2 * width
    parameters = blocks + width + (tokens + context) * width
    state = 3 * 4 * parameters
    assert two.need is not None
    counts = two.need.held - 2 * state - two.resident.size
    assert 0 < counts <= 2 * 4 * 4 and two.need.passing > 0


def test_a_device_that_refuses_is_answered_in_one_line(config, budget, monkeypatch, capsys, wording):
    with wording.raises(UserError, volatile=r"[\d.]+(?= [kMG]?B)") as caught:
        budget(10**9).explain(EXHAUSTED)
    assert str(caught.value).endswith(" optimizer.accumulate=2")

    def refuse(*_, **__):
        raise EXHAUSTED

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    wording(refused(capsys, config, "data.context=8"))


def test_other_errors_are_left_as_they_are(budget):
    budget(10**9).explain(jax.errors.JaxRuntimeError("INTERNAL: a bug"))


def test_what_a_device_has_left():
    assert available_memory(device_of(700)) == 700 and available_memory(device_of(None)) is None
    here = available_memory(CPU)
    assert here is None or 2**20 < here < 2**50


CPU = Platform(SimpleNamespace(memory_stats=lambda: None), "cpu")


def written(root: Path, **files: str) -> None:
    """Files of Linux below `root`, by their paths with __ for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_a_machine_has_left(tmp_path):
    assert available_memory(CPU, tmp_path) is None
    written(tmp_path, proc__meminfo="MemTotal: 9999 kB\nMemAvailable:    2000 kB\nSwapFree: 48 kB\nHugePages: 0\n")
    assert available_memory(CPU, tmp_path) == 2048 * 1024
    written(tmp_path, proc__meminfo="MemTotal: 9999 kB\n")
    assert available_memory(CPU, tmp_path) is None


def group(folder: Path, version: int, limit: str, used: int, cache: int) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    most, now, file = names if version == 2 else old
    written(folder, **{most: f"{limit}\n", now: f"{used}\n", "memory.stat": f"anon 3\n{file} {cache}\n"})


def test_what_control_groups_leave(tmp_path):
    groups = tmp_path / "sys" / "fs" / "cgroup"
    written(tmp_path, proc__self__cgroup="0::/a/b\n")
    group(groups / "a" / "b", 2, "max", 10, 0)
    group(groups / "a", 2, "1000", 700, 100)
    assert available_memory(CPU, tmp_path) == 400
    written(tmp_path, proc__self__cgroup="4:cpu:/x\n3:memory:/c\n")
    group(groups / "memory" / "c", 1, "500", 450, 50)
    group(groups / "memory", 1, "9223372036854771712", 450, 50)
    assert available_memory(CPU, tmp_path) == 100
    written(tmp_path, proc__self__cgroup="4:cpu:/x\n3:memory:/\n")
    assert available_memory(CPU, tmp_path) == 9223372036854771712 - 400
    written(tmp_path, proc__self__cgroup="nonsense\n")
    assert available_memory(CPU, tmp_path) is None


def test_what_the_limits_of_a_process_leave(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    written(tmp_path, proc__self__status="Name:\tx\nVmSize:\t    1000 kB\nVmData:\t 300 kB\n")
    limits = {resource.RLIMIT_AS: 2_000_000, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr("resource.getrlimit", lambda which: (limits[which], resource.RLIM_INFINITY))
    assert available_memory(CPU, tmp_path) == 976_000
    limits[resource.RLIMIT_DATA] = 500_000
    assert available_memory(CPU, tmp_path) == 500_000 - 307_200
    written(tmp_path, proc__self__status="Name:\tx\n")
    assert available_memory(CPU, tmp_path) is None


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
def test_a_real_limit_is_heard_and_a_real_refusal_answered(tmp_path, config, ear, wording):
    """1.6 GB for a step that takes 2.2: one line with a setting to try, and nothing that could be taken for a run."""
    name = [f"runs_dir={tmp_path}/{ear}", "data.kind=copy", "data.path=null", "data.context=1024", "data.batch=128"]
    command = [sys.executable, "-c", LIMITED, ear, str(config), *name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert re.search("; [a-z]+ (data.batch|optimizer.accumulate)=[0-9]+$", line)
    assert " 2." in line and (line.count(" GB") == 3) == (ear == "hears")
    wording(line, volatile=r"[\d.]+(?= [kMG]B)|\w+\.\w+=\d+")
    assert not list(tmp_path.rglob("ckpt"))


def test_bytes_of_arrays_and_of_their_shapes():
    tree = {"a": np.zeros((3, 4), np.float32), "b": [jax.ShapeDtypeStruct((5,), np.uint8), None]}
    assert bytes_of(tree) == 3 * 4 * 4 + 5


def test_the_complaint(wording):
    known = complaint(Need(10**6, 5 * 10**9), 2 * 10**9, "data.batch=4")
    assert re.findall(r"[\d.]+ [MG]B", known) == ["5 GB", "1 MB", "5 GB", "2 GB"] and known.endswith(" data.batch=4")
    wording(known)
    wording(complaint(None, None, None))
    assert "data.batch" not in complaint(Need(10**6), 10, None)  # the states alone
