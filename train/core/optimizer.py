"""Optax transformations, built inside every traced step from traced hyperparameters.

(inject_hyperparams would put them into checkpoints and let a schedule overwrite a variant's own rate.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from data import one_line
from model.config import ModelConfig
from model.residual import rule_of

from ..config.optimizers import OPTIMIZERS
from ..config.schema import OptimizerConfig
from ..errors import UserError
from .mup import by_depth, by_width
from .patterns import decayed, factors, unfrozen, unmatched
from .schedule import learning_rate
from .update_rules import Numbers

# User-defined optimizers by name (`module:function`), which train/run/experiment.py imports.
FUNCTIONS: dict[str, Callable[..., Any]] = {}


class HParams(NamedTuple):
    """Numbers that variants of one program may differ in: scalars, or [variants] when a group is vmapped.

    `model` and `optimizer` hold the traced numbers of those sections by key (model/traced.py).
    """

    seed: Any
    model: dict[str, Any]
    optimizer: dict[str, Any]


def transformation(
    config: OptimizerConfig, hp: Numbers, step: Int[Array, ""], steps: int, model: ModelConfig | None = None
) -> optax.GradientTransformation:
    """Returns the update rule at `step`, which expects a gradient that is already clipped. Raises UserError.

    `model` gives the width, to the built-in rules, and the depth of the parameters; None: the standard parametrization.
    """
    lr = rate(config, hp, step, steps)
    deep = [] if model is None or (factor := rule_of(model).gradient_factor) == 1 else [by_depth(factor)]
    if ":" in config.name:
        parts = [*deep, user_rule(config.name, hp, lr)]
    else:
        optimizer = OPTIMIZERS[config.name]
        direction = optimizer.rule()(hp)
        decay = optax.add_decayed_weights(hp["weight_decay"], partial(decayed, config))
        coupled = config.decay == "l2" or (config.decay == "auto" and optimizer.l2)
        wide = [] if model is None or model.width_ratio == 1 else [by_width(config.name, model)]
        parts = [*deep, decay, direction, *wide] if coupled else [*deep, direction, *wide, decay]
        parts.append(optax.scale_by_learning_rate(lr))
    if config.lr_factors:
        parts.append(factors(config, hp))
    if config.freeze:
        parts.append(optax.stateless(lambda updates, _: unfrozen(config, updates)))
    return optax.chain(*parts)


def rate(config: OptimizerConfig, hp: Numbers, step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    return learning_rate(config, jnp.asarray(hp["lr"]), jnp.asarray(hp["min_lr"]), step, steps)


def averaged(ema: Any, params: Any, decay: Any, count: Int[Array, ""]) -> Any:
    """Returns the exponential moving average of the parameters after each of `count` steps, the current one included.

    It is debiased like Adam's averages, so that the initial parameters have no weight: step k of t weighs
    decay^(t - k) (1 - decay) / (1 - decay^t).
    """

    def averaged_leaf(old: Array, new: Array) -> Array:
        d = jnp.asarray(decay, old.dtype)
        share = (1 - d) / -jnp.expm1(count.astype(old.dtype) * jnp.log(d))
        return old + share * (new - old)

    return jax.tree.map(averaged_leaf, ema, params)


def check(config: OptimizerConfig, hp: Numbers, shapes: Any) -> None:
    """Raises UserError if a pattern matches no parameter, or a user-defined rule fails on such parameters."""
    for key, message in unmatched(config, shapes):
        raise UserError(f"optimizer.{key}: {message}")
    if ":" not in config.name:
        return

    def updates_of(params: Any) -> Any:
        rule = transformation(config, hp, jnp.zeros((), jnp.int32), 1)
        return called(config.name, lambda: rule.update(params, rule.init(params), params)[0])

    try:
        with jax.numpy_dtype_promotion("standard"):
            updates = jax.eval_shape(updates_of, shapes)
    except UserError as error:
        raise UserError(f"optimizer.name: {error}") from error
    got, wanted = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (updates, shapes))
    if got != wanted:
        raise UserError(f"optimizer.name: {config.name}: its updates have other shapes than the parameters")


def user_rule(name: str, hp: Numbers, lr: Any) -> optax.GradientTransformation:
    """Returns the transformation of a user-defined rule. Raises UserError.

    hp: traced numbers of the optimizer section. lr: the rate of this step.
    """
    rule = called(name, lambda: FUNCTIONS[name](hp, lr))
    if not isinstance(rule, optax.GradientTransformation):
        raise UserError(f"{name}: expected an optax.GradientTransformation, got {type(rule).__name__}")
    return rule


def called(name: str, function: Callable[[], Any]) -> Any:
    """Returns the result of a call into the user's code; any exception becomes a UserError."""
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}: {one_line(error)}") from error
