"""One word for what the gradient does on its way down, with the evidence. docs/verdict.md gives rules and reasons."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# |delta_0| / |delta_L| over the whole depth. Of the runs in docs/verdict.md, those that learn stay far inside.
VANISHING = -3.0  # log10
EXPLODING = 3.0
# Median over layers of log10(|dL/dW_qk| / |dL/dW_vo|): attention that cannot learn what to compare. GPT-2's small
# initial weights alone give -2.2, and recover.
DEAD_QK = -3.0


class Verdict(NamedTuple):
    """`first_bad_layer` counts from 0, and is the one nearest to the loss, where the trouble comes from."""

    state: str
    ratio: float | None  # |delta_0| / |delta_L|; None where a float cannot hold it
    log10_ratio: float | None
    per_layer_gain: float | None  # exp(-slope of ln|delta_l| over l)
    qk_share: float | None  # median over layers of |dL/d(W_q, W_k)| / |dL/d(W_v, W_o)|
    first_bad_layer: int | None
    why: str

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


def per_layer_gain(delta_log10: np.ndarray) -> float:
    """How much delta grows on its way down through one block: exp(-slope) of a least-squares line of ln|delta_l|.

    delta_log10: [L+1], finite. Below 1 vanishes, above 1 explodes.
    """
    depth = np.arange(delta_log10.size)
    return float(10.0 ** -np.polyfit(depth, delta_log10, 1)[0])


def judge(delta_log10: np.ndarray, grad_log10: Mapping[str, np.ndarray], doubt: bool = False) -> Verdict:
    """The verdict on one backward pass.

    delta_log10: log10|delta_l| [L+1], -inf for an exact zero. grad_log10: log10 Frobenius norms by tag, [L] each;
    attn_q, attn_k, attn_v and attn_o are read. `doubt`: zeros may only be too small (train/gradflow/delta.py,
    `underflows`), so no share is made of them.
    """
    if doubt:
        grad_log10 = {name: np.where(np.isneginf(logs), np.nan, logs) for name, logs in grad_log10.items()}
    if np.isnan(delta_log10).any() or np.isposinf(delta_log10).any():
        bad = np.flatnonzero(~np.isfinite(delta_log10))
        why = f"delta is not a finite number at depth {bad[-1]} and is passed down from there"
        return Verdict("exploding", None, None, None, None, _layer(bad[-1], delta_log10), why)
    if np.isneginf(delta_log10).any():
        bad = int(np.flatnonzero(np.isneginf(delta_log10))[-1])
        how = "zero, or too small for its dtype," if doubt else "exactly zero"
        why = f"delta is {how} at depth {bad} and below"
        return Verdict("vanishing", 0.0, None, None, None, _layer(bad, delta_log10), why)
    ratio, gain = float(delta_log10[0] - delta_log10[-1]), per_layer_gain(delta_log10)
    starved = qk_share(grad_log10)
    comparable = starved[~np.isnan(starved)]
    middle = float(np.median(comparable)) if comparable.size else math.nan
    share = None if math.isnan(middle) else 0.0 if middle == -math.inf else _float(middle)
    known = (_float(ratio), ratio, gain, share)
    fall = f"|delta| at the first block is {power(ratio)} times that at the last, {gain:.3g} a layer"
    if ratio < VANISHING:
        return Verdict("vanishing", *known, _last(delta_log10[:-1] - delta_log10[-1] < VANISHING), fall)
    if ratio > EXPLODING:
        return Verdict("exploding", *known, _last(delta_log10[:-1] - delta_log10[-1] > EXPLODING), fall)
    if middle < DEAD_QK:
        how = "exactly zero, unlike" if middle == -math.inf else f"{power(middle)} times"
        why = f"delta arrives ({fall}), but the gradients of Q and K are {how} those of V and O"
        return Verdict("dead_qk", *known, _last(starved < DEAD_QK), why)
    return Verdict("healthy", *known, None, fall)


def over_run(first: Verdict, last: Verdict, last_step: int) -> Verdict:
    """The verdict on a run, from those on its first and last watched steps.

    A run that is well at the end is healthy, however it began (rezero begins with dead attention). One that is not
    keeps the state in which it began, when that was bad already: the design caused that one, while the later one is
    what an optimizer that ignores the gradient's scale has made of it.
    """
    if first.state == last.state:
        return last
    if last.state == "healthy":
        return last._replace(why=f"{last.why}; at the start it was {first.state}: {first.why}")
    if first.state == "healthy":
        return last._replace(why=f"healthy at the start, but by step {last_step} {last.why}")
    return first._replace(why=f"from the start {first.why}; by step {last_step} it is {last.state}: {last.why}")


def qk_share(grad_log10: Mapping[str, np.ndarray]) -> np.ndarray:
    """log10 of |(dL/dW_q, dL/dW_k)| over |(dL/dW_v, dL/dW_o)| a layer, [L]."""

    def together(*names: str) -> np.ndarray:
        logs = np.stack([grad_log10[name] for name in names])
        top = np.max(logs, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.isneginf(top), top, top + 0.5 * np.log10(np.sum(10.0 ** (2 * (logs - top)), axis=0)))

    below, above = together("attn_q", "attn_k"), together("attn_v", "attn_o")
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(below) & np.isneginf(above), np.nan, below - above)


def power(log10: float) -> str:
    """A number given by its logarithm, also outside a float's range.

    >>> power(-0.30103), power(-4.5), power(-364.1)
    ('0.5', '3.2e-05', '7.9e-365')
    """
    if -3 <= log10 < 5:
        return f"{10.0**log10:.3g}"
    exponent = math.floor(log10)
    return f"{10.0 ** (log10 - exponent):.1f}e{exponent:+03d}"


def _float(log10: float) -> float | None:
    """10^log10, or None outside a float64's normal range: nothing nonzero is reported as 0."""
    return 10.0**log10 if -307 < log10 < 308 else None


def _last(bad: np.ndarray) -> int | None:
    """The bad layer nearest to the loss: delta comes from there."""
    found = np.flatnonzero(bad)
    return int(found[-1]) if found.size else None


def _layer(depth: int, delta_log10: np.ndarray) -> int:
    return min(int(depth), delta_log10.size - 2)
