"""Device selection, compute dtype, and other choices that depend on the platform."""

import hashlib
import os
import platform as python
import re
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data import first_line
from data.files import cache_folder

from ..config.schema import RunConfig, TrainConfig
from ..errors import UserError
from .chips import Chip, chip_of, devices_to_compile_for

_KINDS = {"cuda": "gpu", "rocm": "gpu"}
# JAX's settings that change a run's numbers, which an environment may have set otherwise (JAX_DEFAULT_PRNG_IMPL=rbg).
# Each version of JAX has some of them.
PINNED = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_default_dtype_bits": "64",
    "jax_explicit_x64_dtypes": "warn",
    "jax_allow_f16_reductions": True,
    "jax_softmax_custom_jvp": False,
    "jax_disable_most_optimizations": False,
    "jax_disable_jit": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
}
# Flags of XLA that change no number: virtual devices, whose count is recorded as such, and files for debugging.
_NEUTRAL = r"--xla_(force_host_platform_device_count|dump_)\S*"
_MOST_KEPT = 2**30  # bytes of compiled programs; those that were not used for longest go first
_UNROLLED_CPU = 12  # blocks; in deeper models unrolling takes longer to compile than it saves


@dataclass(frozen=True)
class Platform:
    """The first local device of the requested kind, and all such devices, of every process."""

    device: Any  # jax.Device
    kind: str  # cpu, gpu or tpu
    devices: Sequence[Any] = ()
    chip: Chip | None = None  # its public figures, if it is one of those known
    compiler: str | None = None  # devices that are not here: what compiles for them, in words

    @property
    def label(self) -> str:
        """The device in words: `cpu, 2 cores`, `1 x NVIDIA H200 (gpu)`."""
        if self.compiler is not None and self.chip is not None:
            return f"{len(self.devices)} x {self.chip.device_kind} ({self.kind}, not here; compiled by {self.compiler})"
        if self.kind == "cpu":
            number = cores()
            devices = f"{len(self.devices)} x cpu" if len(self.devices) > 1 else "cpu"
            return f"{devices}, {number} core{'s' * (number != 1)}"
        return f"{len(self.devices)} x {self.device.device_kind} ({self.kind})"


def select(config: TrainConfig, topology: str | None = None) -> Platform:
    """Starts JAX on the device that `train.device` names. Raises UserError if there is none or it lacks the dtype.

    `topology`: chips to compile for in place of the devices here (train/device/chips.py).
    """
    for name, value in PINNED.items():
        if name in jax.config.values:
            jax.config.update(name, value)
    if virtual := re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")):
        # XLA:CPU's pool has a thread a core or device, and each collective in flight holds one: too few wait for ever.
        os.environ.setdefault("NPROC", str(8 * int(virtual[1])))
    jax.config.update("jax_enable_x64", config.dtype == "float64")  # process-wide, and only before the first array
    precision = None if config.matmul_precision == "default" else config.matmul_precision
    jax.config.update("jax_default_matmul_precision", precision)
    if topology is None:
        platform = _here(config)
    else:
        chip, devices, compiler = devices_to_compile_for(topology)
        platform = Platform(devices[0], chip.kind, devices, chip, compiler)
    if config.dtype == "float64" and platform.kind != "cpu":
        raise UserError(
            f"train.dtype: float64 runs on cpu only, and the device is {platform.label}; set train.device=cpu"
        )
    if config.dtype == "bfloat16" and platform.kind == "gpu" and (capability := _capability(platform) or 8.0) < 8.0:
        raise UserError(
            f"train.dtype: bfloat16 needs a GPU of compute capability 8 (Ampere), and the device is {platform.label} "
            f"of {capability:.1f}; use float32 or auto"
        )
    if topology is None:
        jax.config.update("jax_default_device", platform.device)
        keep_programs(platform.kind)
    return platform


def _here(config: TrainConfig) -> Platform:
    """The devices of this machine that `train.device` names."""
    try:
        backend = None if config.device == "auto" else config.device
        local = jax.local_devices(backend=backend)
    except (RuntimeError, AssertionError) as error:  # JAX asserts that a backend named by a setting exists
        why = textwrap.shorten(first_line(error), 100, placeholder=" ...")
        details = f" ({why})" if why else ""
        if setting := os.environ.get("JAX_PLATFORMS"):
            details += f"; JAX_PLATFORMS={setting} is set; unset it to let JAX choose"
        kind = "device" if config.device == "auto" else config.device
        try:
            visible = ", ".join(sorted({device_kind(device) for device in jax.local_devices()}))
        except (RuntimeError, AssertionError):
            visible = "no device at all"
        raise UserError(f"train.device: no {kind} here; JAX sees {visible}{details}") from None
    devices = local if jax.process_count() == 1 else jax.devices(backend)
    return Platform(local[0], device_kind(local[0]), devices, chip_of(local[0]))


