"""What a claim is, and when a measurement bears it out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import ArrayLike

Relation = Literal["=", "<=", ">="]
Status = Literal["holds", "fails", "refuted", "not refuted", "error"]

# The first part of an id, and what stands above the claims whose ids begin with it.
GROUPS = {
    "scalar": "Scalars and chains",
    "backprop": "Backpropagation by hand",
    "transformer": "The transformer",
    "loss": "Probabilities and losses",
    "optimizer": "Optimizers",
    "descent": "Geometry of descent",
    "cost": "Cost",
}
POINTS = (16, 256)  # at least and at most, of an array that is drawn


NEGLIGIBLE = 1e-4  # a prediction this small beside its pair's size is as good as zero


class Tolerance(NamedTuple):
    """The largest relative error that passes, and why it is this large."""

    value: float
    why: str


ROUNDING = Tolerance(1e-12, "rounding: 1.1e-16 an operation, some thousands of them")
# A belief is refuted by what differs from it by more than this.
COUNTEREXAMPLE = Tolerance(1e-2, "rounding is never 1 %")


class Pair(NamedTuple):
    """A prediction and a measurement of one shape.

    Where zero is predicted, or what is as good as zero, `size` says what errors are small against, such as the norm of
    the terms that cancel; without it a pair of zeros is an error, as nothing was measured.
    """

    predicted: ArrayLike
    measured: ArrayLike
    label: str = ""
    size: float | None = None


class Evidence(NamedTuple):
    pairs: tuple[Pair, ...]
    note: str = ""


def evidence(predicted: ArrayLike, measured: ArrayLike, note: str = "") -> Evidence:
    """One pair."""
    return Evidence((Pair(predicted, measured),), note)


@dataclass(frozen=True)
class Claim:
    """A statement that can be measured.

    With `belief` it is a popular one that is false: its prediction is what believers would expect, and it is right
    when the measurement contradicts it by more than the tolerance.
    """

    id: str  # group/name
    statement: str  # in plain words, with the formula
    source: str
    how: str  # where the prediction comes from; where the measurement does
    measure: Callable[[], Evidence]
    tolerance: Tolerance = ROUNDING
    relation: Relation = "="  # of the measurement to the prediction
    belief: bool = False
    each: bool = False  # errors relative to each entry, and not to the largest of its array
    axes: tuple[str, str] | None = None  # what x and y of a picture of the arrays are called; None: no picture

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"expected an id that begins with one of {', '.join(GROUPS)}, got {self.id!r}")

    @property
    def group(self) -> str:
        return self.id.partition("/")[0]


class Found(NamedTuple):
    """The largest error, and an entry: of a pair the one it is found at, of a result the one to show."""

    error: float
    predicted: float
    measured: float
    label: str


class Unmeasured(ValueError):
    """A pair that says nothing, whatever was claimed; one line that says why."""


def compare(pair: Pair, relation: Relation = "=", each: bool = False) -> Found:
    """The largest relative error of a pair: |m - p| (for an inequality what it is violated by) over a scale.

    The scale is max(|m|, |p|), of each entry with `each`, else the largest of the array; or the pair's `size`. Raises
    Unmeasured for pairs that would pass without having said anything.

    >>> compare(Pair([1.0, 4.0], [1.0, 5.0])).error, compare(Pair(3.0, 2.0), "<=").error
    (0.2, 0.0)
    """
    p, m = (np.asarray(value, np.float64) for value in (pair.predicted, pair.measured))
    if p.shape != m.shape or p.size == 0:
        raise Unmeasured(f"expected a prediction and a measurement of one shape, got {p.shape} and {m.shape}")
    for name, value in (("prediction", p), ("measurement", m)):
        if not np.isfinite(value).all():
            raise Unmeasured(f"the {name} is not finite")
    scale = np.maximum(np.abs(p), np.abs(m))
    if pair.size is not None:
        if not 0 < pair.size < np.inf or np.abs(p).max() > NEGLIGIBLE * pair.size:
            largest = np.abs(p).max()
            raise Unmeasured(
                f"expected a prediction that is nothing beside its size, got {largest:g} and {pair.size:g}"
            )
        scale = np.full_like(scale, pair.size)
    elif not scale.any():
        raise Unmeasured("prediction and measurement are zero everywhere, so nothing was measured")
    elif each:
        scale = np.where(scale > 0, scale, 1.0)  # of the entries, some may be zero in both
    else:
        scale = np.full_like(scale, scale.max())
    off = {"=": np.abs(m - p), "<=": np.maximum(m - p, 0.0), ">=": np.maximum(p - m, 0.0)}[relation]
    errors = np.atleast_1d(off / scale)
    worst = int(errors.argmax())
    return Found(float(errors.flat[worst]), float(p.flat[worst]), float(m.flat[worst]), pair.label)


@dataclass(frozen=True)
class Result:
    """A claim and what came of it; `why` is told where nothing could be compared.

    `shown` has the largest error of all pairs; its entry is the first one of them where a law holds (all others are as
    good), else the worst.
    """

    claim: Claim
    status: Status
    shown: Found | None = None
    entries: int = 0
    note: str = ""
    why: str = ""
    pairs: tuple[Pair, ...] = ()

    @property
    def good(self) -> bool:
        return self.status in ("holds", "refuted")

    def as_json(self) -> dict[str, Any]:
        """For files and pages: plain numbers, and arrays only of a curve."""
        claim, shown = self.claim, self.shown
        out = {
            "id": claim.id,
            "group": GROUPS[claim.group],
            "statement": claim.statement,
            "source": claim.source,
            "how": claim.how,
            "belief": claim.belief,
            "relation": claim.relation,
            "status": self.status,
            "good": self.good,
            "predicted": None if shown is None else shown.predicted,
            "measured": None if shown is None else shown.measured,
            "error": None if shown is None else shown.error,
            "at": None if shown is None else shown.label,
            "entries": self.entries,
            "tolerance": claim.tolerance.value,
            "tolerance_why": claim.tolerance.why,
            "relative_to": "each entry" if claim.each else "the largest entry",
            "note": self.note,
            "why": self.why,
        }
        if claim.axes is not None:
            drawn = [pair for pair in self.pairs if POINTS[0] <= np.size(pair.predicted) <= POINTS[1]]
            out["axes"] = list(claim.axes)
            out["curves"] = [
                {"label": p.label, "predicted": _plain(p.predicted), "measured": _plain(p.measured)} for p in drawn
            ]
        return out


def _plain(values: ArrayLike) -> list[float]:
    return np.asarray(values, np.float64).reshape(-1).tolist()
