"""Claims that can be measured, their registry, and the comparison that decides them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Relation = Literal["=", "<=", ">="]

# The first part of an id, and the title above the claims whose ids begin with it.
GROUPS = {
    "scalar": "Scalars and chains",
    "backprop": "Backpropagation by hand",
    "transformer": "The transformer",
    "loss": "Probabilities and losses",
    "optimizer": "Optimizers",
    "descent": "Geometry of descent",
    "cost": "Cost",
}
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

    predicted: ArrayLike
    measured: ArrayLike
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

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"expected an id that begins with one of {', '.join(GROUPS)}, got {self.id!r}")

    @property
    def group(self) -> str:
        return self.id.partition("/")[0]


CLAIMS: list[Claim] = []  # in the order of definition


def claim(id: str, statement: str, source: str, how: str, **options: Any) -> Callable:
    """Registers the decorated function as the measurement of a claim. `options`: fields of Claim."""

    def register(measure: Callable[..., Pair | Evidence]) -> Callable[..., Pair | Evidence]:
        CLAIMS.append(Claim(id, statement, source, how, measure, **options))
        return measure

    return register


def belief(id: str, statement: str, source: str, how: str, relation: Relation = "=") -> Callable:
    """Registers the decorated function as the counterexample to a popular belief."""
    return claim(id, statement, source, how, tolerance=COUNTEREXAMPLE, relation=relation, belief=True)


class Entry(NamedTuple):
    """One entry of a pair, with the largest error of all entries."""

    error: float
    predicted: float
    measured: float
    label: str


class Unmeasured(ValueError):
    """A pair that would pass whatever was claimed; the message says why, on one line."""


def compare(pair: Pair, relation: Relation = "=", each: bool = False) -> Entry:
    """Returns the entry with the largest relative error.

    The error is |m - p|, or the violation of an inequality, over max(|m|, |p|): of each entry with `each`, else of the
    whole array, or over the pair's `size`. Raises Unmeasured for a pair that says nothing.

    >>> compare(Pair([1.0, 4.0], [1.0, 5.0])).error, compare(Pair(3.0, 2.0), "<=").error
    (0.2, 0.0)
    """
    p, m = (np.asarray(value, np.float64) for value in (pair.predicted, pair.measured))
    where = f"{pair.label}: " if pair.label else ""
    if p.shape != m.shape or p.size == 0:
        raise Unmeasured(f"{where}expected a prediction and a measurement of one shape, got {p.shape} and {m.shape}")
    for name, value in (("prediction", p), ("measurement", m)):
        if not np.isfinite(value).all():
            raise Unmeasured(f"{where}the {name} is not finite")
    scale = np.maximum(np.abs(p), np.abs(m))
    if pair.size is not None:
        largest = float(np.abs(p).max())
        if not 0 < pair.size < np.inf or largest > NEGLIGIBLE * pair.size:
            sizes = f"{largest:g} and {pair.size:g}"
            raise Unmeasured(f"{where}expected a prediction that is nothing beside its size, got {sizes}")
        scale = np.full_like(scale, pair.size)
    elif not scale.any():
        raise Unmeasured(f"{where}prediction and measurement are zero everywhere, so nothing was measured")
    elif each:
        scale = np.where(scale > 0, scale, 1.0)  # an entry may be zero on both sides
    else:
        scale = np.full_like(scale, scale.max())
    off = {"=": np.abs(m - p), "<=": np.maximum(m - p, 0.0), ">=": np.maximum(p - m, 0.0)}[relation]
    errors = np.atleast_1d(off / scale)
    worst = int(errors.argmax())
    return Entry(float(errors.flat[worst]), float(p.flat[worst]), float(m.flat[worst]), pair.label)
