"""Verdicts on the gradient flow of a pass and of a run, with the evidence (rules and reasons: docs/verdict.md)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..text import power
from .loss_history import LossHistory, instability, past_spike, standstill

# |delta_0| / |delta_L| over the whole depth. Runs of docs/verdict.md that learn stay well within these bounds.
VANISHING = -3.0  # log10
EXPLODING = 3.0
# Median over layers of log10(|dL/dW_qk| / |dL/dW_vo|), below which attention cannot learn what to compare. GPT-2's
# small initial weights alone give -2.2, and recover.
DEAD_QK = -3.0
# Median over the upper half of the stream of act rank, over that of the embedding's output.
COLLAPSED = 1e-3
DISTINCT = 1e-2  # least act rank of an embedding's output whose tokens differ
# Act rank of the stream entering a block below which the gradients of Q and K are rounding error, by compute dtype:
# they are differences between tokens, of second order in act rank (measured: docs/verdict.md).
ALIKE_TO_ROUNDING = {"float64": 1e-7, "float32": 3e-3, "bfloat16": 3e-2}

# Plain names of the states that are not healthy, for readers who do not know these words yet.
PLAIN = {
    "vanishing": "gradient fades",
    "exploding": "gradient blows up",
    "dead_qk": "starved attention",
    "collapsed": "tokens alike",
    "unstable": "loss jumps",
    "not_learning": "loss stands still",
}


def with_plain_name(state: str) -> str:
    """Returns a state with its plain name, `dead_qk (starved attention)`, if it has one."""
    return f"{state} ({PLAIN[state]})" if state in PLAIN else state


class Verdict(NamedTuple):
    """Verdict on a pass or a run.

    `first_bad_layer` counts from 0. It is the bad layer nearest to the loss, or for collapsed tokens to the embedding.
    """

    state: str
    ratio: float | None  # |delta_0| / |delta_L|; None outside the range of a float
    log10_ratio: float | None
    per_layer_gain: float | None  # exp(-slope of ln|delta_l| over l); None outside the range of a float
    qk_share: float | None  # median over layers of |dL/d(W_q, W_k)| / |dL/d(W_v, W_o)|
    first_bad_layer: int | None
    why: str
    log10_gain: float | None = None  # of per_layer_gain
    rank_left: float | None = None  # median over the upper half of the stream of act rank, over that at its start
    qk_rounded: int = 0  # blocks whose gradients of Q and K are rounding error, which makes qk_share an upper bound
    advice: str | None = None  # what to try (train/gradflow/advice.py); None for a healthy run

    def as_json(self) -> dict[str, Any]:
        """Returns the object of docs/probe.schema.json, with the gain extrapolated to 100 layers."""
        hundred = None if self.log10_gain is None else 100.0 * self.log10_gain
        return {
            "state": self.state,
            "ratio": self.ratio,
            "log10_ratio": self.log10_ratio,
            "per_layer_gain": self.per_layer_gain,
            "gain_at_100": None if hundred is None else float_of(hundred),
            "log10_gain_at_100": hundred,
            "qk_share": self.qk_share,
            "qk_rounded": self.qk_rounded,
            "rank_left": self.rank_left,
            "first_bad_layer": self.first_bad_layer,
            "why": self.why,
            "try": self.advice,
        }


def log10_gain(delta_log10: np.ndarray) -> float:
    """Returns log10 of the factor by which delta changes on its way down through a block: minus a least-squares slope.

    delta_log10: [L+1], finite. Negative: vanishing; positive: exploding.
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
    """Returns the verdict on one backward pass.

    delta_log10: log10|delta_l| [L+1], -inf for an exact zero. grad_log10: log10 Frobenius norms [L] by tag, of which
    attn_q, attn_k, attn_v and attn_o are used if present. doubt: zeros may have underflowed (`underflows` in
    train/gradflow/delta.py) and are left out of the share of Q and K. rms, rank: those of the stream [L+1]; without
    `rank` no pass is collapsed. dtype: compute dtype of the pass.
    """
    if doubt:
        grad_log10 = {name: np.where(np.isneginf(logs), np.nan, logs) for name, logs in grad_log10.items()}
    alike = None  # median of act rank over l > L/2, relative to l = 0, unless the embeddings are alike themselves
    if rank is not None:
        rank = rank.astype(np.float64)  # the dtype of a log
        if np.isfinite(rank).all() and rank[0] >= DISTINCT:
            alike = float(np.median(rank[(rank.size - 1) // 2 + 1 :]) / rank[0])
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
    qk_shares = qk_share(grad_log10)
    comparable = qk_shares[~np.isnan(qk_shares)]
    middle = float(np.median(comparable)) if comparable.size else math.nan
    share = None if math.isnan(middle) else float_or_zero(middle)
    rounded = 0 if rank is None else int(np.sum(qk_rounded(rank, dtype)[: qk_shares.size]))
    fall = f"|delta| at the first block is {power(ratio)} times that at the last, {power(gain)} a layer"

    def verdict(state: str, bad: int | None, why: str) -> Verdict:
        return Verdict(state, float_of(ratio), ratio, float_of(gain), share, bad, why, gain, alike, rounded)

    hundred = f" ({power(100 * gain)} in a hundred)"
    if ratio < VANISHING:
        return verdict("vanishing", _last(delta_log10[:-1] - delta_log10[-1] < VANISHING), fall + hundred + stream)
    if ratio > EXPLODING:
        return verdict("exploding", _last(delta_log10[:-1] - delta_log10[-1] > EXPLODING), fall + hundred + stream)
    collapsed = alike is not None and alike < COLLAPSED
    if middle < DEAD_QK:
        how = "exactly zero, unlike" if middle == -math.inf else f"{'at most ' * bool(rounded)}{power(middle)} times"
        why = f"delta arrives ({fall}), but the gradients of Q and K are {how} those of V and O"
        if rounded:
            why += (
                f" (in {rounded} of {qk_shares.size} blocks they are {dtype}'s rounding, for tokens that are so alike)"
            )
        why += f"; the tokens have become alike (act rank {alike:.2g} of the input's)" if collapsed else ""
        return verdict("dead_qk", _last(qk_shares < DEAD_QK), why)
    if collapsed:
        assert alike is not None and rank is not None
        why = f"delta arrives ({fall}), but the tokens have become alike: in the upper half of the stream act rank is "
        lowest = int(np.flatnonzero(rank < COLLAPSED * rank[0])[0]) - 1  # block whose output tokens are alike
        return verdict("collapsed", lowest, f"{why}{power(math.log10(alike)) if alike else 0} of the input's")
    return verdict("healthy", None, fall)


def mean_parts(shares: Mapping[str, Sequence[float | None]]) -> str:
    """Returns the part of a dead_qk sentence about the mean parts of the gradients of V and K: shares of their norms,
    median over blocks, from the readings `grad_mean/mean` [L] by tag.

    >>> mean_parts({"attn_v": [0.9, 1.0, None], "attn_k": [1e-5, 2e-5, None]})
    'the means over tokens make 95 % of the gradient of V, and 0 % of that of K'
    >>> mean_parts({"attn_v": [0.9], "attn_k": [None]})
    'the means over tokens make 90 % of the gradient of V, and K has none'
    """
    v, k = (np.array([share for share in shares[tag] if share is not None]) for tag in ("attn_v", "attn_k"))
    of_v = f"{100 * np.median(v):.0f} % of the gradient of V" if v.size else "no gradient of V"
    return f"the means over tokens make {of_v}, and " + (
        f"{100 * np.median(k):.0f} % of that of K" if k.size else "K has none"
    )


def over_run(
    first: Verdict, last: Verdict, last_step: int, history: LossHistory | None = None, warmup: int = 0
) -> Verdict:
    """Returns the verdict on a run, from its first and last watched steps and its losses.

    Causes take precedence over consequences:
    1. A gradient that does not flow from the start, unless the run recovered (rezero begins with dead attention). Its
       later states are what an optimizer that ignores the gradient's scale made of it.
    2. Unstable losses, which may leave weights of any kind behind.
    3. A gradient flow that broke during training.
    4. No learning although all of the above is healthy.
    """
    unstable = None if history is None else instability(history)
    if first.state != "healthy" and last.state != "healthy":
        spikes = f"; {unstable}" if unstable else ""
        if first.state == last.state:
            return last._replace(why=last.why + spikes)
        return first._replace(
            why=f"from the start {first.why}; by step {last_step} it is {last.state}: {last.why}{spikes}"
        )
    if unstable:
        then = "" if last.state == "healthy" else f"; by step {last_step} it is {last.state}: {last.why}"
        return last._replace(state="unstable", why=unstable + _moved(history) + then)
    if last.state != "healthy":
        return last._replace(why=f"healthy at the start; by step {last_step} it is {last.state}: {last.why}")
    if history is not None and (stuck := standstill(history, warmup)):
        return last._replace(state="not_learning", why=f"{stuck}, though delta arrives{_moved(history)}")
    began = "" if first.state == "healthy" else f"; at the start it was {first.state}: {first.why}"
    spike = None if history is None else past_spike(history)
    return last._replace(why=last.why + began + (f"; {spike}" if spike else ""))


def _moved(history: LossHistory | None) -> str:
    if history is None or history.update is None:
        return ""
    return f"; a step moves the weights by {power(history.update)} of their size"


def qk_share(grad_log10: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns log10 of |(dL/dW_q, dL/dW_k)| / |(dL/dW_v, dL/dW_o)| for each layer, [L]; empty without these tags."""
    if not {"attn_q", "attn_k", "attn_v", "attn_o"} <= grad_log10.keys():
        return np.zeros(0)

    def joint_norm(*names: str) -> np.ndarray:
        logs = np.stack([grad_log10[name] for name in names])
        top = np.max(logs, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.isneginf(top), top, top + 0.5 * np.log10(np.sum(10.0 ** (2 * (logs - top)), axis=0)))

    below, above = joint_norm("attn_q", "attn_k"), joint_norm("attn_v", "attn_o")
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(below) & np.isneginf(above), np.nan, below - above)


def qk_rounded(rank: np.ndarray, dtype: str) -> np.ndarray:
    """Returns a mask [..., L] of the blocks whose gradients of Q and K are rounding error, far above the true ones.

    rank: that of the stream, [..., L+1].
    """
    return rank[..., :-1] < ALIKE_TO_ROUNDING[dtype]


def in_range(log10: Any) -> Any:
    """Returns true where 10^log10, of a float or an array, is within a float64's normal range."""
    return (log10 > -307) & (log10 < 308)


def float_of(log10: float) -> float | None:
    """Returns 10^log10, or None outside a float64's normal range, so that no nonzero value is reported as 0."""
    return float(10.0**log10) if in_range(log10) else None


def float_or_zero(log10: float) -> float | None:
    """Returns 10^log10 as `float_of` does, and 0.0 for -inf, the logarithm of an exact zero.

    >>> float_or_zero(-math.inf), float_or_zero(0.0), float_or_zero(-400.0)
    (0.0, 1.0, None)
    """
    return 0.0 if log10 == -math.inf else float_of(log10)


def _last(bad: np.ndarray) -> int | None:
    """Returns the bad layer nearest to the loss, where delta comes from."""
    layers = np.flatnonzero(bad)
    return int(layers[-1]) if layers.size else None


def _layer(depth: int, delta_log10: np.ndarray) -> int:
    return min(int(depth), delta_log10.size - 2)
