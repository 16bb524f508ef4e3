"""Claims about probabilities and losses."""

import jax
import jax.numpy as jnp
import numpy as np

from model import layers
from model.config import ModelConfig

from ..core import loss
from ..device.programs import called_once
from .claim import Evidence, Pair, Tolerance, belief, claim
from .reference import softmax

BRIDLE = "Bridle 1990, Neurocomputing, NATO ASI F68"
VASWANI = "Vaswani et al. 2017, 1706.03762"
LOGITS = np.array([2.0, -1.0, 0.5, 0.0, 1.3])
SIGMAS = 5  # a fair draw leaves this many standard errors once in 1.7 million
DRAWS, RATE = 200_000, 0.3
SCORES, WIDTHS = 100_000, (4, 16, 64)
OF_DROPOUT = Tolerance(
    SIGMAS * np.sqrt(RATE / (1 - RATE) / DRAWS),
    f"{SIGMAS} standard errors: a kept entry is x/(1-r), so the mean of n has variance x² r/(1-r)/n",
)
# q . k of d terms has a kurtosis of 3 + 6/d, so the variance of n draws has a relative variance of (2 + 6/d)/n.
OF_SCORES = Tolerance(
    SIGMAS * np.sqrt((2 + 6 / min(WIDTHS)) / SCORES),
    f"{SIGMAS} standard errors of a variance of n draws, sqrt((2 + 6/d)/n)",
)


@claim(BRIDLE, "by hand in numpy; jax.jacfwd of jax.nn.softmax")
def softmax_jacobian() -> Pair:
    """The softmax's Jacobian is diag(p) - p pᵀ"""
    p = softmax(LOGITS)
    return Pair(np.diag(p) - np.outer(p, p), called_once(jax.jacfwd(jax.nn.softmax), LOGITS))


@claim("follows from diag(p) - p pᵀ", "0, against |J|; the product of 1 with what jax.jacrev gives")
def softmax_null() -> Evidence:
    """That Jacobian's null vector is 1 on both sides: a constant on all logits changes nothing, p still adds to 1"""
    jacobian = np.asarray(called_once(jax.jacrev(jax.nn.softmax), LOGITS))
    size, zero = float(np.linalg.norm(jacobian)), np.zeros(len(LOGITS))
    return Evidence([Pair(zero, jacobian.sum(axis=1), "J 1", size), Pair(zero, jacobian.sum(axis=0), "1ᵀ J", size)])


@claim(BRIDLE, "numpy's softmax minus the one-hot targets; jax.grad of the project's loss")
def cross_entropy() -> Pair:
    """The gradient of the mean cross-entropy by the logits is (p - y)/N"""
    rng = np.random.default_rng(5)
    logits, targets = 2 * rng.normal(size=(7, 5)), rng.integers(0, 5, 7).astype(np.int32)
    gradient = jax.grad(lambda z: jnp.mean(loss.cross_entropy(z, jnp.asarray(targets))))
    return Pair((softmax(logits) - np.eye(5)[targets]) / 7, called_once(gradient, logits))


def dropped(*x: float) -> np.ndarray:
    """Returns DRAWS rows of x after the model's own dropout."""
    return np.asarray(called_once(layers.dropout, np.tile(x, (DRAWS, 1)), RATE, jax.random.key(0)))


@claim(
    "Srivastava et al. 2014, JMLR 15, section 10",
    "x; the mean of what the model's dropout makes of it",
    OF_DROPOUT,
    each=True,
)
def dropout() -> Evidence:
    """Inverted dropout keeps the expectation: E[x m/(1-r)] = x, r = 0.3"""
    x = (1.0, -2.0, 0.5)
    return Evidence([Pair(x, dropped(*x).mean(axis=0))], f"{DRAWS:,} draws, seed 0")


@belief(
    "widely told; true of linear layers only: E[(x m/(1-r))²] = x²/(1-r)",
    "x² = 9; the mean of the squares of what the model's dropout makes of 3",
)
def dropout_of_a_layer() -> Evidence:
    """“What follows dropout has the same expectation with it and without it”"""
    return Evidence([Pair(9.0, np.square(dropped(3.0)).mean())], f"{DRAWS:,} draws, seed 0")


def variances(factors: list[float]) -> list[np.floating]:
    """Returns the variance of q . k times a factor, for normal q and k of each width."""
    draws = [np.random.default_rng(width).normal(size=(2, SCORES, width)) for width in WIDTHS]
    return [np.var(np.sum(q * k, axis=-1) * factor) for (q, k), factor in zip(draws, factors, strict=True)]


@claim(f"{VASWANI}, footnote 4", "d; the variance over drawn q and k", OF_SCORES, each=True)
def scores() -> Evidence:
    """Scores q·k of d independent entries of variance 1 have variance d: 4, 16, 64"""
    return Evidence([Pair(WIDTHS, variances([1.0, 1.0, 1.0]))], f"{SCORES:,} draws of q and k for each d")


@claim(f"{VASWANI}, section 3.2.1", "1; the same draws times the model's own factor", OF_SCORES, each=True)
def scaled_scores() -> Evidence:
    """Scores times 1/√d have variance 1 at every d"""
    factors = [ModelConfig(width=width, heads=1).usual_attention_scale for width in WIDTHS]
    return Evidence([Pair([1.0, 1.0, 1.0], variances(factors))], f"{SCORES:,} draws of q and k for each d")
