"""Factors of the updates that make one learning rate right at every width: muP.

Yang et al. 2022 (Tensor Programs V, 2203.03466), tables 3 and 8. m is the width over `model.base_width`. The goal
is that every activation, and its change in a step, keeps its size as m grows. By the growth of a parameter's fan-in and
fan-out (a sum over n entries that correlate with their factors is n times one of them):

| growth | grows in | an entry of its gradient | required of its update |
|---|---|---|---|
| hidden | both | 1/m: the input's is 1, that of delta 1/m | 1/m: summed over the fan-in, m entries |
| vector | the fan-out: a gain, a bias, a row of a table | 1/m: delta's | 1: each acts on one entry |
| readout | the fan-in: a map from the stream to a few numbers | 1 | 1/m: summed over the fan-in |
| scalar | neither | 1: a sum over the width of delta's | 1 |

The head's table grows as a vector, as logits have a factor 1/m (model/transformer.py): table 8's form, which a tied
table needs. The power of m in a factor is that of the required update minus that of the rule's own update, here for
hidden, vector, readout and scalar:

- sgd, momentum, nesterov pass the gradient on: 0, +1, -1, 0 (table 8, row "SGD LR", and table 3's for readouts).
- adam, adamw, lion, rmsprop, adagrad divide its size out: -1, 0, -1, 0 (table 8, "Adam LR", and table 3's).
- adafactor makes steps of the parameter's own size (at least 1e-3). A hidden matrix starts at m^-1/2, so another m^-1/2
  is needed: -1/2. Readouts start at zero, so their steps are 1e-3: -1. Vectors and scalars keep their size: 0.
- muon's orthogonal matrices have a spectral norm of sqrt(max(1, fan-out / fan-in)) at any width, which keeps
  the size of activations (Yang et al. 2023, 2310.17813, condition 1): 0. All other parameters are adam's.

The factor comes before decoupled weight decay, so the decay of a step, lr * weight_decay, is the same at every width.
(The authors' package `mup` multiplies the decay of an Adam group by m for the same effect.)
"""

from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax

from model.config import ModelConfig
from model.rules import RULES, Growth

from ..config.optimizers import OPTIMIZERS, Size
from .parameters import by_path, is_branch_matrix

# By path, the first pattern that fits. A parameter that none fits is an error, and not a guess. Those of
# blocks/residual are in model/rules.py, since a name means different things to different rules.
GROWTH: dict[str, Growth] = {
    "embed": "vector",
    "positions": "vector",
    "head": "vector",
    "norm_f/alpha": "scalar",
    "norm_f/shift": "scalar",
    "blocks/norm_*/alpha": "scalar",
    "blocks/norm_*/shift": "scalar",
    "norm_f/*": "vector",
    "blocks/norm_*": "vector",
    "blocks/attn/*/kernel": "hidden",
    "blocks/attn/*/bias": "vector",
    "blocks/mlp/*/kernel": "hidden",
    "blocks/mlp/*/bias": "vector",
}

# Powers of m by what the size of an optimizer's update follows (train/config/optimizers.py).
POWERS: dict[Size, dict[Growth, float]] = {
    "gradient": {"hidden": 0, "vector": 1, "readout": -1, "scalar": 0},
    "unit": {"hidden": -1, "vector": 0, "readout": -1, "scalar": 0},
    "parameter": {"hidden": -0.5, "vector": 0, "readout": -1, "scalar": 0},
}


def growth_of(path: str, rule: str) -> Growth:
    """Returns the growth of a parameter with the width, under a residual rule. Raises ValueError if none is declared.

    >>> growth_of("blocks/residual/lambda_1", "layerscale"), growth_of("blocks/residual/lambda_1", "x0_lambda")
    ('vector', 'scalar')
    """
    own: dict[str, Growth] = {f"blocks/residual/{name}": growth for name, growth in RULES[rule].growth.items()}
    for pattern, growth in [*GROWTH.items(), *own.items()]:
        if fnmatchcase(path, pattern):
            return growth
    raise ValueError(f"expected a parameter with a growth in train/core/mup.py or of residual: {rule}, got {path}")


def exponent(optimizer: str, path: str, rule: str) -> float:
    """Returns the power of m in the factor of a parameter's update."""
    growth = growth_of(path, rule)
    return 0.0 if optimizer == "muon" and is_branch_matrix(path) else POWERS[OPTIMIZERS[optimizer].size][growth]


def by_width(optimizer: str, model: ModelConfig) -> optax.GradientTransformation:
    """Multiplies each update by its power of m."""

    def scaled(path: str, update: Any) -> Any:
        power = exponent(optimizer, path, model.residual.rule)
        return update * jnp.asarray(model.width_ratio**power, update.dtype) if power else update

    return optax.stateless(lambda updates, _: by_path(scaled, updates))


def by_depth(factor: float) -> optax.GradientTransformation:
    """Multiplies the gradients of the blocks: see model/residual `gradient_factor`."""

    def scaled(updates: Any, _: Any) -> Any:
        return dict(updates, blocks=jax.tree.map(lambda u: u * jnp.asarray(factor, u.dtype), updates["blocks"]))

    return optax.stateless(scaled)
