"""The verdict on a run once more, from nothing but what it logged: with today's rules on yesterday's runs."""

import numpy as np
from jaxtyping import Float64

from ..gradflow.loss_history import loss_history_of
from ..gradflow.verdict import Verdict, judge, over_run
from .read import Run, depth_series


def rejudged(run: Run) -> Verdict | None:
    """What `verdict` in summary.json would be today, without what to try; None when no step was watched.

    Three things are not in a log: what `train.dtype: auto` was (here float32), whether a zero may only be too small for
    its dtype (here all are in earnest), and the spikes of a run that knew no `loss/spike` (none are found in it).
    """
    steps, _ = depth_series(run, "act/rms")
    if not steps.size:
        return None
    first, last = (_at(run, int(step)) for step in (steps[0], steps[-1]))
    return over_run(first, last, int(steps[-1]), loss_history_of(run.steps), run.config["optimizer"]["warmup"])


def _at(run: Run, step: int) -> Verdict:
    """The verdict on one watched step."""
    grads = {name: _depths(run, step, "grad/norm_log10", name) for name in ("attn_q", "attn_k", "attn_v", "attn_o")}
    rms, rank = (_depths(run, step, f"act/{name}") for name in ("rms", "rank"))
    dtype = run.config["train"]["dtype"]
    dtype = "float32" if dtype == "auto" else dtype
    return judge(_depths(run, step, "delta/norm_log10"), grads, False, rms, rank, dtype)


def _depths(run: Run, step: int, metric: str, leaf: str = "") -> Float64[np.ndarray, " layers"]:
    """A metric of all depths at a step: -inf where the log holds null, which is a logarithm of zero."""
    suffix = f"/{leaf}" if leaf else ""
    count = int(run.config["model"]["layers"]) + (not leaf)
    values = np.full(count, -np.inf)
    for depth in range(count):
        at, logged = run.steps.get(f"{metric}/layer_{depth:03d}{suffix}", (np.zeros(0), np.zeros(0)))
        values[depth] = next(iter(logged[at == step]), -np.inf)
    return values
