"""What the frameworks and the operating system say about this machine."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def versions(*packages: str) -> str:
    """'jax 0.10.2, optax 0.2.8'; a package that is missing is left out."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def cpu() -> str:
    """Name and cores that this process may use."""
    name = platform.processor() or platform.machine()
    if CPUINFO.exists():
        names = [line.split(":", 1)[1].strip() for line in CPUINFO.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {cores()} cores"


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; without, it is far slower than float32."""
    if not CPUINFO.exists():
        return False
    flags = next((line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def jax_device() -> str:
    import jax

    device = jax.devices()[0]
    return cpu() if device.platform == "cpu" else device.device_kind


def jax_fast_bfloat16() -> bool:
    """True on a TPU and on GPUs since Ampere, where training in bfloat16 pays."""
    from train.config.schema import TrainConfig
    from train.device.platform import compute_dtype, select

    return compute_dtype(TrainConfig(), select(TrainConfig())) == "bfloat16"


def torch_device() -> str:
    import torch  # pyright: ignore[reportMissingImports]

    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu()


def torch_fast_bfloat16() -> bool:
    """The same rule as for JAX. (`is_bf16_supported` is also true where it is emulated.)"""
    import torch  # pyright: ignore[reportMissingImports]

    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8


def compute_dtype(asked: str, fast_bfloat16: bool) -> str:
    """`auto` becomes bfloat16 where that is fast, float32 elsewhere."""
    if asked != "auto":
        return asked
    return "bfloat16" if fast_bfloat16 else "float32"
