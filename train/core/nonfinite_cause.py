"""Where a step that is not finite went wrong first: forwards, backwards, or in the update.

The step is taken apart as training takes it: the same dropout, micro-batches and dtype. Only the two looks inside a
block, at the attention's scores and at the MLP's hidden units, are without dropout.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from data.source import Batch
from model.network import Network

from ..config.schema import RunConfig
from ..gradflow.delta import true_gradients
from ..gradflow.norms import Norm, flat, log10, named
from ..gradflow.per_block import observed
from ..gradflow.verdict import power
from ..text import layer
from .batch import BatchInput, batch_of
from .finite import all_finite, sound
from .optimizer import HParams
from .state import State
from .step import dropout_key, micro, plain, tapped, train_step

Flags = Mapping[str, Any]  # "blocks" -> tag of a matrix -> bool [L]; other entries of the parameters -> bool []


class Autopsy(NamedTuple):
    """One step, from the state before it. A flag is true where all is finite."""

    batch: Bool[Array, ""]
    weights: Flags
    loss: Float[Array, ""]
    stream: Float[Array, "L+1"]  # rms of x_l; x_L leaves the last block
    scores: Bool[Array, "L"]  # of the attention
    hidden: Bool[Array, "L"]  # of the MLP
    delta: Norm  # [L+1], where it may be beyond the range of the dtype
    grad: Flags
    after: Flags  # the weights after the update
    state: Bool[Array, ""]  # all that training would go on with


class Cause(NamedTuple):
    """`phase`: batch, weights, forward, backward, update or none; `what` says which activation or matrices."""

    phase: str
    block: int | None
    what: str

    def __str__(self) -> str:
        where = "" if self.block is None else f" in block {self.block}"
        if self.phase in ("forward", "backward"):
            return f"the {self.phase} pass went bad first{where}: {self.what}"
        return self.what


def look(network: Network, config: RunConfig, state: State, hp: HParams, feed: BatchInput) -> Autopsy:
    """Takes one step apart. `network` and `config` are static; run it under jit."""
    network = dataclasses.replace(network, unroll=1)  # short to compile, and it runs once
    key, batch = dropout_key(config, hp, state.step), batch_of(feed)
    loss, result = tapped(network, config, state.params, batch, hp.model, key)
    _, grads = plain(network, config, state.params, batch, hp.model, key)
    either = jax.tree.map(lambda a, b: a + 0 * b, grads, true_gradients(result))  # not finite where one of them is
    after, _, _ = train_step(network, _unguarded(config), state, hp, batch, False)

    def inside(part: Batch) -> dict[str, Array]:
        anatomy = network.anatomy(state.params, part.inputs, numbers=hp.model)
        return observed(anatomy, {"attention": all_finite, "mlp": all_finite})

    seen = jax.tree.map(lambda leaf: jnp.all(leaf, axis=0), jax.lax.map(inside, micro(config, batch, None)[0]))
    return Autopsy(
        all_finite(batch),
        _flags(state.params),
        loss,
        result.seen.rms,
        seen["attention"],
        seen["mlp"],
        result.delta,
        _flags(either),
        _flags(after.params),
        sound(after),
    )


def _unguarded(config: RunConfig) -> RunConfig:
    """The step as it would have been without `on_nonfinite: skip`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"on_nonfinite": "stop"})})


def _flags(params: Mapping[str, Any]) -> Flags:
    rest = {name: all_finite(flat(leaves)) for name, leaves in params.items() if name != "blocks"}
    axes = {name: tuple(range(1, leaf.ndim)) for name, leaf in named(params["blocks"]).items()}
    blocks = {name: jnp.all(jnp.isfinite(leaf), axis=axes[name]) for name, leaf in named(params["blocks"]).items()}
    return {"blocks": blocks, **rest}


