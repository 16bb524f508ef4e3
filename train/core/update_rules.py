"""Update rules: optax transformations of the gradient, before weight decay and the learning rate.

Each is built inside every traced step from traced numbers, and declared in train/config/optimizers.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from .parameters import by_path, is_branch_matrix

Numbers = Mapping[str, Any]  # traced numbers of the optimizer section by key


def per_layer(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `rule` applied to each layer of the stacked blocks separately, and to the other parameters as they are.

    For rules that combine several entries, so that a stack of gains is not taken for a matrix, and a stack of matrices
    is one matrix a layer.
    """

    def parts(tree: Any) -> tuple[Any, Any]:
        return tree["blocks"], {name: leaf for name, leaf in tree.items() if name != "blocks"}

    def init(params: Any) -> tuple[Any, Any]:
        blocks, rest = parts(params)
        return jax.vmap(rule.init)(blocks), rule.init(rest)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        (blocks, rest), (of_blocks, of_rest) = parts(updates), parts(params)
        blocks, blocks_state = jax.vmap(rule.update)(blocks, state[0], of_blocks)
        others: Any
        others, rest_state = rule.update(rest, state[1], of_rest)
        return dict(others, blocks=blocks), (blocks_state, rest_state)

    return optax.GradientTransformation(init, update)


def adam(hp: Numbers) -> optax.GradientTransformation:
    """m / (sqrt(v) + eps), both averages debiased (Kingma & Ba 2015, 1412.6980, alg. 1)."""
    beta1, beta2 = hp["betas"]
    return optax.scale_by_adam(beta1, beta2, hp["eps"])


def lion(hp: Numbers) -> optax.GradientTransformation:
    """sign(beta_1 m + (1 - beta_1) g), then m <- beta_2 m + (1 - beta_2) g (Chen et al. 2023, 2302.06675, alg. 2)."""
    beta1, beta2 = hp["betas"]
    return optax.scale_by_lion(beta1, beta2)


def rmsprop(hp: Numbers) -> optax.GradientTransformation:
    """g / (sqrt(v) + eps) with v <- beta_2 v + (1 - beta_2) g^2, not debiased (Tieleman & Hinton 2012, lecture 6e)."""
    return optax.scale_by_rms(hp["betas"][1], hp["eps"], eps_in_sqrt=False)


def adagrad(hp: Numbers) -> optax.GradientTransformation:
    """g / sqrt(sum of all g^2 + eps) (Duchi et al. 2011, JMLR 12, fig. 1 with a diagonal matrix)."""
    return optax.scale_by_rss(0.0, hp["eps"])


def adafactor(hp: Numbers) -> optax.GradientTransformation:
    """Second moments of a matrix from those of its rows and columns, the update's rms at most 1, times the matrix's own
    rms, at least 1e-3 (Shazeer & Stern 2018, 1804.04235, alg. 4 and 5; beta_2 = 1 - t^-0.8). Without momentum."""
    del hp
    return per_layer(
        optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=1),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(1e-3),
        )
    )


def muon(hp: Numbers) -> optax.GradientTransformation:
    """Nesterov momentum of each layer's matrices, orthogonalised by five Newton-Schulz steps, times
    sqrt(max(1, columns / rows)) (Jordan et al. 2024, github.com/KellerJordan/Muon); Adam for all other parameters.

    The matrices are attention's and the MLP's. Those of a residual rule are gates and readouts of few columns that
    start at zero: an equal step in all of their directions would be mostly noise.
    """

    def stacked(updates: Any) -> Any:
        return jax.tree.map(lambda _: MuonDimensionNumbers(1, 2), updates)  # axis 0 is the layer

    def widened(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u: u * math.sqrt(max(1.0, u.shape[2] / u.shape[1])), updates)

    orthogonal = optax.chain(
        scale_by_muon(beta=hp["momentum"], eps=hp["eps"], weight_dimension_numbers=stacked),
        optax.stateless(widened),
    )

    def labels(params: Any) -> Any:
        return by_path(lambda path, _: "muon" if is_branch_matrix(path) else "adam", params)

    return optax.partition({"muon": orthogonal, "adam": adam(hp)}, labels)


def sgd(hp: Numbers) -> optax.GradientTransformation:
    """g."""
    del hp
    return optax.identity()


def momentum(hp: Numbers) -> optax.GradientTransformation:
    """m <- momentum m + g (Polyak 1964; Sutskever et al. 2013, eq. 1, with the rate outside)."""
    return optax.trace(hp["momentum"])


def nesterov(hp: Numbers) -> optax.GradientTransformation:
    """g + momentum m with m <- momentum m + g (Nesterov 1983; Sutskever et al. 2013, eq. 3, at the point ahead)."""
    return optax.trace(hp["momentum"], nesterov=True)
