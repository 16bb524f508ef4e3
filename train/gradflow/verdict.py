"""One word for what the gradient does on its way down, with the evidence. docs/verdict.md gives rules and reasons."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .loss_history import Course, instability, past_spike, standstill

# |delta_0| / |delta_L| over the whole depth. Of the runs in docs/verdict.md, those that learn stay far inside.
VANISHING = -3.0  # log10
EXPLODING = 3.0
# Median over layers of log10(|dL/dW_qk| / |dL/dW_vo|): attention that cannot learn what to compare. GPT-2's small
# initial weights alone give -2.2, and recover.
DEAD_QK = -3.0
# Median over the upper half of the stream of act rank, over that of the embedding's output.
COLLAPSED = 1e-3
DISTINCT = 1e-2  # act rank of an embedding's output whose tokens are not alike themselves
# Act rank of the stream entering a block below which the gradients of its Q and K are rounding, by the dtype that is
# computed in: they are differences between tokens, of second order in it (measured: docs/verdict.md).
ALIKE_TO_ROUNDING = {"float64": 1e-7, "float32": 3e-3, "bfloat16": 3e-2}


class Verdict(NamedTuple):
    """`first_bad_layer` counts from 0, and is the one nearest to where the trouble comes from: to the loss, or for
    tokens that become alike to the embedding."""

    state: str
    ratio: float | None  # |delta_0| / |delta_L|; None where a float cannot hold it
    log10_ratio: float | None
    per_layer_gain: float | None  # exp(-slope of ln|delta_l| over l); None where a float cannot hold it
    qk_share: float | None  # median over layers of |dL/d(W_q, W_k)| / |dL/d(W_v, W_o)|
    first_bad_layer: int | None
    why: str
    log10_gain: float | None = None  # of per_layer_gain
    rank_left: float | None = None  # median over the upper half of the stream of act rank, over that at its start
    qk_rounded: int = 0  # blocks whose gradients of Q and K are rounding, so that qk_share is at most what it says
    advice: str | None = None  # what to try (train/gradflow/advice.py); None for a healthy run

    def as_json(self) -> dict[str, Any]:
        """The object of docs/probe.schema.json. Extrapolated to depth 100, a gain seldom is a number near 1."""
        hundred = None if self.log10_gain is None else 100.0 * self.log10_gain
        return {
            "state": self.state,
            "ratio": self.ratio,
            "log10_ratio": self.log10_ratio,
            "per_layer_gain": self.per_layer_gain,
            "gain_at_100": None if hundred is None else _float(hundred),
            "log10_gain_at_100": hundred,
            "qk_share": self.qk_share,
            "qk_rounded": self.qk_rounded,
            "rank_left": self.rank_left,
            "first_bad_layer": self.first_bad_layer,
            "why": self.why,
            "try": self.advice,
        }


def log10_gain(delta_log10: np.ndarray) -> float:
    """How much delta grows on its way down through one block, log10: minus the slope of a least-squares line.

    delta_log10: [L+1], finite. Below 0 vanishes, above 0 explodes.
    """
    depth = np.arange(delta_log10.size)
    return -float(np.polyfit(depth, delta_log10, 1)[0])


def judge(
    delta_log10: np.ndarray,
    grad_log10: Mapping[str, np.ndarray],
    doubt: bool = False,
    rms: np.ndarray | None = None,
    rank: np.ndarray | None = None,
    dtype: str = "float32",
) -> Verdict:
    """The verdict on one backward pass.

    delta_log10: log10|delta_l| [L+1], -inf for an exact zero. grad_log10: log10 Frobenius norms by tag, [L] each;
    attn_q, attn_k, attn_v and attn_o are read, if they are there. `doubt`: zeros may only be too small
    (train/gradflow/delta.py, `underflows`), so no share is made of them. rms, rank: of the stream [L+1]; without `rank`
    nothing is collapsed. dtype: that the pass was computed in.
    """
    if doubt:
        grad_log10 = {name: np.where(np.isneginf(logs), np.nan, logs) for name, logs in grad_log10.items()}
    rank = None if rank is None else rank.astype(np.float64)  # as it is in a log
    alike = _alike(rank)
    stream = "" if rms is None else f"; the stream's rms goes from {rms[0]:.3g} to {rms[-1]:.3g}"
    if np.isnan(delta_log10).any() or np.isposinf(delta_log10).any():
        bad = np.flatnonzero(~np.isfinite(delta_log10))
        why = f"delta is not a finite number at depth {bad[-1]} and is passed down from there{stream}"
        return Verdict("exploding", None, None, None, None, _layer(bad[-1], delta_log10), why, None, alike)
    if np.isneginf(delta_log10).any():
        bad = int(np.flatnonzero(np.isneginf(delta_log10))[-1])
        how = "zero, or too small for its dtype," if doubt else "exactly zero"
        why = f"delta is {how} at depth {bad} and below{stream}"
        return Verdict("vanishing", 0.0, None, None, None, _layer(bad, delta_log10), why, None, alike)
    ratio, gain = float(delta_log10[0] - delta_log10[-1]), log10_gain(delta_log10)
    starved = qk_share(grad_log10)
    comparable = starved[~np.isnan(starved)]
    middle = float(np.median(comparable)) if comparable.size else math.nan
    share = None if math.isnan(middle) else 0.0 if middle == -math.inf else _float(middle)
    rounded = 0 if rank is None else int(np.sum(qk_rounded(rank, dtype)[: starved.size]))
    fall = f"|delta| at the first block is {power(ratio)} times that at the last, {power(gain)} a layer"

    def found(state: str, bad: int | None, why: str) -> Verdict:
        return Verdict(state, _float(ratio), ratio, _float(gain), share, bad, why, gain, alike, rounded)

    if ratio < VANISHING:
        return found("vanishing", _last(delta_log10[:-1] - delta_log10[-1] < VANISHING), fall + stream)
    if ratio > EXPLODING:
        return found("exploding", _last(delta_log10[:-1] - delta_log10[-1] > EXPLODING), fall + stream)
    collapsed = alike is not None and alike < COLLAPSED
    if middle < DEAD_QK:
        how = "exactly zero, unlike" if middle == -math.inf else f"{'at most ' * bool(rounded)}{power(middle)} times"
        why = f"delta arrives ({fall}), but the gradients of Q and K are {how} those of V and O"
        if rounded:
            why += f" (in {rounded} of {starved.size} blocks they are {dtype}'s rounding, for tokens that are so alike)"
        why += f"; the tokens have become alike (act rank {alike:.2g} of the input's)" if collapsed else ""
        return found("dead_qk", _last(starved < DEAD_QK), why)
    if collapsed:
        assert alike is not None and rank is not None
        why = f"delta arrives ({fall}), but the tokens have become alike: in the upper half of the stream act rank is "
        return found("collapsed", _first_alike(rank), f"{why}{power(math.log10(alike)) if alike else 0} of the input's")
    return found("healthy", None, fall)


def over_run(first: Verdict, last: Verdict, last_step: int, course: Course | None = None, warmup: int = 0) -> Verdict:
    """The verdict on a run, from those on its first and last watched steps, and from its losses.

    The cause goes before what it leads to. A design whose gradient does not flow from the start comes first, unless
    the run got well (rezero begins with dead attention): what is seen later is what an optimizer that ignores the
    gradient's scale has made of it. Then losses that spike, which leave behind weights of any kind; then a flow that
    broke while training; and only a run in which all of this is well is called one that does not learn.
    """
    unstable = None if course is None else instability(course)
    if first.state != "healthy" and last.state != "healthy":
        spikes = f"; {unstable}" if unstable else ""
        if first.state == last.state:
            return last._replace(why=last.why + spikes)
        return first._replace(
            why=f"from the start {first.why}; by step {last_step} it is {last.state}: {last.why}{spikes}"
        )
    if unstable:
        then = "" if last.state == "healthy" else f"; by step {last_step} it is {last.state}: {last.why}"
        return last._replace(state="unstable", why=unstable + _moved(course) + then)
    if last.state != "healthy":
        return last._replace(why=f"healthy at the start, but by step {last_step} {last.why}")
    if course is not None and (stuck := standstill(course, warmup)):
        return last._replace(state="not_learning", why=f"{stuck}, though delta arrives{_moved(course)}")
    began = "" if first.state == "healthy" else f"; at the start it was {first.state}: {first.why}"
    spike = None if course is None else past_spike(course)
    return last._replace(why=last.why + began + (f"; {spike}" if spike else ""))


def _moved(course: Course | None) -> str:
    if course is None or course.update is None:
        return ""
    return f"; a step moves the weights by {power(course.update)} of their size"


def qk_share(grad_log10: Mapping[str, np.ndarray]) -> np.ndarray:
    """log10 of |(dL/dW_q, dL/dW_k)| over |(dL/dW_v, dL/dW_o)| a layer, [L]; empty for a model without them."""
    if not {"attn_q", "attn_k", "attn_v", "attn_o"} <= grad_log10.keys():
        return np.zeros(0)

    def together(*names: str) -> np.ndarray:
        logs = np.stack([grad_log10[name] for name in names])
        top = np.max(logs, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.isneginf(top), top, top + 0.5 * np.log10(np.sum(10.0 ** (2 * (logs - top)), axis=0)))

    below, above = together("attn_q", "attn_k"), together("attn_v", "attn_o")
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(below) & np.isneginf(above), np.nan, below - above)


def qk_rounded(rank: np.ndarray, dtype: str) -> np.ndarray:
    """Whether the gradients of Q and K of each block are rounding and not what the mathematics gives, bool [..., L].

    rank: of the stream [..., L+1]. What is measured is then what the optimizer gets, and far too large.
    """
    return rank[..., :-1] < ALIKE_TO_ROUNDING[dtype]


def _alike(rank: np.ndarray | None) -> float | None:
    """Of act rank [L+1]: its median over l > L/2, over that at l = 0. None where it says nothing."""
    if rank is None or not np.isfinite(rank).all() or rank[0] < DISTINCT:
        return None
    return float(np.median(rank[(rank.size - 1) // 2 + 1 :]) / rank[0])


def _first_alike(rank: np.ndarray) -> int:
    """The block above which the tokens are alike, and stay so in most of what follows."""
    return int(np.flatnonzero(rank < COLLAPSED * rank[0])[0]) - 1


def power(log10: float) -> str:
    """A number given by its logarithm, also outside a float's range.

    >>> power(-0.30103), power(-4.5), power(-364.1), power(-400.0000000000004)
    ('0.5', '3.2e-05', '7.9e-365', '1.0e-400')
    """
    if -3 <= log10 < 5:
        return f"{10.0**log10:.3g}"
    exponent = math.floor(log10)
    mantissa = f"{10.0 ** (log10 - exponent):.1f}"
    if mantissa == "10.0":  # rounded up to the next power
        mantissa, exponent = "1.0", exponent + 1
    return f"{mantissa}e{exponent:+03d}"


def _float(log10: float) -> float | None:
    """10^log10, or None outside a float64's normal range: nothing nonzero is reported as 0."""
    return 10.0**log10 if -307 < log10 < 308 else None


def _last(bad: np.ndarray) -> int | None:
    """The bad layer nearest to the loss: delta comes from there."""
    found = np.flatnonzero(bad)
    return int(found[-1]) if found.size else None


def _layer(depth: int, delta_log10: np.ndarray) -> int:
    return min(int(depth), delta_log10.size - 2)
