"""The position-wise MLP."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .config import ModelConfig
from .init import Init
from .layers import Linear, joined
from .rules import ACTIVATIONS


def relu2(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """relu(x)^2 (So et al. 2021, Primer, 2109.08668)."""
    return jnp.square(jax.nn.relu(x))


class MLP(nnx.Module):
    """out(act(in(h))), or out(act(gate(h)) * in(h)) for the gated activations."""

    def __init__(self, config: ModelConfig, init: Init, layer: int | Int[Array, ""]):
        self.activation = config.activation

        def linear(name: str, rows: int, columns: int) -> Linear:
            return Linear(init, f"blocks/mlp/{name}", layer, rows, columns, config.bias)

        # `in` is a keyword, so the attributes end in an underscore; tags drop it.
        self.in_ = linear("in", config.width, config.hidden)
        self.gate = linear("gate", config.width, config.hidden) if config.gated else None
        self.out = linear("out", config.hidden, config.width)

    def __call__(
        self,
        h: Float[Array, "N D"],
        observe: Callable[[str, Array], Array] | None = None,
        one: Float[Array, ""] | None = None,
    ) -> Float[Array, "N D"]:
        """Maps h [N, D] to [N, D]. `observe`: see model/residual/base.py's Observer; `one`: see Linear."""
        act = ACTIVATIONS[self.activation].function()
        if self.gate is None:
            hidden = act(self.in_(h))
        else:
            gate, value = joined([self.gate, self.in_], h)
            hidden = act(gate) * value
        if observe is not None:
            hidden = observe("mlp/hidden", hidden)
        return self.out(hidden, one)
