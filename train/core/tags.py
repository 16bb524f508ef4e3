"""What was measured, as numbers under the names of docs/tags.md. Numpy only: it runs while the device works."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from train.core.instruments import Curve, Reading, Signed
from train.core.step import Watched
from train.gradflow.gradients import Histogram
from train.gradflow.norms import Norm, gains, log10, value

Scalars = dict[str, float | None]


def layer(index: int) -> str:
    """
    >>> layer(3)
    'layer_003'
    """
    return f"layer_{index:03d}"


@cache
def _names(prefix: str, count: int, suffix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}/{layer(index)}{suffix}" for index in range(count))


def _finite(x: float) -> float | None:
    """A log10 as a scalar: None for an exact zero, whose logarithm is not a number to draw."""
    return None if x == -math.inf else x


def _depths(prefix: str, values: np.ndarray, suffix: str = "") -> Scalars:
    return dict(zip(_names(prefix, len(values), suffix), map(_finite, values.tolist()), strict=True))


def _matrices(prefix: str, logs: Mapping[str, np.ndarray]) -> Scalars:
    out: Scalars = {}
    for name, values in logs.items():
        if values.ndim == 0:
            out[f"{prefix}/{name}"] = _finite(float(values))
        else:
            out |= _depths(prefix, values, "" if name == "layer" else f"/{name}")
    return out


def watched_scalars(watched: Watched) -> Scalars:
    """Every tag of one watched step, from host arrays. What spans decades is a base-10 logarithm."""
    flows = {"": watched.flow} | ({} if watched.without is None else {"_without": watched.without})
    weight, update = watched.weight.log10(), watched.update.log10()
    out: Scalars = {}
    for suffix, flow in flows.items():
        out |= _depths(f"delta{suffix}/norm_log10", log10(flow.delta))
        out |= _matrices(f"grad{suffix}/norm_log10", flow.grad.log10())
    out |= _depths("gain", gains(log10(watched.flow.delta)))
    # A weight of exactly zero, such as a bias at the start, has no ratio.
    moved = {name: np.where(np.isneginf(weight[name]), -np.inf, update[name]) for name in weight}
    held = {name: np.where(np.isneginf(weight[name]), 0.0, weight[name]) for name in weight}
    out |= _matrices("update/ratio_log10", {name: moved[name] - held[name] for name in weight})
    with np.errstate(over="ignore", under="ignore"):
        out |= _matrices("weight/norm", {name: 10.0**values for name, values in weight.items()})
    if watched.flow.seen is not None:
        rms = np.asarray(watched.flow.seen.rms, np.float64)
        out |= _depths("act/rms", rms)
        with np.errstate(divide="ignore", invalid="ignore"):
            out |= _depths("delta/rms_weighted_log10", log10(watched.flow.delta) + np.log10(rms))
        out |= _depths("act/rank", np.asarray(watched.flow.seen.rank))
    out["grad/global_preclip_log10"] = _finite(float(log10(watched.grad_global)))
    out["grad/clip_factor"] = float(watched.clip_factor)
    return out


def reading_scalars(readings: Mapping[str, Reading]) -> Scalars:
    """Every tag of what instruments read, from host arrays. A norm is logged as log10; what is not defined, not at all.

    Of a curve, where it is lowest.
    """
    out: Scalars = {}
    for name, reading in readings.items():
        if isinstance(reading, Histogram):
            continue
        if isinstance(reading, Curve):
            known = np.where(np.isfinite(reading.loss), reading.loss, np.inf)
            if known.min() < known.max():  # else no place is the lowest
                out[f"{name}_lowest_at"] = float(reading.at[np.argmin(known)])
        elif isinstance(reading, Mapping):
            for part, values in reading.items():
                out |= _reading(name, values, part)
        else:
            out |= _reading(name, reading, "layer")
    return out


def _reading(name: str, reading: Any, part: str) -> Scalars:
    name, values = plain(name, reading)
    if values.ndim == 2:
        heads = range(values.shape[1])
        columns = {f"head_{head:02d}": values[:, head] for head in heads}
    else:
        columns = {part: values}
    out = _matrices(name, columns) if values.ndim else {name if part == "layer" else f"{name}/{part}": float(values)}
    return {tag: x if x is None else _finite(x) for tag, x in out.items() if x is None or not math.isnan(x)}


def plain(name: str, reading: Any) -> tuple[str, np.ndarray]:
    """Name and values in float64: a norm becomes its log10, and says so in its name. nan: not defined, or a signed
    value that no float32 holds."""
    if isinstance(reading, Norm):
        return f"{name}_log10", log10(reading)
    if isinstance(reading, Signed):
        size = log10(reading.value)  # TensorBoard holds float32: what is 0 there, or infinite, is not
        return name, np.where(np.isneginf(size) | ((size > -37) & (size < 38)), value(reading.value), np.nan)
    return name, np.asarray(reading, np.float64)
