"""The finding of an experiment: three plain sentences on who learns, and where the gradient goes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..gradflow.loss_history import CONSTANT, MARGIN
from ..text import factor, number

Summary = Mapping[str, Any]  # the content of a summary.json
_NAMED = 4  # variants that a sentence names one by one
# Clauses on states that neither the losses nor the size of the gradient show.
_REASONS = {
    "dead_qk": "attention starves in {names}{share}",
    "collapsed": "the tokens become alike in {names}",
    "unstable": "the loss is unstable in {names}",
    "not_learning": "although the gradient arrives in {names}, the loss stands still",
}


def finding(results: Sequence[tuple[str, Sequence[Summary]]]) -> list[str]:
    """Returns at most three sentences about variants, each given by its name and the summaries of its seeds.

    The first is about the held-out losses (means over seeds), the second about |δ_0| / |δ_L| at the first and the last
    watched step (geometric means), the third about what these two do not show. A sentence leaves out variants that
    lack its figures in some seed, and is itself left out if all do.
    """
    # Names are in quotes, since `with learns` is no English.
    results = [(f"'{name}'", seeds) for name, seeds in results if seeds]
    sentences = [_losses(results), _gradients(results), _reasons(results)]
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence]


def _losses(results: Sequence[tuple[str, Sequence[Summary]]]) -> str:
    """Compares with the best constant prediction, by the margin of not_learning (gradflow/loss_history.py)."""
    if len({seed.get("task") for _, seeds in results for seed in seeds}) > 1:  # losses of different units
        return ""
    losses = {name: loss for name, seeds in results if (loss := _mean(seeds, "loss_val")) is not None}
    constants: dict[str, float] = {}
    stuck, worse = [], []
    for name, seeds in results:
        floors = seeds[0].get("floors") or {}
        of_constants = [floor for kind in CONSTANT if (floor := floors.get(f"floor_{kind}")) is not None]
        if name not in losses or not of_constants:
            continue
        constant, best = min(of_constants), floors.get("floor")
        margin = MARGIN * constant
        if losses[name] > constant + margin:
            worse.append(name)
        elif best is not None and constant - best < 2 * margin:
            if losses[name] >= constant:
                continue  # next to nothing can be learned: it only "ends"
        elif losses[name] >= constant - margin:
            stuck.append(name)
        constants[name] = constant
    ranked = [name for name in sorted(losses, key=losses.__getitem__) if name not in (*stuck, *worse)]
    text = {name: number(loss, digits=3) for name, loss in losses.items()}
    loss = "mean held-out loss" if any(len(seeds) > 1 for _, seeds in results) else "held-out loss"
    parts = []
    if len(ranked) == 1:
        verb = "learns" if ranked[0] in constants else "ends"
        parts.append(f"{ranked[0]} {verb} ({loss} {text[ranked[0]]})")
    elif ranked:
        first, *others = ranked
        after = ", ".join(f"{text[name]} in {name}" for name in others)
        if len(others) >= _NAMED:
            after = f"{text[others[-1]]} in {others[-1]}, with {len(others) - 1} between"
        parts.append(f"the {loss} ends lowest in {first} ({text[first]}; {after})")
    for names, verb, rest in ((stuck, "learn", "next to nothing"), (worse, "predict", "worse than a constant does")):
        if names:
            figures = sorted((losses[name], text[name]) for name in names)
            span = " to ".join(dict.fromkeys(figure for _, figure in (figures[0], figures[-1])))
            about = f"{_listed(names)} {verb}{'s' * (len(names) == 1)} {rest}"
            constant = number(min(constants[name] for name in names), digits=3)
            parts.append(f"{about} ({span}; the best constant prediction has {constant})")
    return "; ".join(parts)


def _gradients(results: Sequence[tuple[str, Sequence[Summary]]]) -> str:
    flows = []
    for name, seeds in results:
        start, end = ([ratio_log10(seed.get(key)) for seed in seeds] for key in ("verdict_start", "verdict_end"))
        if None not in (*start, *end):
            flows.append((name, *(float(np.mean(np.array(logs, float))) for logs in (start, end))))
    if not flows:
        return ""
    change = [f"{factor(start)} → {factor(end)} in {name}" for name, start, end in flows]
    if len(flows) > _NAMED:
        lowest, *_, highest = sorted(range(len(flows)), key=lambda index: flows[index][2])
        change = [change[lowest], f"{change[highest]}, with {len(flows) - 2} between"]
    about = "on its way from the last block to the first the gradient is multiplied by"
    return f"{about} {_listed(change)} (start → end of training)"


def _reasons(results: Sequence[tuple[str, Sequence[Summary]]]) -> str:
    parts = []
    for state, clause in _REASONS.items():
        runs = [(name, seed, seed.get("verdict") or {}) for name, seeds in results for seed in seeds]
        runs = [(name, seed, verdict) for name, seed, verdict in runs if verdict.get("state") == state]
        shares = [share for *_, verdict in runs if (share := verdict.get("qk_share")) is not None]
        share = ""
        if len(shares) == len(runs) > 0:
            bound = "at most " if len(shares) > 1 or runs[0][2].get("qk_rounded") else ""
            amount = f"{bound}{factor(math.log10(max(shares)))} of that" if any(shares) else "exactly zero, unlike that"
            share = f": the gradient of Q and K is {amount} of V and O"
            for when in ("end", "start"):  # the pass that was judged; tables have both
                passes = [(seed.get(f"verdict_{when}") or {}).get("qk_share") for _, seed, _ in runs]
                if passes == shares:
                    share += f" at the {when}"
                    break
        names = list(dict.fromkeys(name for name, *_ in runs))
        parts += [clause.format(names=_listed(names), share=share)] if names else []
    for name, seeds in results:
        steps = [seed.get("steps") for seed in seeds if seed.get("exit_reason") == "nonfinite"]
        parts += [f"{name} stopped at step {steps[0]}, which was not finite"] if steps else []
    return "; ".join(parts)


def ratio_log10(verdict: Mapping[str, Any] | None) -> float | None:
    """Returns log10 |δ_0| / |δ_L|: -inf for an exact zero, NaN where it is not finite, None if it is not known."""
    if not verdict or "log10_ratio" not in verdict:
        return None
    absent = -math.inf if verdict.get("ratio") == 0 else math.nan
    return absent if verdict["log10_ratio"] is None else verdict["log10_ratio"]


def _mean(seeds: Sequence[Summary], key: str) -> float | None:
    values = [seed.get(key) for seed in seeds]
    return None if None in values else float(np.mean(np.array(values, float)))


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
