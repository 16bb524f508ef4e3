"""A program's network, its training state (parameters, optimizer state, step) and its traced hyperparameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from data.config import SERVES
from data.source import DataSpec
from model import traced
from model.network import Network, Params
from model.residual import numbers_of, structure_of

from ..config.schema import RunConfig
from ..errors import UserError
from .optimizer import HParams, transformation


def network_of(config: RunConfig, spec: DataSpec, dtype: str, unroll: int = 1) -> Network:
    """Returns the network of a config that computes in `dtype`, with `unroll` blocks a scan iteration.

    Raises UserError when `task.kind` does not fit the data.
    """
    task = config.task.kind or spec.task
    if task not in SERVES.get(spec.task, ()):
        raise UserError(f"task.kind: data.kind {config.data.kind} is for {spec.task}, got {task}")
    # Regression on class labels: the label, as a real number, is the only output.
    outputs = 1 if spec.task != task else spec.outputs
    shape = (spec.vocab_size, spec.context, dtype, unroll, task, outputs, spec.channels, spec.pooled)
    return Network(config.model, *shape, config.train.remat)


class State(NamedTuple):
    """One variant's training state; leaves gain a leading [variants] axis when a group is vmapped."""

    params: Params
    optimizer: Any
    step: Int[Array, ""]  # optimizer steps done
    ema: Params | None = None  # moving average of params


def initial_state(network: Network, config: RunConfig, hp: HParams) -> State:
    """Returns step 0 with freshly drawn parameters. Run under jit, so that draws agree across platforms."""
    return state_at(config, hp, network.init(hp.seed, hp.model))


def state_at(config: RunConfig, hp: HParams, params: Params) -> State:
    """Returns step 0 of a run that starts from these parameters."""
    with jax.numpy_dtype_promotion("standard"):
        start = jnp.zeros((), jnp.int32)
        rule = transformation(config.optimizer, hp.optimizer, start, config.train.steps, config.model)
        optimizer = rule.init(params)
    ema = None if config.optimizer.ema is None else params
    return State(params, optimizer, jnp.zeros((), jnp.int32), ema)


def hparams_of(config: RunConfig, dtype: Any = "float32") -> HParams:
    """Returns the traced numbers of a config as numpy scalars of `dtype`."""
    number = np.dtype(dtype).type
    # The loss's numbers travel with the model's: the forward pass has them all in one place.
    task = {f"task.{key}": value for key, value in traced.numbers(config.task).items()}
    model, optimizer = numbers_of(config.model) | task, traced.numbers(config.optimizer)
    return HParams(np.uint32(config.seed), jax.tree.map(number, model), jax.tree.map(number, optimizer))


def program_structure(config: RunConfig) -> RunConfig:
    """Returns `config` without name, seeds and traced numbers: configs of equal structure share a compiled program."""
    return config.model_copy(
        update={
            "name": "",
            "seed": 0,
            "model": structure_of(config.model),
            "data": config.data.model_copy(update={"seed": 0}),
            "task": traced.structure(config.task),
            "optimizer": traced.structure(config.optimizer),
        }
    )


def stacked_hparams(hps: list[HParams]) -> HParams:
    """Stacks the hyperparameters of a vmapped group along a leading [variants] axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *hps)


def parameter_count(params: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
