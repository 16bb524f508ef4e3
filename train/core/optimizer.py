"""Optax transformations, built anew inside every traced step from traced hyperparameters.

(inject_hyperparams would put them into checkpoints and let a schedule overwrite a variant's own rate.)
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from train.config.schema import OptimizerConfig
from train.core.schedule import learning_rate
from train.gradflow.norms import Norm

Numbers = Mapping[str, Any]  # traced numbers of the optimizer section by key


class HParams(NamedTuple):
    """Numbers that variants of one program may differ in: scalars, or [variants] when a group is vmapped.

    `model` and `optimizer` hold the traced numbers of those sections by key (model/traced.py).
    """

    seed: Any
    model: dict[str, Any]
    optimizer: dict[str, Any]


def _decayed(params: Any) -> Any:
    """True for matrices and tables; not for gains, biases and a residual rule's scalars. By path and never by ndim:
    stacked gains have two axes."""

    def is_matrix(path: tuple, _: Any) -> bool:
        return str(path[-1].key) in ("kernel", "embed", "positions", "head")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _adamw(config: OptimizerConfig, hp: Numbers, lr: Array) -> optax.GradientTransformation:
    beta1, beta2 = hp["betas"]
    return optax.adamw(lr, beta1, beta2, hp["eps"], weight_decay=hp["weight_decay"], mask=_decayed)


def _sgd(config: OptimizerConfig, hp: Numbers, lr: Array) -> optax.GradientTransformation:
    del config
    return optax.chain(optax.add_decayed_weights(hp["weight_decay"], _decayed), optax.scale_by_learning_rate(lr))


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, Numbers, Array], optax.GradientTransformation]] = {
    "adamw": _adamw,  # Loshchilov & Hutter 2019, 1711.05101, alg. 2
    "sgd": _sgd,
}


def transformation(
    config: OptimizerConfig, hp: Numbers, step: Int[Array, ""], steps: int
) -> optax.GradientTransformation:
    """The update rule at `step`."""
    return OPTIMIZERS[config.name](config, hp, rate(config, hp, step, steps))


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
