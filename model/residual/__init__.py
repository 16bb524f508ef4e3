"""The studied thing: how a sublayer joins the residual stream. A new rule is one small object in RULES."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from .. import traced
from ..config import ModelConfig
from .attnres import AttnRes
from .base import Branch, Carry, Context, Observer, Residual, Sublayer
from .mixed import ValueResidual, ValueSkipInit, X0Lambda
from .scaled import (
    DeepNorm,
    GPT2Scaled,
    Highway,
    LayerScale,
    PostLN,
    ReZero,
    Sandwich,
    SkipInit,
    StochasticDepth,
)
from .streams import HyperConnections, ManifoldHyperConnections

__all__ = [
    "RULES",
    "Branch",
    "Carry",
    "Context",
    "Observer",
    "Residual",
    "Sublayer",
    "numbers_of",
    "rule_of",
    "structure_of",
    "without_skip",
]

RULES: dict[str, type[Residual]] = {
    "pre_ln": Residual,
    "post_ln": PostLN,
    "none": Residual,
    "sandwich": Sandwich,
    "rezero": ReZero,
    "skipinit": SkipInit,
    "layerscale": LayerScale,
    "deepnorm": DeepNorm,
    "gpt2_scaled": GPT2Scaled,
    "value_residual": ValueResidual,
    "x0_lambda": X0Lambda,
    "stochastic_depth": StochasticDepth,
    "highway": Highway,
    "hyper_connections": HyperConnections,
    "mhc": ManifoldHyperConnections,
    "attnres": AttnRes,
    "value_skipinit": ValueSkipInit,
}

# Other names of pre_ln with other numbers (skip scale 0, smaller initial matrices), so they share its program.
_ALIASES = ("none", "gpt2_scaled")


def rule_of(config: ModelConfig) -> Residual:
    return RULES[config.residual.rule](config)


def numbers_of(config: ModelConfig) -> dict[str, Any]:
    """The traced numbers of a model by key: skip_scale is 0 under `residual: none`, and each init_gain holds the
    rule's own factor."""
    numbers = traced.numbers(config)
    if config.residual.rule == "none":
        numbers["skip_scale"] = 0.0
    for tag, gain in rule_of(config).gains.items():
        numbers[f"init_gain.{tag}"] *= gain
    return numbers


def without_skip(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The counterfactual: the same numbers with skip scale 0."""
    return {**numbers, "skip_scale": jnp.zeros_like(jnp.asarray(numbers["skip_scale"]))}


def structure_of(config: ModelConfig) -> ModelConfig:
    """What decides on a model's program: `config` without its traced numbers."""
    config = traced.structure(config)
    if config.residual.rule in _ALIASES:
        return config.model_copy(update={"residual": config.residual.model_copy(update={"rule": "pre_ln"})})
    return config
