"""Evaluation of claims."""

from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from data import one_line

from ..config.fields import did_you_mean
from . import backprop, cost, descent, loss, optimizer, scalar, transformer
from .claim import CLAIMS, Claim, Pair, Unmeasured, compare
from .subject import Subject

# Titles of the groups. A group is a module; importing it registers its claims.
TITLES = {
    scalar: "Scalars and chains",
    backprop: "Backpropagation by hand",
    transformer: "The transformer",
    loss: "Probabilities and losses",
    optimizer: "Optimizers",
    descent: "Geometry of descent",
    cost: "Cost",
}
GROUPS = {module.__name__.rpartition(".")[2]: title for module, title in TITLES.items()}
POINTS = (16, 256)  # least and most points of a curve that is drawn


def selected(pattern: str | None) -> list[Claim]:
    """Returns the claims whose id or group matches a shell pattern, all for None, by group.

    Raises ValueError when there is none.
    """
    claims = [claim for group in GROUPS for claim in CLAIMS if claim.group == group]
    if pattern is None:
        return claims
    matching = [claim for claim in claims if fnmatchcase(claim.id, pattern) or fnmatchcase(claim.group, pattern)]
    if not matching:
        near = did_you_mean(pattern, [*GROUPS, *(claim.id for claim in claims)])
        listed = f"; there are {', '.join(GROUPS)}, and single claims of them, such as {claims[0].id}"
        raise ValueError(f"no claim matches {pattern!r}{near or listed}")
    return matching


def result_of(claim: Claim, subject: Subject) -> dict[str, Any]:
    """Measures one claim and returns its result in the format of `--json`.

    The entry shown is the first one of a law that holds, else the one with the largest error; `error` is the largest.
    An exception of the claim is its result, so that the others are still measured; MemoryError is raised.
    """
    result = {
        **{key: getattr(claim, key) for key in ("id", "statement", "source", "how", "belief", "relation")},
        "group": GROUPS[claim.group],
        "tolerance": claim.tolerance.value,
        "tolerance_why": claim.tolerance.why,
        "relative_to": "each entry" if claim.each else "the largest entry",
        **{"status": "error", "good": False, "entries": 0, "note": "", "why": ""},
        **dict.fromkeys(("predicted", "measured", "error", "at")),
        **({} if claim.axes is None else {"axes": list(claim.axes), "curves": []}),
    }
    try:
        measured = claim.measure(subject) if claim.of_model else claim.measure()
        pairs, note = ([measured], "") if isinstance(measured, Pair) else measured
        if not pairs:
            raise Unmeasured("nothing was compared")
        errors = [compare(pair, claim.relation, claim.each) for pair in pairs]
    except MemoryError:
        raise
    except Exception as error:
        return result | {"why": str(error) if isinstance(error, Unmeasured) else one_line(error)}
    (error, place), pair = max(zip(errors, pairs, strict=True), key=lambda each: each[0][0])
    within = bool(error <= claim.tolerance.value)
    if within and not claim.belief:
        place, pair = 0, pairs[0]
    for each in pairs if claim.axes is not None else ():
        if POINTS[0] <= np.size(each.predicted) <= POINTS[1]:
            sides = {"predicted": each.predicted, "measured": each.measured}
            lists = {side: np.asarray(values, np.float64).ravel().tolist() for side, values in sides.items()}
            result["curves"].append({"label": each.label, **lists})
    return result | {
        "status": ("refuted" if not within else "not refuted") if claim.belief else ("holds" if within else "fails"),
        "good": within != claim.belief,
        "predicted": float(np.ravel(pair.predicted)[place]),
        "measured": float(np.ravel(pair.measured)[place]),
        "error": error,
        "at": pair.label,
        "entries": sum(np.size(each.predicted) for each in pairs),
        "note": note,
    }