def keep_programs(kind: str) -> None:
    """Keeps compiled programs in the user's cache folder, so that a run that goes on need not compile them again.

    Does nothing if JAX_COMPILATION_CACHE_DIR is set, or if the folder cannot be written or belongs to somebody else,
    whose programs would be run. On a CPU, whose programs are machine code, only where the machine can be told from
    others (Linux), with a folder for each.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        folder = cache_folder() / "programs"
        if kind == "cpu":
            # Also the number of cores, on which the last bits depend: XLA divides a program's work at compile time.
            cpu = re.findall(r"(?m)^(?:model name|flags|Features|CPU part)\s*:.*", Path("/proc/cpuinfo").read_text())
            about = [*sorted(set(cpu)), python.machine(), *map(str, environment()["device"].values())]
            folder /= f"cpu-{hashlib.sha256(' '.join(about).encode()).hexdigest()[:16]}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK) or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
            return
    except (OSError, RuntimeError, ValueError):  # RuntimeError: no home
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST_KEPT)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # then it is compiled


def exact() -> Platform:
    """Selects float64 on the CPU without starting other devices, which another process may hold."""
    jax.config.update("jax_platforms", "cpu")
    return select(TrainConfig(device="cpu", dtype="float64"))


def device_kind(device: Any) -> str:
    """Returns cpu, gpu or tpu."""
    name = str(device.platform)
    return _KINDS.get(name, name)


def compute_dtype(config: TrainConfig, platform: Platform) -> str:
    """Returns `train.dtype` with auto resolved: bfloat16 on TPUs and on GPUs from Ampere (compute capability 8) on."""
    if config.dtype != "auto":
        return config.dtype
    if platform.compiler is not None:  # all of those chips have it
        return "bfloat16"
    return "bfloat16" if platform.kind == "tpu" or (_capability(platform) or 0.0) >= 8.0 else "float32"


def _capability(platform: Platform) -> float | None:
    """Returns the compute capability of an NVIDIA GPU, None for other devices. Below 8 bfloat16 is emulated, slowly."""
    try:
        return float(platform.device.compute_capability)
    except (AttributeError, ValueError):
        return None


def unroll(config: RunConfig, platform: Platform) -> int:
    """Returns the blocks a scan iteration: all of a shallow model on a CPU, where a loop costs a third of the step.

    `train.remat` needs the loop: of unrolled blocks XLA:CPU computes values again and stores as many as without it.
    """
    train, layers = config.train, config.model.layers
    if train.unroll != "auto":
        return min(train.unroll, layers)
    return layers if platform.kind == "cpu" and layers <= _UNROLLED_CPU and train.remat == "none" else 1


def fused_attention(config: TrainConfig, platform: Platform) -> str | None:
    """Returns the implementation of fused attention: cudnn in bfloat16 on an NVIDIA GPU that has it, else None."""
    capable = compute_dtype(config, platform) == "bfloat16" and (_capability(platform) or 0.0) >= 8.0
    if not (config.fused_attention and capable):
        return None
    with suppress(ImportError):  # JAX's own check has no public name
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        try:
            cudnn.check_cudnn_version()
        except RuntimeError:  # without it JAX uses no GPU, but for JAX_SKIP_CUDA_CONSTRAINTS_CHECK
            return None
    return "cudnn"


def grouped_by(config: RunConfig, platform: Platform) -> str:
    """Returns `train.group` with auto resolved: on a CPU vmap is no faster than separate calls (docs/benchmarks.md).

    Variants on several devices are vmapped.
    """
    if config.mesh.variants > 1:
        return "vmap"
    if config.train.group != "auto":
        return config.train.group
    return "turn" if platform.kind == "cpu" else "vmap"


def versions() -> dict[str, str]:
    """Returns the installed versions of the libraries that decide on a run's numbers."""
    return {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}


def _flags(variable: str) -> list[str]:
    """The flags in an environment variable, or in the file that it names."""
    text = os.environ.get(variable, "").strip()
    if text and not text.startswith("-"):
        with suppress(OSError, ValueError):
            text = Path(text).read_text()
    return text.split()


def compiler_flags() -> dict[str, str]:
    """Returns the variables that give flags to XLA and to the TPU's compiler, without flags that change no number."""
    variables = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    texts = {name: " ".join(flag for flag in _flags(name) if not re.match(_NEUTRAL, flag)) for name in variables}
    return {name: text for name, text in texts.items() if text}


def has_fast_math() -> bool:
    """Returns true if XLA_FLAGS ask for fast math on a CPU, where x - x is then 0 for nan and infinity too."""
    flags = (flag.partition("=") for flag in _flags("XLA_FLAGS"))
    values = {name: value for name, _, value in flags}  # of two equal flags the last one counts
    return values.get("--xla_cpu_enable_fast_math", "false").lower() in ("", "true", "1")


@cache
def environment() -> dict[str, dict[str, Any]]:
    """Returns what a run's last bits depend on: `versions`, compiler `flags`, default `device`, its count and cores."""
    first = getattr(jax.config, "jax_default_device", None) or jax.devices()[0]
    device = {"kind": device_kind(first), "name": first.device_kind, "count": len(jax.devices(first.platform))}
    if device["kind"] == "cpu":
        device["cores"] = cores()
    return {"versions": versions() | {"python": python.python_version()}, "flags": compiler_flags(), "device": device}


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_bytes(platform: Platform) -> int | None:
    """Returns the peak memory in bytes: as reported by the device, or the process's peak resident set on a CPU."""
    stats = platform.device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    try:
        import resource  # absent on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def matmul_peak(dtype: str, size: int = 2048) -> float:
    """Returns the FLOP/s of a [size, size] product on the default device, the best within half a second."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    best, end = float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
