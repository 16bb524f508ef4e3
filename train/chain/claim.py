"""Claims that can be measured, their registry, and the comparison that decides them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    statement: str  # in plain words, with the formula: the docstring of `measure`
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


def claim(source: str, how: str, **options: Any) -> Callable:
    """Registers the decorated function as a claim. `options`: fields of Claim.

    Its file and its name are the claim's id, and its docstring is the statement.
    """

    def register(measure: Any) -> Any:
        id = f"{measure.__module__.rpartition('.')[2]}/{measure.__name__}"
        statement = measure.__doc__ or "(python -OO drops the statements)"
        CLAIMS.append(Claim(id, " ".join(statement.split()), source, how, measure, **options))
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
            raise Unmeasured(f"{where}expected a prediction that is negligible compared with its size, got {sizes}")
        scale = pair.size
    elif not scale.any():
        raise Unmeasured(f"{where}prediction and measurement are zero everywhere, so nothing was measured")
    else:
        scale = np.where(scale > 0, scale, 1.0) if each else scale.max()  # an entry may be zero on both sides
    off = {"=": np.abs(m - p), "<=": np.maximum(m - p, 0.0), ">=": np.maximum(p - m, 0.0)}[relation]
    errors = off / scale
    return float(errors.max()), int(errors.argmax())
