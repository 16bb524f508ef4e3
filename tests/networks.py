"""The tiny network that laws are tested on, and parameters for it in which nothing is 0 or 1 by accident."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import ModelConfig
from model.network import Network
from model.residual import RULES

L, D, H, V, T, B = 3, 8, 2, 11, 5, 2

# Rules that differ from one of the others in a factor or a norm alone: their longer laws are for `make slow`.
ALIKE = ("sandwich", "skipinit", "layerscale", "deepnorm", "gpt2_scaled", "x0_lambda", "stochastic_depth")
ALIKE += ("hyper_connections",)
EACH_RULE = [pytest.param(rule, marks=[pytest.mark.slow] if rule in ALIKE else []) for rule in RULES]
# The same for laws whose programs are long: of mhc's the compiler alone takes three times as long as of the others.
FEW_RULES = [
    pytest.param(rule, marks=[pytest.mark.slow] if rule in (*ALIKE, "mhc", "value_residual") else []) for rule in RULES
]


def network(dtype: str = "float64", unroll: int = 1, **model: Any) -> Network:
    sizes: dict[str, Any] = {"layers": L, "width": D, "heads": H}
    return Network(ModelConfig(**(sizes | model)), V, T, dtype, unroll)


def parameters(network: Network, scale: float = 0.4) -> dict[str, Any]:
    """Generic values, the same for a path and shape in every network: no gain is 1, no bias and no alpha 0."""

    def draw(path, leaf):
        rng = np.random.default_rng(list(jax.tree_util.keystr(path).encode()))
        centre = 1.0 if path[-1].key == "gain" else 0.0
        return jnp.asarray(centre + scale * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, network.shapes())
