"""Step time over depth, width, context, batch, variants and devices, each alone, with fitted exponents.

    python scripts/bench --scale            # a few minutes
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python scripts/bench --scale     # with devices

A step's time is the median of `--rounds` calls of `K` steps. The exponent is the slope of log time over log size
between the two largest sizes, where constant costs weigh least; next to it that of the model's FLOPs.
"""

import math
import time
from collections.abc import Mapping
from statistics import median

import jax
import numpy as np

from data.source import open_source
from train.config.load import from_mapping
from train.device import platform as platforms
from train.device.programs import Programs, model_flops
from train.run.experiment import build_group

K = 4  # steps of a call
BASE = {"layers": 4, "width": 64, "context": 64, "batch": 16, "variants": 1, "devices": 1}
SIZES = {
    "layers": (2, 4, 8),
    "width": (32, 64, 128),
    "context": (32, 64, 128),
    "batch": (8, 16, 32),
    "variants": (1, 2, 4, 8),
    "devices": (1, 2, 4, 8),
}


def step_seconds(sizes: dict[str, int], calls: int) -> tuple[float, float]:
    """Returns the seconds of a training step of all variants, the median of `calls` calls, and its FLOPs."""
    keys = {"model.layers": sizes["layers"], "model.width": sizes["width"], "model.heads": 2, "data.kind": "copy"}
    keys |= {"data.context": sizes["context"], "data.batch": sizes["batch"], "mesh.data": sizes["devices"]}
    keys |= {"sweep": {"optimizer.lr": [1e-4 * (n + 1) for n in range(sizes["variants"])]}, "train.group": "vmap"}
    # A loop over blocks at every depth: unrolled shallow models are another program.
    experiment = from_mapping({"name": "scale", "train.unroll": 1, "train.dtype": "float32", "watch.every": 0} | keys)
    config = experiment.variants[0].config
    source, count = open_source(config.data), len(experiment.variants)
    group = build_group(experiment.variants, source.spec, platforms.select(config.train))
    programs = Programs(group, None)
    states, seconds = programs.init(), []
    for call in range(calls + 1):  # the first one allocates
        batches = [source.train_batches(config.data.batch, 0, call * K, K)] * count
        began = time.perf_counter()
        states, measured = programs.dispatch(states, batches, False)
        jax.block_until_ready(measured)
        seconds.append((time.perf_counter() - began) / K)
    programs.abandon()
    return median(seconds[1:]), count * model_flops(group.network, config.data.batch)


def exponent(sizes: list[int], values: list[float]) -> float:
    """Returns the slope of log values over log sizes between the last two.

    >>> exponent([1, 2, 4], [5.0, 3.0, 12.0])
    2.0
    """
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def scaling(
    calls: int, base: Mapping[str, int] = BASE, axes: Mapping[str, tuple[int, ...]] = SIZES
) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows: a row an axis of steps of `base` but for that size.

    Left out are devices that are not here, and 8 variants on a CPU, which has no cores left for them.
    """
    most = {"devices": len(jax.devices()), "variants": 4 if jax.default_backend() == "cpu" else 8}
    rows = []
    for axis, all_sizes in axes.items():
        sizes = [size for size in all_sizes if size <= most.get(axis, size)]
        if len(sizes) < 2:
            continue
        times, flops = zip(*(step_seconds({**base, axis: size}, calls) for size in sizes), strict=True)
        each = ", ".join(f"{size}: {1e3 * seconds:.2f}" for size, seconds in zip(sizes, times, strict=True))
        row = [axis, each, f"{exponent(sizes, list(times)):.2f}", f"{exponent(sizes, list(np.asarray(flops))):.2f}"]
        rows.append(row)
    return ["axis", "size: ms a step", "exponent, last two", "of the FLOPs"], rows
