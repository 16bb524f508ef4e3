"""Advice for a verdict: one sentence that names config keys to try, chosen by state and config."""

from ..config.schema import RunConfig
from ..config.yaml import show

# log10 of the update ratio |dW| / |W| a step. A run that does not learn hardly moves its weights below STILL and
# replaces much of them in a step above WILD. Runs of docs/verdict.md that learn end between 10^-5.8 and 10^-2.9.
STILL, USUAL, WILD = -6.0, -3.0, -2.0


def advice_for(state: str, config: RunConfig, update: float | None = None) -> str | None:
    """Returns advice for a verdict's state, None if healthy. `update`: median of log10(|dW| / |W|), if logged."""
    if state == "healthy":
        return None
    return _BY_STATE[state](config, update)


def _vanishing(config: RunConfig, update: float | None) -> str:
    model = config.model
    if _bare(config):
        return f"{_skip(config)}: a skip passes delta on unchanged"
    if abs(model.skip_scale) < 1 and model.rule.additive:
        return f"model.skip_scale: 1 (it is {show(model.skip_scale)}, and multiplies delta twice a block)"
    if model.norm == "none":
        return "model.norm: rms, whose backward pass divides by the stream's size"
    if model.residual.rule == "post_ln":
        return "model.residual: pre_ln or deepnorm: in post_ln every skip goes through a norm"
    if model.residual.rule == "highway":
        return "a lower model.residual.bias, whose gates carry more of the stream, or model.residual: pre_ln"
    if model.init == "normal":
        return f"model.init: xavier, or a larger model.init_std (it is {show(model.init_std)})"
    other = "" if model.residual.rule == "pre_ln" else ", or model.residual: pre_ln"
    return f"fewer model.layers (there are {model.layers}){other}"


def _exploding(config: RunConfig, update: float | None) -> str:
    model = config.model
    if abs(model.skip_scale) > 1 and model.rule.additive:
        return f"model.skip_scale: 1 (it is {show(model.skip_scale)}, and multiplies delta twice a block)"
    if model.norm == "none":
        return "model.norm: rms, or model.residual: rezero or skipinit, whose branches begin at 0"
    if model.init == "normal":
        return f"model.init: xavier; or {_slower(config)} if it began while training"
    other = "deepnorm" if model.residual.rule == "gpt2_scaled" else "gpt2_scaled"
    return f"model.residual: {other}; or {_slower(config)} if it began while training"


def _dead_qk(config: RunConfig, update: float | None) -> str:
    model = config.model
    if _bare(config):
        return f"{_skip(config)}: without a skip every attention makes the tokens more alike"
    if model.residual.rule == "value_skipinit":
        return "a smaller model.init_gain.attn_o and mlp_out, and smaller optimizer.lr_factors for the blocks"
    if model.residual.rule in ("post_ln", "highway"):
        return f"model.residual: pre_ln, or fewer model.layers (there are {model.layers})"
    if not model.qk_norm:
        return "model.qk_norm: true, or larger model.init_gain.attn_q and attn_k: W_q's gradient is proportional to W_k"
    return f"larger model.init_gain.attn_v and attn_o, or {_slower(config)}"


def _collapsed(config: RunConfig, update: float | None) -> str:
    if _bare(config):
        return f"{_skip(config)}: without a skip every attention makes the tokens more alike"
    if config.model.residual.rule == "post_ln":
        return "model.residual: pre_ln, in which the embedding reaches every block"
    warmup = f"a longer optimizer.warmup (it is {config.optimizer.warmup})"
    return f"{_slower(config)}, or {warmup}: what all tokens share drowns what they differ in"


def _unstable(config: RunConfig, update: float | None) -> str:
    optimizer, warmup = config.optimizer, max(100, config.train.steps // 20)
    steps = [_slower(config)]
    if optimizer.clip is None:
        steps.append("optimizer.clip: 1.0")
    if optimizer.warmup < warmup and config.train.steps > 2 * warmup:
        steps.append(f"optimizer.warmup: {warmup} (it is {optimizer.warmup})")
    if not config.model.qk_norm:
        steps.append("model.qk_norm: true")
    return ", ".join(steps)


def _not_learning(config: RunConfig, update: float | None) -> str:
    optimizer = config.optimizer
    if optimizer.freeze:
        return f"optimizer.freeze: [] (it holds {', '.join(optimizer.freeze)})"
    if update is None or update < STILL:
        higher = min(10.0 * optimizer.lr if update is None else optimizer.lr * 10 ** (USUAL - update), 1.0) or 1e-3
        return f"optimizer.lr: {show(_round(higher))} (it is {show(optimizer.lr)})"
    if update > WILD:
        return _slower(config)
    return f"longer train.steps (there are {config.train.steps}), {_slower(config)}, or a look at the data"


_BY_STATE = {
    "vanishing": _vanishing,
    "exploding": _exploding,
    "dead_qk": _dead_qk,
    "collapsed": _collapsed,
    "unstable": _unstable,
    "not_learning": _not_learning,
}


def _bare(config: RunConfig) -> bool:
    """True if no skip path goes past the branches."""
    model = config.model
    return model.residual.rule == "none" or (model.skip_scale == 0 and model.rule.additive)


def _skip(config: RunConfig) -> str:
    if config.model.residual.rule == "none":
        return "model.residual: pre_ln"
    return "model.skip_scale: 1 (it is 0)"


def _slower(config: RunConfig) -> str:
    optimizer = config.optimizer
    lower = _round(optimizer.lr / 3)
    end = f", optimizer.min_lr: {show(_round(lower / 10))}" if lower < optimizer.min_lr else ""
    return f"optimizer.lr: {show(lower)} (it is {show(optimizer.lr)}){end}"


def _round(rate: float) -> float:
    """Rounds to one significant digit.

    >>> _round(0.01 / 3), _round(2.9e-4)
    (0.003, 0.0003)
    """
    return float(f"{rate:.0e}")
