"""Residual rules: how a sublayer joins the stream. Each is declared in model/rules.py and implemented here."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from .. import traced
from ..config import ModelConfig
from ..rules import RULES
from .base import Branch, Carry, Context, Observer, Residual, Sublayer

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


def rule_of(config: ModelConfig) -> Residual:
    """The residual rule of a model."""
    return config.rule.implementation()(config)


def numbers_of(config: ModelConfig) -> dict[str, Any]:
    """The traced numbers of a model by key, with the rule's own skip scale (0 of `none`) and factors of init_gain."""
    numbers = traced.numbers(config)
    if config.rule.skip_scale is not None:
        numbers["skip_scale"] = config.rule.skip_scale
    for tag, gain in rule_of(config).gains.items():
        numbers[f"init_gain.{tag}"] *= gain
    return numbers


def without_skip(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The counterfactual: the same numbers with skip scale 0."""
    return {**numbers, "skip_scale": jnp.zeros_like(jnp.asarray(numbers["skip_scale"]))}


def structure_of(config: ModelConfig) -> ModelConfig:
    """`config` without its traced numbers: models of equal structure share a program."""
    config = traced.structure(config)
    if (program := config.rule.program) is not None:
        return config.model_copy(update={"residual": config.residual.model_copy(update={"rule": program})})
    return config
