"""Measurements of a step as numbers by tag (docs/tags.md). Numpy only: it runs while the device works."""

import math
from collections.abc import Mapping
from functools import cache
from typing import TypeAlias

import numpy as np

from ..gradflow.norms import gains, log10
from ..gradflow.verdict import qk_rounded, qk_share
from ..text import layer
from .step import StepStats

Scalars = dict[str, float | None]


@cache
def _names(prefix: str, count: int, suffix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}/{layer(index)}{suffix}" for index in range(count))


# Tags, and their values [steps, tags] at several steps: many at once, since on a CPU the host's work competes with the
# next step for cores.
Columns: TypeAlias = list[tuple[tuple[str, ...], np.ndarray]]


def rows(columns: Columns) -> list[Scalars]:
    """Returns a row for each step. None stands for minus infinity, the log10 of an exact zero."""
    names = tuple(name for group, _ in columns for name in group)
    table = np.concatenate([np.asarray(values, np.float64) for _, values in columns], axis=1)
    return [dict(zip(names, [None if x == -math.inf else x for x in row], strict=True)) for row in table.tolist()]


def _depths(prefix: str, values: np.ndarray, suffix: str = "") -> Columns:
    """values: [steps, depths]."""
    return [(_names(prefix, values.shape[1], suffix), values)]


def by_layer(prefix: str, logs: Mapping[str, np.ndarray]) -> Columns:
    """Returns columns of values by name: [steps, L] with a value a layer, or [steps]."""
    out: Columns = []
    for name, values in logs.items():
        if values.ndim == 1:
            out.append(((f"{prefix}/{name}",), values[:, None]))
        else:
            out += _depths(prefix, values, "" if name == "layer" else f"/{name}")
    return out


def headline(prefix: str, delta: np.ndarray, grad: Mapping[str, np.ndarray]) -> Columns:
    """Returns the columns of the tags that a first look needs.

    delta: log10 |delta_l| [steps, L+1]; grad: log10 norms [steps, L] by matrix. A ratio of two exact zeros is None too.
    """
    with np.errstate(invalid="ignore"):
        relative = np.where(np.isneginf(delta), -np.inf, delta - delta[:, -1:])
        shares = np.sort(qk_share(grad).reshape(len(delta), -1), axis=1)  # nan, of a block without these, comes last
        values = {"delta_ratio": relative[:, 0], "delta_min": np.min(relative, axis=1)}
        if shares.size:
            count = np.sum(~np.isnan(shares), axis=1, keepdims=True)
            middle = np.take_along_axis(shares, np.hstack([np.maximum(count - 1, 0) // 2, count // 2]), axis=1)
            undefined = np.where(np.isnan(grad["attn_v"]).any(axis=1), np.nan, -np.inf)
            values["qk_share"] = np.where(count[:, 0] == 0, undefined, np.mean(middle, axis=1))
    return [(tuple(f"{prefix}/{name}_log10" for name in values), np.stack([*values.values()], axis=1))]


def watched_scalars(watched: StepStats, dtype: str) -> list[Scalars]:
    """Returns all tags of the watched steps of a dispatch, one entry a step, from host arrays [steps, ...].

    Quantities that span decades are base-10 logarithms. dtype: compute dtype of the steps.
    """
    flows = {"": watched.flow} | ({} if watched.without is None else {"_without": watched.without})
    weight, update = watched.weight.log10(), watched.update.log10()
    out: Columns = []
    for suffix, flow in flows.items():
        delta, grad = log10(flow.delta), flow.grad.log10()
        out += headline(f"flow{suffix}", delta, grad)
        if not suffix:
            last = delta.shape[1] - 1
            names = ("flow/delta_first_log10", "flow/delta_middle_log10", "flow/delta_last_log10")
            out.append((names, delta[:, [0, last // 2, last]]))
        out += _depths(f"delta{suffix}/norm_log10", delta)
        out += by_layer(f"grad{suffix}/norm_log10", grad)
    out += _depths("gain", gains(log10(watched.flow.delta)))
    # A weight of exactly zero, such as a bias at the start, has no ratio.
    moved = {name: np.where(np.isneginf(weight[name]), -np.inf, update[name]) for name in weight}
    held = {name: np.where(np.isneginf(weight[name]), 0.0, weight[name]) for name in weight}
    out += by_layer("update/ratio_log10", {name: moved[name] - held[name] for name in weight})
    with np.errstate(over="ignore", under="ignore"):
        out += by_layer("weight/norm", {name: 10.0**values for name, values in weight.items()})
    if watched.flow.stream is not None:
        rms = np.asarray(watched.flow.stream.rms, np.float64)
        out += _depths("act/rms", rms)
        with np.errstate(divide="ignore", invalid="ignore"):
            out += _depths("delta/rms_weighted_log10", log10(watched.flow.delta) + np.log10(rms))
        rank = np.asarray(watched.flow.stream.rank)
        out += _depths("act/rank", rank)
        out.append((("grad/qk_rounded",), np.sum(qk_rounded(rank, dtype), axis=-1)[:, None]))
    out.append((("grad/global_preclip_log10",), log10(watched.grad_global)[:, None]))
    out.append((("grad/clip_factor",), np.asarray(watched.clip_factor)[:, None]))
    return rows(out)
