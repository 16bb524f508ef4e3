"""The finding of an experiment: three plain sentences on who learns, and where the gradient goes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..gradflow.loss_history import MARGIN
from ..text import number

Summary = Mapping[str, Any]  # the content of a summary.json
_NAMED = 4  # variants that a sentence names one by one
_CONSTANT = ("floor_unigram", "floor_prior", "floor_zero")  # losses of constant predictions
# Sentences on states that the size of the gradient does not show, with the figures of a verdict in braces.
_REASONS = {
    "dead_qk": "attention starves in {names}: Q and K get {share} of the gradient of V and O",
    "collapsed": "the tokens become alike in {names}",
    "unstable": "the loss is unstable in {names}",
    "not_learning": "{names} does not learn although the gradient arrives",
}


def finding(results: Sequence[tuple[str, Sequence[Summary]]]) -> list[str]:
    """Returns at most three sentences about variants, each given by its name and the summaries of its seeds.

    The first is about the held-out loss, the second about |δ_0| / |δ_L| at the first and the last watched step, the
    third about what these two do not show. Variants without the figures of a sentence are left out of it.
    """
    sentences = [_learning(results), _gradient(results), _reasons(results)]
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences if sentence]


def _learning(results: Sequence[tuple[str, Sequence[Summary]]]) -> str:
    losses = {name: loss for name, seeds in results if (loss := _mean(seeds, "loss_val")) is not None}
    constants = {name: min(known) for name, seeds in results if (known := _constants(seeds))}
    ranked = sorted(losses, key=losses.__getitem__)
    learning = [name for name in ranked if name not in constants or losses[name] < (1 - MARGIN) * constants[name]]
    stuck = [name for name in ranked if name not in learning]
    parts = []
    if learning:
        best, *others = learning
        parts.append(f"{best} learns best" if others else f"{best} learns")
        parts[0] += f" (held-out loss {number(losses[best], digits=3)})"
        if others:
            last = others[-1]
            count = "" if len(others) == 1 else f"{len(others) - 1} more learn, "
            parts.append(f"{count}{last} least ({number(losses[last], digits=3)})")
    if stuck:
        figures = {number(losses[name], digits=3) for name in stuck}
        verb = "learns" if len(stuck) == 1 else "learn"
        constant = number(constants[stuck[0]], digits=3)
        parts.append(
            f"{_names(stuck)} {verb} next to nothing ({' to '.join(sorted(figures)[:: max(1, len(figures) - 1)])}; "
            f"the best constant prediction has {constant})"
        )
    return "; ".join(parts)


def _gradient(results: Sequence[tuple[str, Sequence[Summary]]]) -> str:
    flows = []
    for name, seeds in results:
        start, end = (_mean(seeds, "log10_ratio", key) for key in ("verdict_start", "verdict_end"))
        if start is not None and end is not None:
            flows.append((name, start, end))
    if not flows:
        return ""
    about = "the gradient at the first block, relative to that at the last, from the start of training to its end, is "
    if len(flows) <= _NAMED:
        return about + ", ".join(f"{factor(start)} → {factor(end)} in {name}" for name, start, end in flows)
    flows.sort(key=lambda flow: flow[2])
    ends = [f"{factor(flows[i][1])} → {factor(flows[i][2])} in {flows[i][0]}" for i in (0, -1)]
    return f"{about}between {ends[0]} and {ends[1]}"


def _reasons(results: Sequence[tuple[str, Sequence[Summary]]]) -> str:
    parts = []
    for state, sentence in _REASONS.items():
        verdicts = {
            name: verdict
            for name, seeds in results
            for summary in seeds
            if (verdict := summary.get("verdict") or {}).get("state") == state
        }
        if verdicts:
            shares = [share for verdict in verdicts.values() if (share := verdict.get("qk_share"))]
            share = factor(math.log10(float(np.median(shares)))) if shares else "none"
            parts.append(sentence.format(names=_names(list(verdicts)), share=share))
    return "; ".join(parts)


def factor(log10: float) -> str:
    """A factor in words: `47 times`, `1/5,100`, `1e-40`.

    >>> factor(1.672), factor(-3.708), factor(-0.1), factor(-40.0), factor(7.0)
    ('47', '1/5,100', '0.79', '1.0e-40', '1.0e+07')
    """
    if -6 < log10 < -1:
        return f"1/{float(f'{10**-log10:.2g}'):,.0f}"
    return number(None, log10, digits=2)


def _mean(seeds: Sequence[Summary], key: str, inside: str | None = None) -> float | None:
    values = [(summary.get(inside) or {} if inside else summary).get(key) for summary in seeds]
    finite = [value for value in values if value is not None]
    return float(np.mean(finite)) if finite and len(finite) == len(values) else None


def _constants(seeds: Sequence[Summary]) -> list[float]:
    floors = [summary.get("floors") or {} for summary in seeds]
    return [each[name] for each in floors for name in _CONSTANT if each.get(name) is not None]


def _names(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
