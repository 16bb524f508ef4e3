"""Evaluation of claims."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ..errors import first_line
from . import backprop, cost, descent, optimizers, scalars, transformer
from .claim import CLAIMS, GROUPS, Claim, Entry, Evidence, Pair, Unmeasured, compare
from .subject import Subject

# Importing a subject registers its claims; these are all of them.
SUBJECTS = (scalars, backprop, transformer, optimizers, descent, cost)
POINTS = (16, 256)  # least and most points of a curve that is drawn


def selected(pattern: str | None, claims: Sequence[Claim] = CLAIMS) -> list[Claim]:
    """Returns the claims whose id or group matches a shell pattern, all for None, by group.

    Raises ValueError when there is none.
    """
    claims = [claim for group in GROUPS for claim in claims if claim.group == group]
    if pattern is None:
        return claims
    matching = [claim for claim in claims if fnmatchcase(claim.id, pattern) or fnmatchcase(claim.group, pattern)]
    if not matching:
        groups = list(dict.fromkeys(claim.group for claim in claims))
        near = difflib.get_close_matches(pattern, [*groups, *(claim.id for claim in claims)], 3, 0.4)
        raise ValueError(f"no claim matches {pattern!r}; nearest: {', '.join(near or groups)}")
    return matching


def judged(claim: Claim, subject: Subject) -> dict[str, Any]:
    """Measures one claim and returns its result in the format of `--json`.

    The entry shown is the first one of a law that holds, else the one with the largest error; `error` is the largest.
    An exception of the claim is its result, so that the others are still measured; MemoryError is raised.
    """
    evidence, shown, why = Evidence(()), None, ""
    try:
        measured = claim.measure(subject) if claim.of_model else claim.measure()
        evidence = Evidence([measured]) if isinstance(measured, Pair) else measured
        if not evidence.pairs:
            raise Unmeasured("nothing was compared")
        shown = max((compare(pair, claim.relation, claim.each) for pair in evidence.pairs), key=lambda e: e.error)
    except MemoryError:
        raise
    except Exception as error:
        status, evidence = "error", Evidence(())
        why = str(error) if isinstance(error, Unmeasured) else f"{type(error).__name__}: {first_line(error)}"
    else:
        within = shown.error <= claim.tolerance.value
        status = ("not refuted" if within else "refuted") if claim.belief else ("holds" if within else "fails")
        if status == "holds":
            first = evidence.pairs[0]
            shown = Entry(
                shown.error, float(np.ravel(first.predicted)[0]), float(np.ravel(first.measured)[0]), first.label
            )
    result = {
        "id": claim.id,
        "group": GROUPS[claim.group],
        "statement": claim.statement,
        "source": claim.source,
        "how": claim.how,
        "belief": claim.belief,
        "relation": claim.relation,
        "status": status,
        "good": status in ("holds", "refuted"),
        "predicted": None if shown is None else shown.predicted,
        "measured": None if shown is None else shown.measured,
        "error": None if shown is None else shown.error,
        "at": None if shown is None else shown.label,
        "entries": sum(np.size(pair.predicted) for pair in evidence.pairs),
        "tolerance": claim.tolerance.value,
        "tolerance_why": claim.tolerance.why,
        "relative_to": "each entry" if claim.each else "the largest entry",
        "note": evidence.note,
        "why": why,
    }
    if claim.axes is not None:
        drawn = [pair for pair in evidence.pairs if POINTS[0] <= np.size(pair.predicted) <= POINTS[1]]
        result |= {"axes": list(claim.axes), "curves": [_curve(pair) for pair in drawn]}
    return result


def _curve(pair: Pair) -> dict[str, Any]:
    predicted, measured = (np.asarray(x, np.float64).reshape(-1).tolist() for x in (pair.predicted, pair.measured))
    return {"label": pair.label, "predicted": predicted, "measured": measured}
