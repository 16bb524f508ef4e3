"""Optimizers of the user's own on their way from the current folder into the core, which imports nothing by name."""

from data.custom import imported
from train.config.schema import OptimizerConfig
from train.core.custom import FUNCTIONS


def adopt(config: OptimizerConfig) -> None:
    """Before anything is built with this section. Raises DataError."""
    if ":" in config.name:
        FUNCTIONS[config.name] = imported("optimizer.name", config.name)
