"""An optimizer of the user's own: `optimizer.name: module:function`."""

from collections.abc import Callable
from typing import Any

import optax

from data.custom import said
from train.core.directions import Numbers

# By the name that a config gives them; train/run/own.py imports them and puts them here.
FUNCTIONS: dict[str, Callable[..., Any]] = {}


class OptimizerError(ValueError):
    """An optimizer that cannot be used; one line that says why."""


def user_rule(name: str, hp: Numbers, lr: Any) -> optax.GradientTransformation:
    """What the user's function makes of the traced numbers of the optimizer section and the rate of this step.

    Raises OptimizerError.
    """
    rule = called(name, lambda: FUNCTIONS[name](hp, lr))
    if not isinstance(rule, optax.GradientTransformation):
        raise OptimizerError(f"{name}: expected an optax.GradientTransformation, got {type(rule).__name__}")
    return rule


def called(name: str, function: Callable[[], Any]) -> Any:
    """The result of a call into the user's code; whatever it raises becomes an OptimizerError."""
    try:
        return function()
    except OptimizerError:
        raise
    except (Exception, SystemExit) as error:
        raise OptimizerError(f"{name}: {said(error)}") from error
