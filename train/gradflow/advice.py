"""Advice for a verdict: one sentence that names config keys to try, chosen by state and config."""

import math

from ..config.schema import RunConfig
from ..config.yaml import show

# log10 of the update ratio |dW| / |W| a step. A run that does not learn hardly moves its weights below STILL and
# replaces much of them in a step above WILD. Runs of docs/verdict.md that learn end between 10^-5.8 and 10^-2.9.
STILL, USUAL, WILD = -6.0, -3.0, -2.0
# Rates at which the optimizers train a small transformer (configs/optimizers.yaml).
RATES = {"sgd": 0.5, "momentum": 0.1, "nesterov": 0.1, "adam": 3e-3, "adamw": 3e-3, "lion": 1e-3, "rmsprop": 1e-3}
RATES |= {"adafactor": 3e-2, "adagrad": 3e-2, "muon": 1e-2}


def advice_for(state: str, config: RunConfig, update: float | None = None) -> str | None:
    """Returns advice for a verdict's state, None if healthy. `update`: median of log10(|dW| / |W|), if logged."""
    model, optimizer, rule = config.model, config.optimizer, config.model.residual.rule
    rate = RATES.get(optimizer.name)  # None: the user's own optimizer
    lower = _round(min(optimizer.lr / 3, rate or math.inf))
    end = f", optimizer.min_lr: {show(_round(lower / 10))}" if lower < optimizer.min_lr else ""
    slower = f"optimizer.lr: {show(lower)} (it is {show(optimizer.lr)}){end}"
    scale = f"model.skip_scale: 1 (it is {show(model.skip_scale)}, and multiplies delta twice a block)"
    no_skip = rule == "none" or (model.skip_scale == 0 and model.rule.additive)
    skip = "model.residual: pre_ln" if rule == "none" else "model.skip_scale: 1 (it is 0)"
    match state:
        case "vanishing" if no_skip:
            return f"{skip}: a skip passes delta on unchanged"
        case "vanishing" if abs(model.skip_scale) < 1 and model.rule.additive:
            return scale
        case "vanishing" if model.norm == "none":
            return "model.norm: rms, whose backward pass divides by the stream's size"
        case "vanishing" if rule == "post_ln":
            return "model.residual: pre_ln or deepnorm: in post_ln every skip goes through a norm"
        case "vanishing" if rule == "highway":
            return "a lower model.residual.bias, whose gates carry more of the stream, or model.residual: pre_ln"
        case "vanishing" if model.init == "normal":
            return f"model.init: xavier, or a larger model.init_std (it is {show(model.init_std)})"
        case "vanishing":
            other = "" if rule == "pre_ln" else ", or model.residual: pre_ln"
            return f"fewer model.layers (there are {model.layers}){other}"
        case "exploding" if abs(model.skip_scale) > 1 and model.rule.additive:
            return scale
        case "exploding" if model.norm == "none":
            return "model.norm: rms, or model.residual: rezero or skipinit, whose branches begin at 0"
        case "exploding" if model.init == "normal":
            return f"model.init: xavier; or {slower} if it began while training"
        case "exploding":
            other = "deepnorm" if rule == "gpt2_scaled" else "gpt2_scaled"
            return f"model.residual: {other}; or {slower} if it began while training"
        case "dead_qk" | "collapsed" if no_skip:
            return f"{skip}: without a skip every attention makes the tokens more alike"
        case "dead_qk" | "collapsed" if abs(model.skip_scale) < 1 and model.rule.additive:
            return scale
        case "dead_qk" if rule == "value_skipinit":
            return "a smaller model.init_gain.attn_o and mlp_out, and smaller optimizer.lr_factors for the blocks"
        case "dead_qk" if rule in ("post_ln", "highway"):
            return f"model.residual: pre_ln, or fewer model.layers (there are {model.layers})"
        case "dead_qk" if not model.qk_norm:
            larger = "larger model.init_gain.attn_q and attn_k: W_q's gradient is proportional to W_k"
            return f"model.qk_norm: true, or {larger}"
        case "dead_qk":
            return f"larger model.init_gain.attn_v and attn_o, or {slower}"
        case "collapsed" if rule == "post_ln":
            return "model.residual: pre_ln, in which the embedding reaches every block"
        case "collapsed":
            warmup = f"a longer optimizer.warmup (it is {optimizer.warmup})"
            return f"{slower}, or {warmup}: what all tokens share drowns what they differ in"
        case "unstable":
            steps, warmup = [slower], max(100, config.train.steps // 20)
            if optimizer.clip is None:
                steps.append("optimizer.clip: 1.0")
            if optimizer.warmup < warmup and config.train.steps > 2 * warmup:
                steps.append(f"optimizer.warmup: {warmup} (it is {optimizer.warmup})")
            if not model.qk_norm:
                steps.append("model.qk_norm: true")
            return ", ".join(steps)
        case "not_learning" if optimizer.freeze:
            return f"optimizer.freeze: [] (it holds {', '.join(optimizer.freeze)})"
        case "not_learning" if update is None or update < STILL:
            higher = optimizer.lr * (10.0 if update is None else 10 ** (USUAL - update)) or 1e-3
            higher = min(higher, 10 * (rate or 0.1))
            return f"optimizer.lr: {show(_round(higher))} (it is {show(optimizer.lr)})"
        case "not_learning" if update is not None and update > WILD:
            return slower
        case "not_learning":
            return f"longer train.steps (there are {config.train.steps}), {slower}, or a look at the data"
    return None


def _round(rate: float) -> float:
    """Rounds to one significant digit.

    >>> _round(0.01 / 3), _round(2.9e-4)
    (0.003, 0.0003)
    """
    return float(f"{rate:.0e}")
