"""Cause of a non-finite step: the first place in the forward pass, the backward pass or the update.

The step is replayed as training took it, with the same dropout, micro-batches and dtype. Only the attention scores and
the MLP's hidden units inside a block are recomputed without dropout.
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
from .batch import BatchInput, batch_of, micro
from .finite import all_finite, sound
from .optimizer import HParams
from .state import State
from .step import dropout_key, tapped, train_step, untapped

Flags = Mapping[str, Any]  # "blocks" -> tag of a matrix -> bool [L]; other entries of the parameters -> bool []


class StepReport(NamedTuple):
    """Finiteness of one step's intermediate values, from the state before it. Flags are True where all is finite."""

    batch: Bool[Array, ""]
    weights: Flags
    loss: Float[Array, ""]
    stream: Float[Array, "L+1"]  # rms of x_l; x_L leaves the last block
    scores: Bool[Array, "L"]  # of the attention
    hidden: Bool[Array, "L"]  # of the MLP
    delta: Norm  # [L+1]; its range is not limited to that of the dtype
    grad: Flags
    after: Flags  # the weights after the update
    state: Bool[Array, ""]  # everything that the next step starts from


class Cause(NamedTuple):
    """`phase`: batch, weights, forward, backward, update or none; `what` names the activation or the matrices."""

    phase: str
    block: int | None
    what: str

    def __str__(self) -> str:
        where = "" if self.block is None else f" in block {self.block}"
        if self.phase in ("forward", "backward"):
            return f"the {self.phase} pass went bad first{where}: {self.what}"
        return self.what


def examine(network: Network, config: RunConfig, state: State, hp: HParams, batch_input: BatchInput) -> StepReport:
    """Replays one step and reports where it is finite. `network` and `config` are static; run it under jit."""
    network = dataclasses.replace(network, unroll=1)  # short to compile, and it runs once
    key, batch = dropout_key(config, hp, state.step), batch_of(batch_input)
    loss, result = tapped(network, config, state.params, batch, hp.model, key)
    _, grads = untapped(network, config, state.params, batch, hp.model, key)
    either = jax.tree.map(lambda a, b: a + 0 * b, grads, true_gradients(result))  # non-finite where either is
    # Under `skip` a non-finite update is not made.
    stop = config.model_copy(update={"train": config.train.model_copy(update={"on_nonfinite": "stop"})})
    after, _, _ = train_step(network, stop, state, hp, batch, False)

    def branches_of(part: Batch) -> dict[str, Array]:
        anatomy = network.anatomy(state.params, part.inputs, numbers=hp.model)
        return observed(anatomy, {"attn/scores": all_finite, "mlp/hidden": all_finite})

    parts, _ = micro(config.optimizer.accumulate, batch, None)
    branches = jax.tree.map(lambda leaf: jnp.all(leaf, axis=0), jax.lax.map(branches_of, parts))
    return StepReport(
        all_finite(batch),
        _flags(state.params),
        loss,
        result.stream.rms,
        branches["attn/scores"],
        branches["mlp/hidden"],
        result.delta,
        _flags(either),
        _flags(after.params),
        sound(after),
    )


def _flags(params: Mapping[str, Any]) -> Flags:
    rest = {name: all_finite(flat(leaves)) for name, leaves in params.items() if name != "blocks"}
    axes = {name: tuple(range(1, leaf.ndim)) for name, leaf in named(params["blocks"]).items()}
    blocks = {name: jnp.all(jnp.isfinite(leaf), axis=axes[name]) for name, leaf in named(params["blocks"]).items()}
    return {"blocks": blocks, **rest}


def cause_of(report: StepReport, dtype: Any) -> Cause:
    """Returns the first non-finite value of a step, from host arrays. `dtype`: that of parameters and gradients."""
    if not report.batch:
        return Cause("batch", None, "the batch itself holds values that are not finite")
    if bad := _bad(report.weights):
        return Cause("weights", None, f"the weights were not finite before it: {_listed(bad)}")
    return _forward(report) or _backward(report, dtype) or _update(report)


def _forward(report: StepReport) -> Cause | None:
    """Returns the first non-finite place from the embedding upwards."""
    stream = np.isfinite(report.stream)
    depth = int(np.argmin(stream)) if not stream.all() else stream.size  # of the first non-finite stream
    inner = np.asarray(report.scores) & np.asarray(report.hidden)
    block = min(depth - 1, int(np.argmin(inner)) if not inner.all() else inner.size)
    if depth == 0:
        return Cause("forward", None, "the embedding's output")
    if block < inner.size:
        rms = f"; the stream that enters it has rms {_rms(report, block)}"
        if not report.scores[block]:
            return Cause("forward", block, f"the attention's scores (attn_q, attn_k){rms}")
        if not report.hidden[block]:
            return Cause("forward", block, f"the MLP's hidden units, of finite scores (attn_v, attn_o, mlp_in){rms}")
        return Cause("forward", block, f"its output, of finite hidden units (mlp_out and the skip){rms}")
    if not np.isfinite(report.loss):
        return Cause("forward", None, f"the logits or the loss, of a stream of rms {_rms(report, -1)}")
    return None


def _rms(report: StepReport, depth: int) -> str:
    value = float(report.stream[depth])
    return power(math.log10(value)) if value > 0 else "0"


def _backward(report: StepReport, dtype: Any) -> Cause | None:
    """Returns the first non-finite gradient from the loss downwards."""
    bad = _bad(report.grad)
    logs, most = log10(report.delta), float(np.log10(np.finfo(dtype).max))
    high = np.flatnonzero(~(logs < most))  # includes nan
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


def _update(report: StepReport) -> Cause:
    if bad := _bad(report.after):
        return Cause("update", None, f"loss and gradient are finite, the update of {_listed(bad)} is not")
    if not report.state:
        return Cause("update", None, "loss, gradient and weights are finite, the optimizer's averages are not")
    return Cause("none", None, "the replayed step is finite: its result depends on rounding")


def _bad(flags: Flags) -> list[tuple[int | None, str]]:
    """Returns (block, tag) of every non-finite entry: embedding and head first, then block by block."""
    bad: list[tuple[int | None, str]] = [(None, name) for name, good in flags.items() if name != "blocks" and not good]
    rows = {name: np.asarray(good) for name, good in flags["blocks"].items()}
    depth = max((row.size for row in rows.values()), default=0)
    bad += [(layer, name) for layer in range(depth) for name, row in rows.items() if not row[layer]]
    return bad


def _listed(bad: list[tuple[int | None, str]]) -> str:
    names = [name if index is None else f"{layer(index)}/{name}" for index, name in bad]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
