"""`deltaflow devices`."""

import argparse

from ..text import size
from .types import integer


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=integer(1, 32768), default=2048, help="side of the square matmul to time")


def run(parsed: argparse.Namespace) -> int:
    """Prints devices, versions, memory and the measured matmul peak."""
    from ..config.schema import TrainConfig
    from ..device import platform as platforms
    from ..log.console import Console

    platform = platforms.select(TrainConfig())
    stats = platform.device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    rows = [("device", platform.label), ("compute dtype (auto)", platforms.compute_dtype(TrainConfig(), platform))]
    rows += list(platforms.versions().items())
    rows.append(("memory", "not reported by this device" if limit is None else size(limit)))
    for dtype in ("float32", "bfloat16"):
        peak = platforms.matmul_peak(dtype, parsed.size)
        rows.append((f"matmul {dtype}", f"{peak / 1e9:,.0f} GFLOP/s ({parsed.size} x {parsed.size}, measured)"))
    Console().block("devices", rows)
    return 0
