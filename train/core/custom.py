"""User-defined optimizers: `optimizer.name: module:function`."""

from collections.abc import Callable
from typing import Any

import optax

from data.errors import one_line

from ..errors import UserError
from .update_rules import Numbers

# By their name in the config; train/run/experiment.py imports them, since the core imports nothing by name.
FUNCTIONS: dict[str, Callable[..., Any]] = {}


def user_rule(name: str, hp: Numbers, lr: Any) -> optax.GradientTransformation:
    """The transformation that the user's function returns, given the traced numbers of the optimizer section and the
    rate of this step. Raises UserError."""
    rule = called(name, lambda: FUNCTIONS[name](hp, lr))
    if not isinstance(rule, optax.GradientTransformation):
        raise UserError(f"{name}: expected an optax.GradientTransformation, got {type(rule).__name__}")
    return rule


def called(name: str, function: Callable[[], Any]) -> Any:
    """The result of a call into the user's code; whatever it raises becomes a UserError."""
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}: {one_line(error)}") from error
