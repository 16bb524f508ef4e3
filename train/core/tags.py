"""What was measured, as numbers under the names of docs/tags.md. Numpy only: it runs while the device works."""

import math
from collections.abc import Mapping

import numpy as np

from train.core.step import Watched
from train.gradflow.delta import Flow
from train.gradflow.norms import Norm, gains, log10

Scalars = dict[str, float | None]


def layer(index: int) -> str:
    """
    >>> layer(3)
    'layer_003'
    """
    return f"layer_{index:03d}"


def _finite(x: float) -> float | None:
    """A log10 as a scalar: None for an exact zero, whose logarithm is not a number to draw."""
    return None if x == -math.inf else float(x)


def _depths(prefix: str, values: np.ndarray, suffix: str = "") -> Scalars:
    return {f"{prefix}/{layer(i)}{suffix}": _finite(v) for i, v in enumerate(values.tolist())}


def _matrices(prefix: str, logs: Mapping[str, np.ndarray]) -> Scalars:
    out: Scalars = {}
    for name, values in logs.items():
        if values.ndim == 0:
            out[f"{prefix}/{name}"] = _finite(float(values))
        else:
            out |= _depths(prefix, values, "" if name == "layer" else f"/{name}")
    return out


def _logs(norms: Mapping[str, Norm]) -> dict[str, np.ndarray]:
    return {name: log10(norm) for name, norm in norms.items()}


def flow_scalars(flow: Flow, suffix: str = "") -> Scalars:
    """delta{suffix}/norm_log10/layer_NNN and grad{suffix}/norm_log10/..., base-10 logarithms of Frobenius norms."""
    out = _depths(f"delta{suffix}/norm_log10", log10(flow.delta))
    return out | _matrices(f"grad{suffix}/norm_log10", _logs(flow.grad))


def watched_scalars(watched: Watched) -> Scalars:
    """Every tag of one watched step, from host arrays."""
    out = flow_scalars(watched.flow)
    if watched.without is not None:
        out |= flow_scalars(watched.without, "_without")
    out |= _depths("gain", gains(log10(watched.flow.delta)))
    weight, update = _logs(watched.weight), _logs(watched.update)
    with np.errstate(invalid="ignore"):
        out |= _matrices("update/ratio_log10", {name: update[name] - weight[name] for name in weight})
    with np.errstate(over="ignore", under="ignore"):
        out |= _matrices("weight/norm", {name: 10.0**values for name, values in weight.items()})
    if watched.flow.seen is not None:
        out |= _depths("act/rms", np.asarray(watched.flow.seen.rms))
        out |= _depths("act/rank", np.asarray(watched.flow.seen.rank))
    out["grad/global_preclip_log10"] = _finite(float(log10(watched.grad_global)))
    out["grad/clip_factor"] = float(watched.clip_factor)
    return out
