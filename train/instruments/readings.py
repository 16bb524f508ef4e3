"""Readings: what instruments return, as tags for the log and as JSON for `deltaflow probe`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Array, Float

from ..core.probe import finite
from ..core.tags import Scalars, by_layer, rows
from ..gradflow.gradients import Histogram, edges
from ..gradflow.norms import Norm, log10, value


class Signed(NamedTuple):
    """A value that may be negative and beyond a float's range, as opposed to a norm, which is logged as log10."""

    value: Norm


class LossCurve(NamedTuple):
    """Losses along a line, at the multiples `at`."""

    at: Float[Array, "n"]
    loss: Float[Array, "n"]


class Matrix(NamedTuple):
    """Matrices by block, which become one picture."""

    values: Float[Array, "L rows columns"]


# [] one value, [L] one a layer, [L, H] one a layer and head; by part: "layer", "head", a matrix. nan: not defined.
Reading: TypeAlias = Norm | Signed | Array | Histogram | LossCurve | Matrix | Mapping[str, Any]


def scalars_of(readings: Mapping[str, Reading]) -> Scalars:
    """Every tag of the readings, from host arrays. A norm is logged as log10; what is not defined, not at all; of a
    curve the place of its minimum."""
    out: Scalars = {}
    for name, reading in readings.items():
        if isinstance(reading, Histogram | Matrix):
            continue
        if isinstance(reading, LossCurve):
            losses = np.where(np.isfinite(reading.loss), reading.loss, np.inf)
            if losses.min() < losses.max():  # else no place is the lowest
                out[f"{name}_lowest_at"] = float(reading.at[np.argmin(losses)])
            continue
        for part, values in reading.items() if isinstance(reading, Mapping) else [("layer", reading)]:
            tag, numbers = named_values(name, values)
            if numbers.ndim == 0:
                columns = [((tag if part == "layer" else f"{tag}/{part}",), numbers.reshape(1, 1))]
            elif numbers.ndim == 1:
                columns = by_layer(tag, {part: numbers[None]})
            else:
                columns = by_layer(tag, {f"head_{head:02d}": column[None] for head, column in enumerate(numbers.T)})
            (row,) = rows(columns)
            out |= {key: x for key, x in row.items() if x is None or not math.isnan(x)}
    return out


def named_values(name: str, reading: Any) -> tuple[str, np.ndarray]:
    """Name and values in float64: a norm becomes its log10, with the suffix. nan: not defined, or a signed value that
    no float32 holds."""
    if isinstance(reading, Norm):
        return f"{name}_log10", log10(reading)
    if isinstance(reading, Signed):
        size = log10(reading.value)  # TensorBoard holds float32: what is 0 there, or infinite, is not
        return name, np.where(np.isneginf(size) | ((size > -37) & (size < 38)), value(reading.value), np.nan)
    return name, np.asarray(reading, np.float64)


def json_of(readings: Mapping[str, Reading]) -> dict[str, Any]:
    """The readings for JSON: lists over layers, by part where there are several; null = not defined."""
    out: dict[str, Any] = {}
    for name, reading in readings.items():
        if isinstance(reading, LossCurve):
            out[name] = {"at": finite(reading.at), "loss": finite(reading.loss)}
        elif isinstance(reading, Matrix):
            out[name] = {"matrix": finite(reading.values)}
        elif isinstance(reading, Histogram):
            bounds = [edges(float(top)).tolist() for top in reading.top]
            counts = {"counts": finite(reading.counts), "zeros": finite(reading.zeros)}
            out[f"{name}_log10"] = {"edges": bounds, **counts}
        elif isinstance(reading, Mapping):
            parts = {part: named_values(name, values) for part, values in reading.items()}
            out |= {whole: {part: finite(values) for part, (_, values) in parts.items()} for whole, _ in parts.values()}
        else:
            whole, values = named_values(name, reading)
            out[whole] = finite(values)
    return out
