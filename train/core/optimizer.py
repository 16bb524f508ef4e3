"""Optax transformations, built anew inside every traced step from traced hyperparameters.

(inject_hyperparams would put them into checkpoints and let a schedule overwrite a variant's own rate.)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from train.config.schema import OptimizerConfig
from train.core.paths import by_path, is_matrix
from train.core.rules import RULES, Numbers
from train.core.schedule import learning_rate
from train.gradflow.norms import Norm


class HParams(NamedTuple):
    """Numbers that variants of one program may differ in: scalars, or [variants] when a group is vmapped.

    `model` and `optimizer` hold the traced numbers of those sections by key (model/traced.py).
    """

    seed: Any
    model: dict[str, Any]
    optimizer: dict[str, Any]


def decayed(params: Any) -> Any:
    """True for the parameters that weight decay pulls at."""
    return by_path(lambda path, _: is_matrix(path), params)


def transformation(
    config: OptimizerConfig, hp: Numbers, step: Int[Array, ""], steps: int
) -> optax.GradientTransformation:
    """The update rule at `step`; the gradient it is given is clipped already."""
    direction = RULES[config.name](hp)
    decay = optax.add_decayed_weights(hp["weight_decay"], decayed)
    coupled = config.decay == "l2" or (config.decay == "auto" and config.name == "adam")
    parts = [decay, direction] if coupled else [direction, decay]
    return optax.chain(*parts, optax.scale_by_learning_rate(rate(config, hp, step, steps)))


def rate(config: OptimizerConfig, hp: Numbers, step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    return learning_rate(config, jnp.asarray(hp["lr"]), jnp.asarray(hp["min_lr"]), step, steps)


def clip_factor(norm: Norm, clip: Any) -> Float[Array, ""]:
    """min(1, clip / norm), float32 (Pascanu et al. 2013, 1211.5063); 1 for a zero or non-finite norm.

    A non-finite gradient must stay visible, not be scaled into something that looks healthy.
    """
    if clip is None:
        return jnp.ones((), jnp.float32)
    log2 = jnp.log2(jnp.asarray(clip, jnp.float32)) - jnp.log2(norm.mantissa.astype(jnp.float32)) - norm.exponent
    return jnp.where((norm.mantissa > 0) & jnp.isfinite(norm.mantissa), jnp.exp2(jnp.minimum(log2, 0.0)), 1.0)
