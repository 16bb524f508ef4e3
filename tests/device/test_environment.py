"""The same numbers in any environment: variables that set JAX's own options do not reach a run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from runs import rows
from train.config.schema import TrainConfig
from train.device import platform

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
    "jax_allow_f16_reductions",
    "jax_numpy_dtype_promotion",  # strict in all tests
    "jax_enable_custom_prng",  # the type of old-style keys
    "jax_legacy_prng_key",
    "jax_debug_key_reuse",
    "jax_threefry_gpu_kernel_lowering",  # the same bits by another kernel
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
}


def losses(folder: Path, **variables: str) -> dict[int, dict]:
    folder.mkdir()
    (folder / "e.yaml").write_text(CONFIG)
    environment = {key: value for key, value in os.environ.items() if key not in OTHERS} | variables
    command = [sys.executable, "-m", "train", "train", str(folder / "e.yaml"), f"runs_dir={folder}"]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, timeout=600)
    return rows(folder / "e" / "main")


@pytest.mark.slow
def test_no_variable_of_the_environment_changes_a_loss(tmp_path):
    assert losses(tmp_path / "other", **OTHERS) == losses(tmp_path / "clean")


def test_every_setting_of_jax_that_may_change_numbers_is_fixed():
    """Those of the version that is installed; a later one may bring new ones."""
    fixed = {*platform.PINNED, "jax_enable_x64", "jax_default_matmul_precision"}
    doubtful = "prng|random|threefry|gumbel|precision|x64|dtype|f16|softmax|disable_jit|optimiz"
    settings = {name for name in jax.config.values if re.search(doubtful, name)}
    assert settings - fixed <= HARMLESS
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