def cause_of(found: Autopsy, dtype: Any) -> Cause:
    """What went wrong first, from host arrays. `dtype`: of the parameters, whose range a gradient has."""
    if not found.batch:
        return Cause("batch", None, "the batch itself holds values that are not finite")
    if bad := _bad(found.weights):
        return Cause("weights", None, f"the weights were not finite before it: {_listed(bad)}")
    return _forward(found) or _backward(found, dtype) or _update(found)


def _forward(found: Autopsy) -> Cause | None:
    """From the embedding upwards, the first place that is not finite."""
    stream = np.isfinite(found.stream)
    depth = int(np.argmin(stream)) if not stream.all() else stream.size  # of the first stream that is bad
    inner = np.asarray(found.scores) & np.asarray(found.hidden)
    block = min(depth - 1, int(np.argmin(inner)) if not inner.all() else inner.size)
    if depth == 0:
        return Cause("forward", None, "the embedding's output")
    if block < inner.size:
        rms = f"; the stream that enters it has rms {_rms(found, block)}"
        if not found.scores[block]:
            return Cause("forward", block, f"the attention's scores (attn_q, attn_k){rms}")
        if not found.hidden[block]:
            return Cause("forward", block, f"the MLP's hidden units, of finite scores (attn_v, attn_o, mlp_in){rms}")
        return Cause("forward", block, f"its output, of finite hidden units (mlp_out and the skip){rms}")
    if not np.isfinite(found.loss):
        return Cause("forward", None, f"the logits or the loss, of a stream of rms {_rms(found, -1)}")
    return None


def _rms(found: Autopsy, depth: int) -> str:
    value = float(found.stream[depth])
    return power(math.log10(value)) if value > 0 else "0"


def _backward(found: Autopsy, dtype: Any) -> Cause | None:
    """From the loss downwards, the first gradient that is not finite."""
    bad = _bad(found.grad)
    logs, most = log10(found.delta), float(np.log10(np.finfo(dtype).max))
    high = np.flatnonzero(~(logs < most))  # not a number, too
    if not bad and not high.size:
        return None
    blocks = [layer for layer, _ in bad if layer is not None]
    at = int(high[-1]) if high.size else -1
    if at == logs.size - 1:
        return Cause("backward", None, f"delta at the end of the last block, {_size(logs[at])}{_of(bad)}")
    top = max([*blocks, at])
    if top < 0:
        return Cause("backward", None, f"the gradient of {_listed(bad)}; delta is finite everywhere")
    names = [entry for entry in bad if entry[0] == top]
    there = f"delta_{top}, {_size(logs[top])}" if top == at else f"the gradient of {_listed(names)}"
    return Cause("backward", top, there + (_of(names) if top == at else f"; |delta_{top}| is {power(logs[top])}"))


def _size(log10: float) -> str:
    return f"which is {power(log10)} and beyond the range of the dtype" if np.isfinite(log10) else "which is not finite"


def _of(bad: list[tuple[int | None, str]]) -> str:
    return f"; so is the gradient of {_listed(bad)}" if bad else ""


def _update(found: Autopsy) -> Cause:
    if bad := _bad(found.after):
        return Cause("update", None, f"loss and gradient are finite, the update of {_listed(bad)} is not")
    if not found.state:
        return Cause("update", None, "loss, gradient and weights are finite, the optimizer's averages are not")
    return Cause("none", None, "taken again, the step is finite: rounding decides")


def _bad(flags: Flags) -> list[tuple[int | None, str]]:
    """(block, tag) of what is not finite: the ends of the network, then block by block."""
    bad: list[tuple[int | None, str]] = [(None, name) for name, good in flags.items() if name != "blocks" and not good]
    rows = {name: np.asarray(good) for name, good in flags["blocks"].items()}
    depth = max((row.size for row in rows.values()), default=0)
    bad += [(layer, name) for layer in range(depth) for name, row in rows.items() if not row[layer]]
    return bad


def _listed(bad: list[tuple[int | None, str]]) -> str:
    names = [name if index is None else f"{layer(index)}/{name}" for index, name in bad]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
