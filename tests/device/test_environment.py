"""The same numbers in any environment: variables of JAX do not reach a run, and flags of XLA are recorded with it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from runs import rows
from train.cli import main
from train.config.schema import TrainConfig
from train.device import platform
from train.store.checkpoint import Checkpoints, Header
from train.store.provenance import environment_changes

ROOT = Path(__file__).parents[2]
CONFIG = """
name: e
model: {layers: 1, width: 8, heads: 1, dropout: 0.2}
data: {kind: copy, context: 8, batch: 2}
train: {steps: 3, eval_every: 3, eval_batches: 1, checkpoint_every: 3, steps_per_call: 3, unroll: 1}
watch: {every: 0}
"""
OTHERS = {
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "false",
    "JAX_RANDOM_SEED_OFFSET": "7",
    "JAX_HIGH_DYNAMIC_RANGE_GUMBEL": "true",
    "JAX_ENABLE_X64": "true",
    "JAX_DEFAULT_DTYPE_BITS": "32",
    "JAX_EXPLICIT_X64_DTYPES": "allow",
    "JAX_ALLOW_F16_REDUCTIONS": "false",
    "JAX_SOFTMAX_CUSTOM_JVP": "true",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "JAX_DISABLE_JIT": "true",
    "JAX_DEBUG_NANS": "true",
    "JAX_DEBUG_INFS": "true",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
}
# Settings whose names look as if they changed numbers, and which can only raise, log or choose a device.
HARMLESS = {
    "jax_numpy_dtype_promotion",  # strict in all tests
    "jax_enable_custom_prng",  # the type of old-style keys
    "jax_legacy_prng_key",
    "jax_debug_key_reuse",
    "jax_threefry_gpu_kernel_lowering",  # the same bits by another kernel
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
}


# The command, without the report, which takes as long as all the rest.
COMMAND = """
import sys
from train.cli import main
from scripts.faults.programs import drawing
with drawing():
    raise SystemExit(main(["train", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """A function that trains in an environment with these variables, and returns the rows of the log."""

    def train(**variables: str) -> dict[int, dict]:
        folder = tmp_path_factory.mktemp("environment")
        (folder / "e.yaml").write_text(CONFIG)
        environment = {key: value for key, value in os.environ.items() if key not in OTHERS}
        environment |= {"XLA_FLAGS": ""} | variables  # the tests' own flags leave no optimization to be disabled
        command = [sys.executable, "-c", COMMAND, str(folder / "e.yaml"), f"runs_dir={folder}"]
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, timeout=600)
        return rows(folder / "e" / "main")

    return train


@pytest.fixture(scope="module")
def clean(losses):
    return losses()


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "value"), OTHERS.items())
def test_no_variable_of_the_environment_changes_a_loss(losses, clean, variable, value):
    """Each in a process of its own, since one may hide another: without compilation no other setting counts."""
    assert losses(**{variable: value}) == clean


@pytest.mark.slow
def test_flags_of_the_compiler_are_part_of_the_environment_that_a_resumption_compares(
    tmp_path, fresh_environment, monkeypatch, capsys, wording
):
    (tmp_path / "e.yaml").write_text(CONFIG)
    monkeypatch.setenv("XLA_FLAGS", "")

    def warnings(steps: int) -> list[str]:
        platform.environment.cache_clear()
        assert main(["train", str(tmp_path / "e.yaml"), f"runs_dir={tmp_path}", f"train.steps={steps}"]) == 0
        return re.findall("(?m)^warning: (XLA_FLAGS: .*|saved with .*)$", capsys.readouterr().out)

    assert warnings(3) == []
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true --xla_dump_to=x")
    fast, drift = warnings(6)
    assert "--xla_cpu_enable_fast_math=true" in drift
    wording(fast, "XLA_FLAGS")
    wording(drift)
    header = Checkpoints(tmp_path / "e" / "main").header(6)
    assert header.provenance["flags"] == {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}


@pytest.mark.parametrize(
    ("text", "flags", "fast"),
    [
        ("", {}, False),
        (" --xla_force_host_platform_device_count=8 --xla_dump_to=/tmp/x ", {}, False),
        ("--xla_a=1 --xla_dump_to=x  --xla_b", {"XLA_FLAGS": "--xla_a=1 --xla_b"}, False),
        ("--xla_cpu_enable_fast_math", {"XLA_FLAGS": "--xla_cpu_enable_fast_math"}, True),
        ("--xla_cpu_enable_fast_math=True", {"XLA_FLAGS": "--xla_cpu_enable_fast_math=True"}, True),
        ("--xla_cpu_enable_fast_math=false", {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}, False),
        (
            "--xla_cpu_enable_fast_math --xla_cpu_enable_fast_math=0",
            {"XLA_FLAGS": "--xla_cpu_enable_fast_math --xla_cpu_enable_fast_math=0"},
            False,
        ),
    ],
)
def test_flags_that_change_numbers_are_told_from_those_that_do_not(monkeypatch, text, flags, fast):
    monkeypatch.setenv("XLA_FLAGS", text)
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert (platform.compiler_flags(), platform.has_fast_math()) == (flags, fast)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_c=2")
    assert platform.compiler_flags() == flags | {"LIBTPU_INIT_ARGS": "--xla_tpu_c=2"}


def test_flags_in_a_file_are_read(tmp_path, monkeypatch):
    (tmp_path / "flags").write_text("--xla_dump_to=x\n--xla_cpu_enable_fast_math=1\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    assert platform.compiler_flags()["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=1" and platform.has_fast_math()
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "none"))
    assert platform.compiler_flags()["XLA_FLAGS"] == str(tmp_path / "none") and not platform.has_fast_math()


def test_a_section_that_an_older_checkpoint_lacks_is_no_change():
    now = {"versions": {"jax": "1"}, "flags": {"XLA_FLAGS": "--xla_a"}}
    without, unset = (Header(0, {}, None, {"versions": {"jax": "1"}} | flags) for flags in ({}, {"flags": {}}))
    assert environment_changes(without, now) is None
    assert environment_changes(unset, now) == "XLA_FLAGS unset then, --xla_a now"


def test_every_setting_of_jax_that_may_change_numbers_is_fixed():
    """Those of the version that is installed; a later one may bring new ones."""
    fixed = {*platform.PINNED, "jax_enable_x64", "jax_default_matmul_precision"}
    doubtful = "prng|random|threefry|gumbel|precision|x64|dtype|f16|softmax|disable_jit|optimiz"
    settings = {name for name in jax.config.values if re.search(doubtful, name)}
    assert settings - fixed <= HARMLESS and not fixed & HARMLESS
    assert {name.removeprefix("jax_").upper() for name in fixed} == {name.removeprefix("JAX_") for name in OTHERS}


def test_the_device_is_selected_with_the_defaults_of_jax():
    before = dict(jax.config.values)
    jax.config.update("jax_threefry_partitionable", False)
    jax.config.update("jax_random_seed_offset", 7)
    jax.config.update("jax_default_matmul_precision", "bfloat16")
    jax.config.update("jax_default_device", None)
    platform.select(TrainConfig(device="cpu"))
    jax.config.update("jax_default_device", before["jax_default_device"])
    assert jax.config.values == before
