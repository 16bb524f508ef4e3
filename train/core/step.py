"""One optimizer step, with or without measurements, as a pure function of (state, hyperparameters, batch)."""

import dataclasses
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from data.source import Batch
from model.network import Network, Params
from model.residual import without_skip

from ..config.schema import RunConfig
from ..gradflow.delta import Backward, Flow, backward, flow, mean_of_microbatches, true_gradients
from ..gradflow.norms import Norm, Norms, matrix_norms, parameter_norms, total_norm
from .batch import BatchInput, batch_of, micro, micro_total
from .clipping import clipped
from .finite import finite_by_norm, sound
from .loss import tapped_loss
from .optimizer import HParams, averaged, rate, transformation
from .patterns import unfrozen
from .state import State
from .update_rules import Numbers


class Metrics(NamedTuple):
    """Scalars of every step."""

    loss: Float[Array, ""]
    lr: Float[Array, ""]
    finite: Bool[Array, ""]  # the loss and the gradient; under `on_nonfinite: skip` the state after the update too


class StepStats(NamedTuple):
    """Measurements at the parameters that a step starts from; `update` is what the optimizer then added to them."""

    flow: Flow
    without: Flow | None  # the same weights, batch and dropout with skip scale 0 (no draws under stochastic_depth)
    weight: Norms  # [L] a matrix, and the whole block as "layer"
    update: Norms
    grad_global: Norm  # before clipping
    clip_factor: Float[Array, ""]


def train_step(
    network: Network, config: RunConfig, state: State, hp: HParams, batch_input: BatchInput, watched: bool
) -> tuple[State, Metrics, StepStats | None]:
    """Takes one step on one batch. `network`, `config` and `watched` are static.

    With `train.on_nonfinite: skip` a non-finite step changes nothing but the step count.
    """
    key, batch = dropout_key(config, hp, state.step), batch_of(batch_input)
    if watched:
        loss, result = tapped(network, config, state.params, batch, hp.model, key)
        grads, measured_flow = true_gradients(result), flow(result)
    else:
        loss, grads = untapped(network, config, state.params, batch, hp.model, key)
        result = measured_flow = None
    # The same sums in the same order, watched or not, so that watching changes training by no more than rounding.
    norm = total_norm(parameter_norms(grads) if measured_flow is None else measured_flow.grad, grads)
    trained = unfrozen(config.optimizer, grads)
    trained_norm = total_norm(parameter_norms(trained), trained) if config.optimizer.freeze else norm
    # Checked before clipping, which would turn an infinite entry into nan or hide it. Norms have unlimited range, so a
    # norm is finite if and only if every entry is. Tapped gradients have unlimited range too; true ones may overflow.
    if result is None:
        finite = jnp.isfinite(trained_norm.mantissa)
    else:
        finite = finite_by_norm(trained_norm, lambda: unfrozen(config.optimizer, true_gradients(result)))
    finite = jnp.isfinite(loss) & finite
    trained, factor = clipped(trained, state.params, trained_norm, hp.optimizer)
    # optax's adamw computes bias corrections across dtypes, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        optimizer = transformation(config.optimizer, hp.optimizer, state.step, config.train.steps, config.model)
        updates: Any
        updates, optimizer_state = optimizer.update(trained, state.optimizer, state.params)
    params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)
    count = state.step + 1
    ema = None if state.ema is None else averaged(state.ema, params, hp.optimizer["ema"], count)
    after = State(params, optimizer_state, count, ema)
    if config.train.on_nonfinite == "skip":
        finite = finite & sound(after)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)._replace(step=count)
    metrics = Metrics(loss, rate(config.optimizer, hp.optimizer, state.step, config.train.steps), finite)
    stats = None
    if measured_flow is not None:
        without = None
        if config.watch.counterfactual and config.model.rule.additive:
            # Watched steps are rare, so a short compile matters more than a fast loop over blocks.
            rolled = dataclasses.replace(network, unroll=1)
            without_key = None if config.model.rule.draws else key
            without = flow(tapped(rolled, config, state.params, batch, without_skip(hp.model), without_key)[1])
        stats = StepStats(
            measured_flow,
            without,
            matrix_norms(state.params["blocks"]),
            matrix_norms(updates["blocks"]),
            norm,
            factor,
        )
    return after, metrics, stats


def dropout_key(config: RunConfig, hp: HParams, step: Int[Array, ""]) -> Array | None:
    """Returns the key of a step's dropout, a pure function of (seed, step); None when nothing is dropped."""
    if not config.model.drops:
        return None
    base = jax.random.fold_in(jax.random.key(hp.seed), zlib.crc32(b"dropout"))
    return jax.random.fold_in(base, step)


def tapped(
    network: Network, config: RunConfig, params: Params, batch: Batch, numbers: Numbers, key: Array | None
) -> tuple[Array, Backward]:
    """Returns the loss of a batch with the gradients and delta of a tapped backward pass, for watched steps."""
    depth = config.model.layers
    if config.optimizer.accumulate == 1:
        loss, result, _ = backward(tapped_loss(network, batch, numbers, key), params, depth)
        return loss, result
    total = micro_total(batch, config.optimizer.accumulate)

    def one_part(_, part):
        loss, result, _ = backward(tapped_loss(network, part[0], numbers, part[1], total), params, depth)
        return None, (loss, result)

    _, (losses, results) = jax.lax.scan(one_part, None, micro(config.optimizer.accumulate, batch, key))
    return jnp.mean(losses), mean_of_microbatches(results)


def untapped(
    network: Network, config: RunConfig, params: Params, batch: Batch, numbers: Numbers, key: Array | None
) -> tuple[Array, Params]:
    """Returns the loss of a batch and its gradients without taps, for all other steps."""
    total = micro_total(batch, config.optimizer.accumulate)

    def one_batch(part: Batch, part_key: Array | None) -> tuple[Array, Params]:
        loss = tapped_loss(network, part, numbers, part_key, total)
        return jax.value_and_grad(lambda p: loss(p, None, None)[0])(params)  # pyright: ignore[reportArgumentType]

    if config.optimizer.accumulate == 1:
        return one_batch(batch, key)

    def add_part(accumulated, part):
        return jax.tree.map(jnp.add, accumulated, one_batch(*part)), None

    parts, keys = micro(config.optimizer.accumulate, batch, key)
    first = jax.tree.map(lambda leaf: leaf[0], (parts, keys))
    zero = jax.eval_shape(one_batch, *first)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), zero)
    summed, _ = jax.lax.scan(add_part, zero, (parts, keys))
    return jax.tree.map(lambda leaf: leaf / config.optimizer.accumulate, summed)
