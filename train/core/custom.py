"""An optimizer of the user's own: `optimizer.name: module:function`."""

import difflib
import importlib
import sys
from collections.abc import Callable
from typing import Any

import optax

from train.core.rules import Numbers


class OptimizerError(ValueError):
    """An optimizer that cannot be used; one line that says why."""


def user_rule(name: str, hp: Numbers, lr: Any) -> optax.GradientTransformation:
    """What the user's function makes of the traced numbers of the optimizer section and the rate of this step.

    Raises OptimizerError.
    """
    rule = called(name, lambda: _function(name)(hp, lr))
    if not isinstance(rule, optax.GradientTransformation):
        raise OptimizerError(f"{name}: expected an optax.GradientTransformation, got {type(rule).__name__}")
    return rule


def called(name: str, function: Callable[[], Any]) -> Any:
    """The result of a call into the user's code; whatever it raises becomes an OptimizerError."""
    try:
        return function()
    except OptimizerError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise OptimizerError(f"{name}: {type(error).__name__}: {reason}") from error


def _function(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # the current folder, behind all that is installed
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        raise OptimizerError(f"{name}: no module {module_name} in the current folder or installed") from None
    found = getattr(module, attribute, None)
    if not callable(found):
        near = difflib.get_close_matches(attribute, [n for n in vars(module) if callable(getattr(module, n))], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise OptimizerError(f"{name}: no function {attribute} in {module_name}{hint}")
    return found
