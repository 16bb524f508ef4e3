"""One backward pass and everything about it: the measurement behind `deltaflow probe`."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from model.network import Network, Params
from model.residual import rule_of, without_skip

from ..config.schema import RunConfig
from ..gradflow.advice import advice_for
from ..gradflow.delta import (
    Flow,
    backward,
    flow,
    underflows,
)
from ..gradflow.gradients import weight_dot_grad
from ..gradflow.norms import (
    Norm,
    gains,
    log10,
    parameter_norms,
    total_norm,
    value,
)
from ..gradflow.verdict import float_or_zero, in_range, judge
from .batch import BatchInput
from .loss import tapped_loss
from .state import parameter_count


class Probe(NamedTuple):
    loss: Float[Array, ""]
    logits_rms: Float[Array, ""]
    flow: Flow
    without: Flow | None
    weight: dict[str, Norm]
    dot: dict[str, Norm]
    grad_global: Norm


def measure(network: Network, params: Params, batch_input: BatchInput, numbers: Mapping[str, Any]) -> Probe:
    """Runs forward and backward on one batch, without dropout. Pure; run it under jit."""
    depth = network.config.layers
    loss, result, rms = backward(tapped_loss(network, batch_input, numbers, None), params, depth)
    without = None
    if network.config.rule.additive:
        without = flow(backward(tapped_loss(network, batch_input, without_skip(numbers), None), params, depth)[1])
    measured, norms = flow(result), parameter_norms(params)
    weight = {"head": norms["embed"], **norms, "lookup": norms["embed"]}  # under the names of their gradients
    dot = weight_dot_grad(params, result)
    return Probe(loss, rms, measured, without, weight, dot, total_norm(measured.grad, params))


def numbers(norm: Norm) -> Any:
    """Returns a norm's values for JSON: nested lists, or a float; null for a nonzero value out of float64's range."""
    exact, logs = value(norm), log10(norm)
    out = np.where(np.isneginf(logs) | in_range(logs), exact, np.nan)
    return jax.tree.map(lambda x: None if np.isnan(x) else x, out.tolist())


def finite(values: ArrayLike) -> Any:
    """Returns nested lists for JSON, with null for values that are not finite."""
    return jax.tree.map(lambda x: x if np.isfinite(x) else None, np.asarray(values, np.float64).tolist())


def _delta(flow: Flow, rms: ArrayLike) -> dict[str, Any]:
    logs = log10(flow.delta)
    with np.errstate(divide="ignore"):
        weighted = logs + np.log10(np.asarray(rms, np.float64))
    return {
        "norm": numbers(flow.delta),
        "log10_norm": finite(logs),
        "rms_weighted": [float_or_zero(x) if not np.isnan(x) else None for x in weighted.tolist()],
    }


def _norms(norms: Mapping[str, Norm]) -> dict[str, Any]:
    return {name: numbers(norm) for name, norm in norms.items()}


def _certain(norms: dict[str, Any], doubt: bool, zeros: Sequence[str] = ()) -> dict[str, Any]:
    """Returns norms for JSON. With `doubt` a zero is null, unless its name matches `zeros`: 0 by the equations."""

    def certain(name: str, norm: Any) -> Any:
        exact = any(fnmatchcase(name, pattern) for pattern in zeros)
        return norm if exact else jax.tree.map(lambda x: None if x == 0 else x, norm)

    return {name: certain(name, norm) for name, norm in norms.items()} if doubt else norms


def as_json(config: RunConfig, network: Network, params: Params, probe: Probe) -> dict[str, Any]:
    """Returns the measured part of the JSON object of `deltaflow probe` (docs/probe.schema.json), from host arrays.

    `config` is the variant's, for the size of its batch and for the advice.
    """
    stream = probe.flow.stream
    assert stream is not None
    logs = probe.flow.grad.log10()
    delta, parts = log10(probe.flow.delta), rule_of(network.config).parts
    without, doubt = probe.without, underflows(probe.flow, probe.weight, parts)
    verdict = judge(delta, logs, doubt, np.asarray(stream.rms), np.asarray(stream.rank), network.dtype)
    rms_without = np.ones(()) if without is None or without.stream is None else without.stream.rms
    doubt_without = without is not None and underflows(without, probe.weight, parts)
    skip_only = [f"residual_{pattern}" for pattern in network.config.rule.skip_only]
    return {
        "dtype": network.dtype,
        "task": network.task,
        "loss": finite(np.asarray(probe.loss)),
        "tokens": config.data.batch * config.data.context,
        "logits_rms": finite(np.asarray(probe.logits_rms)),
        "n_params": parameter_count(params),
        "delta": _certain(_delta(probe.flow, stream.rms), doubt),
        "delta_without": None if without is None else _certain(_delta(without, rms_without), doubt_without),
        "gain": finite(gains(delta)),
        "grad": _certain(_norms(probe.flow.grad), doubt),
        "grad_log10": {name: finite(values) for name, values in logs.items()},
        "grad_without": None if without is None else _certain(_norms(without.grad), doubt_without, skip_only),
        "weight": _norms(probe.weight),
        "weight_dot_grad": _certain(_norms(probe.dot), doubt),
        "grad_global": numbers(probe.grad_global),
        "act": {"rms": _certain({"rms": finite(stream.rms)}, doubt)["rms"], "rank": finite(stream.rank)},
        "verdict": verdict._replace(advice=advice_for(verdict.state, config)).as_json(),
    }
