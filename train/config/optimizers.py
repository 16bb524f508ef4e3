"""Declarations of the optimizers: the options each reads, and what its updates' size and decay follow.

The names that `optimizer.name` takes, the documentation of its options, muP's factors and the usual decay derive from
`OPTIMIZERS`. No JAX here; each declaration names its update rule in train/core/update_rules.py. A user's own optimizer
needs none: `optimizer.name: module:function`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from model.rules import object_at

# The size of an update against that of the gradient: proportional to it; of a size of its own; that of the parameter.
Size = Literal["gradient", "unit", "parameter"]


@dataclass(frozen=True)
class Optimizer:
    """One optimizer."""

    code: str  # module:function; a leading dot is train/core
    size: Size
    reads: tuple[str, ...] = ()  # of the options momentum, betas, eps
    l2: bool = False  # `decay: auto` is l2, and not decoupled

    def rule(self) -> Callable[..., Any]:
        """The update rule, from traced numbers to an optax transformation; imports JAX."""
        return object_at(self.code, __name__.replace(".config.optimizers", ".core"))


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(".update_rules:sgd", "gradient"),
    "momentum": Optimizer(".update_rules:momentum", "gradient", ("momentum",)),
    "nesterov": Optimizer(".update_rules:nesterov", "gradient", ("momentum",)),
    "adam": Optimizer(".update_rules:adam", "unit", ("betas", "eps"), l2=True),
    "adamw": Optimizer(".update_rules:adam", "unit", ("betas", "eps")),  # Loshchilov & Hutter 2019, 1711.05101, alg. 2
    "lion": Optimizer(".update_rules:lion", "unit", ("betas",)),
    "rmsprop": Optimizer(".update_rules:rmsprop", "unit", ("betas", "eps")),
    "adafactor": Optimizer(".update_rules:adafactor", "parameter"),
    "adagrad": Optimizer(".update_rules:adagrad", "unit", ("eps",)),
    "muon": Optimizer(".update_rules:muon", "unit", ("momentum", "betas", "eps")),
}


def readers(option: str) -> str:
    """The optimizers that read an option, for its documentation."""
    return ", ".join(name for name, optimizer in OPTIMIZERS.items() if option in optimizer.reads)
