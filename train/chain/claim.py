"""Claims that can be measured, their registry, and the comparison that decides them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

Relation = Literal["=", "<=", ">="]

NEGLIGIBLE = 1e-4  # a prediction this small relative to its pair's size counts as zero


class Tolerance(NamedTuple):
    """The largest relative error that passes, and the reason for its size."""

    value: float
    why: str


ROUNDING = Tolerance(1e-12, "rounding: 1.1e-16 an operation, some thousands of them")
COUNTEREXAMPLE = Tolerance(1e-2, "rounding is never 1 %")  # a belief is refuted by a larger difference


class Pair(NamedTuple):
    """A prediction and a measurement of one shape.

    Errors of a predicted zero are relative to `size`, such as the norm of the terms that cancel. Without it a pair of
    zeros is an error, since nothing was measured.
    """

    predicted: Any  # array-like
    measured: Any
    label: str = ""
    size: float | None = None


class Evidence(NamedTuple):
    pairs: Sequence[Pair]
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement, and the function that measures it.

    A `belief` is a popular statement that is false: its prediction is the believers', and the claim is right when the
    measurement contradicts it by more than the tolerance.
    """

    id: str  # group/name
    statement: str  # in plain words, with the formula
    source: str
    how: str  # "origin of the prediction; origin of the measurement"
    measure: Callable[..., Pair | Evidence]
    tolerance: Tolerance = ROUNDING
    relation: Relation = "="  # of the measurement to the prediction
    belief: bool = False
    each: bool = False  # errors relative to each entry instead of the largest of its array
    axes: tuple[str, str] | None = None  # labels of x and y where the arrays are drawn
    of_model: bool = False  # `measure` takes the Subject made of the config

    @property
    def group(self) -> str:
        return self.id.partition("/")[0]


CLAIMS: list[Claim] = []  # in the order of definition


def claim(source: str, how: str, tolerance: Tolerance = ROUNDING, **options: Any) -> Callable:
    """Registers the decorated function as a claim. `options`: fields of Claim.

    The file and the function's name are the claim's id, its docstring is the statement.
    """

    def register(measure: Any) -> Any:
        id, statement = f"{measure.__module__.rpartition('.')[2]}/{measure.__name__}", measure.__doc__ or ""
        CLAIMS.append(Claim(id, " ".join(statement.split()), source, how, measure, tolerance, **options))
        return measure

    return register


belief = partial(claim, tolerance=COUNTEREXAMPLE, belief=True)


class Unmeasured(ValueError):
    """A pair that would pass whatever was claimed; the message says why, on one line."""


def compare(pair: Pair, relation: Relation = "=", each: bool = False) -> tuple[float, int]:
    """Returns the largest relative error, and the place of its entry in the flat arrays.

    The error is |m - p|, or the violation of an inequality, over max(|m|, |p|): of each entry with `each`, else of the
    whole array, or over the pair's `size`. Raises Unmeasured for a pair that says nothing.

    >>> compare(Pair([1.0, 4.0], [1.0, 5.0])), compare(Pair(3.0, 2.0), "<=")
    ((0.2, 1), (0.0, 0))
    """
    p, m = (np.asarray(value, np.float64) for value in (pair.predicted, pair.measured))
    largest, scale, why = np.abs(p).max(initial=0.0), pair.size, ""
    if p.shape != m.shape or p.size == 0:
        why = f"expected a prediction and a measurement of one shape, got {p.shape} and {m.shape}"
    elif not (np.isfinite(p).all() and np.isfinite(m).all()):
        why = f"the {'measurement' if np.isfinite(p).all() else 'prediction'} is not finite"
    elif scale is None and not (p.any() or m.any()):
        why = "prediction and measurement are zero everywhere, so nothing was measured"
    elif scale is not None and not (0 < scale < np.inf and largest <= NEGLIGIBLE * scale):
        why = f"expected a prediction that is negligible compared with its size, got {largest:g} and {scale:g}"
    if why:
        raise Unmeasured(f"{pair.label}: {why}" if pair.label else why)
    if scale is None:
        scale = np.maximum(np.abs(p), np.abs(m))
        scale = np.where(scale > 0, scale, 1.0) if each else scale.max()  # an entry may be zero on both sides
    off = {"=": np.abs(m - p), "<=": np.maximum(m - p, 0.0), ">=": np.maximum(p - m, 0.0)}[relation]
    errors = off / scale
    return float(errors.max()), int(errors.argmax())
