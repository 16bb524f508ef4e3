"""Evaluates claims and says what came of them."""

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np

from .claim import Claim, Found, Pair, Result, Unmeasured, compare


def selected(claims: Sequence[Claim], pattern: str | None) -> list[Claim]:
    """The claims whose id, or group, the shell's pattern means; all for None. Raises ValueError when there is none."""
    if pattern is None:
        return list(claims)
    found = [claim for claim in claims if any(fnmatchcase(name, pattern) for name in (claim.id, claim.group))]
    if not found:
        names = list(dict.fromkeys(name for claim in claims for name in (claim.id, claim.group)))
        near = difflib.get_close_matches(pattern, names, 3, 0.4) or list(dict.fromkeys(c.group for c in claims))
        raise ValueError(f"no claim matches {pattern!r}; nearest: {', '.join(near)}")
    return found


def run(claims: Sequence[Claim]) -> Iterator[Result]:
    """One result a claim, as they are measured."""
    for claim in claims:
        yield judged(claim)


def judged(claim: Claim) -> Result:
    """Measures one claim. Whatever goes wrong in it is its result, and not the end of all others."""
    try:
        measured = claim.measure()
        if not measured.pairs:
            raise Unmeasured("nothing was compared")
        found = [_compared(claim, index) for index in measured.pairs]
    except MemoryError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        kind = "" if isinstance(error, Unmeasured) else f"{type(error).__name__}: "
        return Result(claim, "error", why=f"{kind}{said}")
    worst = max(found, key=lambda found: found.error)
    within = worst.error <= claim.tolerance.value
    status = ("not refuted" if within else "refuted") if claim.belief else ("holds" if within else "fails")
    first = measured.pairs[0]
    headline = (float(np.ravel(first.predicted)[0]), float(np.ravel(first.measured)[0]), first.label)
    shown = worst if status != "holds" else Found(worst.error, *headline)
    entries = sum(np.size(pair.predicted) for pair in measured.pairs)
    return Result(claim, status, shown, entries, measured.note, pairs=measured.pairs)


def _compared(claim: Claim, pair: Pair) -> Found:
    try:
        return compare(pair, claim.relation, claim.each)
    except Unmeasured as error:
        raise Unmeasured(f"{pair.label}: {error}" if pair.label else str(error)) from None
