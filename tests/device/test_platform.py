"""The choice of device and precision, which is made before anything is compiled."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from runs import arrays, rows
from train.config.schema import TrainConfig
from train.device import platform
from train.device.platform import Platform, compute_dtype, keep_programs, select
from train.errors import UserError

ROOT = Path(__file__).parents[2]


def device(platform: str, capability: str | None = None):
    own = {} if capability is None else {"compute_capability": capability}
    return SimpleNamespace(platform=platform, device_kind="made up", **own)


@pytest.mark.parametrize(
    ("kind", "capability", "dtype"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", "7.5", "float32"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "10.3", "bfloat16"),
        ("gpu", None, "float32"),
        ("gpu", "gfx942", "float32"),
    ],
)
def test_auto_is_the_fastest_dtype_that_the_device_has(kind, capability, dtype):
    platform = Platform(device(kind, capability), kind)
    assert compute_dtype(TrainConfig(), platform) == dtype
    assert compute_dtype(TrainConfig(dtype="float32"), platform) == "float32"


def test_without_cudnn_attention_is_not_fused(monkeypatch):
    hopper = Platform(device("gpu", "9.0"), "gpu")
    assert platform.fused_attention(TrainConfig(), hopper) is None  # JAX finds no cuDNN here
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    assert platform.fused_attention(TrainConfig(), hopper) == "cudnn"
    assert platform.fused_attention(TrainConfig(fused_attention=False), hopper) is None


@pytest.mark.parametrize(
    ("kind", "count", "cores", "label"),
    [
        ("cpu", 1, 2, "cpu, 2 cores"),
        ("cpu", 4, 1, "4 x cpu, 1 core"),
        ("gpu", 1, 16, "1 x made up (gpu)"),
        ("tpu", 8, 96, "8 x made up (tpu)"),
    ],
)
def test_a_label_says_what_it_runs_on(monkeypatch, kind, count, cores, label):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert Platform(device(kind), kind, [device(kind)] * count).label == label


@pytest.mark.parametrize(
    ("dtype", "platform", "capability"),
    [("bfloat16", "cuda", "7.5"), ("float64", "cuda", "9.0"), ("float64", "tpu", None)],
)
def test_a_dtype_that_the_device_does_not_have(monkeypatch, dtype, platform, capability, wording):
    updates = []
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [device(platform, capability)])
    monkeypatch.setattr(jax.config, "update", lambda *item: updates.append(item))
    with wording.raises(UserError, "train.dtype"):
        select(TrainConfig(dtype=dtype))
    assert "jax_default_device" not in dict(updates)


def test_where_nothing_is_known_of_bfloat16_it_is_taken_at_its_word(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [device("rocm", "gfx942")])
    monkeypatch.setattr(jax.config, "update", lambda *item: None)
    config = TrainConfig(dtype="bfloat16")
    assert compute_dtype(config, select(config)) == "bfloat16"


def test_what_the_environment_asks_for_is_named(monkeypatch, wording):
    """JAX asserts, without a word, that a platform it was told to start is there."""

    def started(backend=None):
        raise AssertionError

    monkeypatch.setattr(jax, "local_devices", started)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with wording.raises(UserError, "train.device"):
        select(TrainConfig())


def test_blocks_that_compute_values_again_stay_in_the_loop(tiny):
    keys = {"model.layers": 3, "train.unroll": "auto"}
    configs = [tiny(keys | {"train.remat": remat}).variants[0].config for remat in ("none", "dots", "full")]
    assert [platform.unroll(config, Platform(None, "cpu")) for config in configs] == [3, 1, 1]


def test_a_device_that_is_not_there(wording):
    with wording.raises(UserError, "train.device", volatile=r"\(.*"):
        select(TrainConfig(device="tpu"))


SETTINGS = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Returns a function that calls keep_programs and returns the folder that JAX then has."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "kept"))

    def kept(kind: str) -> Path | None:
        jax.config.update("jax_compilation_cache_dir", None)
        with warnings.catch_warnings():
            keep_programs(kind)
        path = jax.config.values["jax_compilation_cache_dir"]
        return None if path is None else Path(path)

    yield kept
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_programs_of_an_accelerator_are_kept_for_this_user_alone(folder, tmp_path, kind):
    assert (
        folder(kind) == tmp_path / "kept" / "programs" and (tmp_path / "kept" / "programs").stat().st_mode & 0o77 == 0
    )


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="machines are told apart by /proc/cpuinfo")
def test_programs_of_a_cpu_are_kept_for_this_machine_alone(folder, tmp_path, fresh_environment, monkeypatch):
    here = folder("cpu")
    assert here == folder("cpu") and here.parent == tmp_path / "kept" / "programs"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(999)), raising=False)
    fresh_environment.cache_clear()
    assert folder("cpu").parent == here.parent and folder("cpu") != here
    monkeypatch.undo()
    fresh_environment.cache_clear()
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "kept"))
    assert folder("cpu") == here
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *rest: read(path, *rest).replace("flags", "flags : avx1024", 1))
    assert folder("cpu").parent == here.parent and folder("cpu") != here


def test_no_programs_are_kept_where_that_cannot_be_done_or_is_decided_already(folder, tmp_path, monkeypatch):
    (tmp_path / "kept").write_text("a file")
    assert folder("gpu") is None and folder("cpu") is None
    (tmp_path / "kept").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a file system that is read-only
    assert folder("gpu") is None
    monkeypatch.setenv("DELTAFLOW_CACHE", "~no-such-user/kept")  # which has no home
    assert folder("gpu") is None
    jax.config.update("jax_compilation_cache_dir", "/mine")
    keep_programs("gpu")
    assert jax.config.values["jax_compilation_cache_dir"] == "/mine"


def test_somebody_elses_programs_are_not_run(folder, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert folder("gpu") is None


RESUMED = """
import jax, sys
from train.cli import main
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
code = main(["train", "tiny.yaml", *sys.argv[1:]])
print("hits", len(hits))
raise SystemExit(code)
"""


@pytest.mark.slow
def test_a_run_that_goes_on_compiles_nothing_twice_and_ends_the_same(corpus, tmp_path):
    """Three processes: one that trains in one go without a cache, one that stops, and one that goes on.

    A damaged program is compiled again, without a word.
    """
    (tmp_path / "tiny.yaml").write_text(
        f"name: tiny\nmodel: {{layers: 2, width: 16, heads: 2}}\ndata: {{path: {corpus}, context: 8, batch: 4}}\n"
        "optimizer: {schedule: constant, warmup: 3}\n"
        "train: {steps: 20, eval_every: 10, eval_batches: 2, checkpoint_every: 10, steps_per_call: 5}\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}

    def train(runs: str, **settings: str) -> int:
        cache = {"DELTAFLOW_CACHE": str(tmp_path / "kept"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-c", RESUMED, f"runs_dir={runs}", *settings.pop("keys", "").split()]
        done = subprocess.run(command, cwd=tmp_path, env=environment | cache | settings, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return int(done.stdout.splitlines()[-1].removeprefix("hits "))

    assert train("whole", JAX_ENABLE_COMPILATION_CACHE="false") == 0
    assert train("parts", keys="train.steps=10") == 0
    programs = sorted((tmp_path / "kept").rglob("*-cache"))
    assert len(programs) >= 3
    assert train("parts") >= 2  # the dispatch and the evaluation
    runs = [tmp_path / name / "tiny" / "main" for name in ("whole", "parts")]
    assert arrays(runs[0]) == arrays(runs[1]) and rows(runs[0]) == rows(runs[1])
    for program in programs:
        program.write_bytes(program.read_bytes()[:-100])
    assert train("again") == 0
    assert rows(tmp_path / "again" / "tiny" / "main") == rows(runs[0])
