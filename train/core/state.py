"""What a run carries: parameters, optimizer state and the step; and the numbers that may differ inside one program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from model.network import Network, Params
from model.residual import skip_scale_of
from train.config.schema import RunConfig
from train.core.optimizer import HParams, transformation


class State(NamedTuple):
    """One variant's training state; leaves gain a leading [variants] axis when a group is vmapped."""

    params: Params
    optimizer: Any
    step: Int[Array, ""]  # optimizer steps done


def initial_state(network: Network, config: RunConfig, hp: HParams) -> State:
    """Run it under jit: the draws are then the same on every platform that has the same XLA."""
    params = network.init(hp.seed, hp.init_std)
    with jax.numpy_dtype_promotion("standard"):
        optimizer = transformation(config.optimizer, hp, jnp.zeros((), jnp.int32), config.train.steps).init(params)
    return State(params, optimizer, jnp.zeros((), jnp.int32))


def hparams_of(config: RunConfig, dtype: Any = "float32") -> HParams:
    """The traced numbers of a config, as numpy scalars."""
    optimizer = config.optimizer
    number = np.dtype(dtype).type
    return HParams(
        seed=np.uint32(config.seed),
        skip_scale=number(skip_scale_of(config.model)),
        init_std=number(config.model.init_std),
        lr=number(optimizer.lr),
        min_lr=number(optimizer.min_lr),
        weight_decay=number(optimizer.weight_decay),
        beta1=number(optimizer.betas[0]),
        beta2=number(optimizer.betas[1]),
        clip=None if optimizer.clip is None else number(optimizer.clip),
    )


def structure_of(config: RunConfig) -> RunConfig:
    """`config` with every traced number set to one constant: equal structures share one compiled program.

    `residual: none` is pre_ln at skip scale 0. `clip: null` stays null, because leaving the clip out is another
    program.
    """
    model: dict[str, Any] = {"skip_scale": 1.0, "init_std": 1.0}
    if config.model.residual == "none":
        model["residual"] = "pre_ln"
    optimizer: dict[str, Any] = {"lr": 1.0, "min_lr": 1.0, "weight_decay": 1.0, "betas": (0.0, 0.0)}
    if config.optimizer.clip is not None:
        optimizer["clip"] = 1.0
    return config.model_copy(
        update={
            "name": "",
            "seed": 0,
            "model": config.model.model_copy(update=model),
            "data": config.data.model_copy(update={"seed": 0}),
            "optimizer": config.optimizer.model_copy(update=optimizer),
        }
    )


def stacked_hparams(hps: list[HParams]) -> HParams:
    """[variants] leaves of a vmapped group."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *hps)


def parameter_count(params: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
