"""Claims about probabilities and losses: the softmax, cross-entropy, dropout, the variance of scores."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig
from model.layers import dropout

from ..core.compile import called_once
from ..core.loss import cross_entropy
from . import by_hand
from .claim import COUNTEREXAMPLE, Claim, Evidence, Pair, Tolerance, evidence

LOGITS = np.array([2.0, -1.0, 0.5, 0.0, 1.3])
SIGMAS = 5  # a fair draw leaves this many standard errors once in 1.7 million
DRAWS, RATE = 200_000, 0.3
SCORES = 100_000
WIDTHS = (4, 16, 64)


def _jacobian() -> Evidence:
    measured = called_once(jax.jacfwd(jax.nn.softmax), jnp.asarray(LOGITS))
    return evidence(by_hand.softmax_jacobian(by_hand.softmax(LOGITS)), measured)


def _null_vector() -> Evidence:
    jacobian = np.asarray(called_once(jax.jacrev(jax.nn.softmax), jnp.asarray(LOGITS)))
    size = float(np.linalg.norm(jacobian))
    zero = np.zeros(len(LOGITS))
    ones = np.ones(len(LOGITS))
    return Evidence((Pair(zero, jacobian @ ones, "J 1", size), Pair(zero, ones @ jacobian, "1ᵀ J", size)))


def _cross_entropy() -> Evidence:
    rng = np.random.default_rng(5)
    logits, targets = 2 * rng.normal(size=(7, 5)), rng.integers(0, 5, 7).astype(np.int32)
    predicted = (by_hand.softmax(logits) - by_hand.one_hot(targets, 5)) / 7
    grad = called_once(jax.grad(lambda z: jnp.mean(cross_entropy(z, jnp.asarray(targets)))), logits)
    return evidence(predicted, grad)


def _dropped(x: np.ndarray) -> np.ndarray:
    """[DRAWS, n], through the model's own dropout."""
    many = np.tile(x, (DRAWS, 1))
    return np.asarray(called_once(dropout, many, RATE, jax.random.key(0)))


def _expectation() -> Evidence:
    x = np.array([1.0, -2.0, 0.5])
    return evidence(x, _dropped(x).mean(axis=0), f"{DRAWS:,} draws, seed 0")


def _expectation_after_a_square() -> Evidence:
    return evidence(9.0, np.square(_dropped(np.array([3.0]))).mean(), f"{DRAWS:,} draws, seed 0")


@cache
def _scores(width: int) -> np.ndarray:
    """[SCORES]: q . k of normal q and k."""
    q, k = np.random.default_rng(width).normal(size=(2, SCORES, width))
    return np.sum(q * k, axis=-1)


def _factor(width: int) -> float:
    """What the model multiplies the scores of one head of this width by."""
    return ModelConfig(width=width, heads=1).usual_attention_scale


def _variance(scaled: bool) -> Evidence:
    measured = [np.var(_scores(width) * (_factor(width) if scaled else 1.0)) for width in WIDTHS]
    predicted = np.ones(len(WIDTHS)) if scaled else np.array(WIDTHS, float)
    return evidence(predicted, np.array(measured), f"{SCORES:,} draws of q and k for each d")


_OF_DROPOUT = Tolerance(
    SIGMAS * np.sqrt(RATE / (1 - RATE) / DRAWS),
    f"{SIGMAS} standard errors: a kept entry is x/(1-r), so the mean of n has variance x² r/(1-r)/n",
)
# q . k of d terms has a kurtosis of 3 + 6/d, so the variance of n draws has a relative variance of (2 + 6/d)/n.
_OF_SCORES = Tolerance(
    SIGMAS * np.sqrt((2 + 6 / min(WIDTHS)) / SCORES),
    f"{SIGMAS} standard errors of a variance of n draws, sqrt((2 + 6/d)/n)",
)

CLAIMS = (
    Claim(
        "loss/softmax_jacobian",
        "The softmax's Jacobian is diag(p) - p pᵀ",
        "Bridle 1990, Neurocomputing, NATO ASI F68",
        "by hand in numpy; jax.jacfwd of jax.nn.softmax",
        _jacobian,
    ),
    Claim(
        "loss/softmax_null",
        "That Jacobian's null vector is 1 on both sides: a constant on all logits changes nothing, p still adds to 1",
        "follows from diag(p) - p pᵀ",
        "0, against |J|; the product of 1 with what jax.jacrev gives",
        _null_vector,
    ),
    Claim(
        "loss/cross_entropy",
        "The gradient of the mean cross-entropy by the logits is (p - y)/N",
        "Bridle 1990, Neurocomputing, NATO ASI F68",
        "numpy's softmax minus the one-hot targets; jax.grad of the project's loss",
        _cross_entropy,
    ),
    Claim(
        "loss/dropout",
        "Inverted dropout keeps the expectation: E[x m/(1-r)] = x, r = 0.3",
        "Srivastava et al. 2014, JMLR 15, section 10",
        "x; the mean of what the model's dropout makes of it",
        _expectation,
        _OF_DROPOUT,
        each=True,
    ),
    Claim(
        "loss/dropout_of_a_layer",
        "“What follows dropout has the same expectation with it and without it”",
        "widely told; true of linear layers only: E[(x m/(1-r))²] = x²/(1-r)",
        "x² = 9; the mean of the squares of what the model's dropout makes of 3",
        _expectation_after_a_square,
        COUNTEREXAMPLE,
        belief=True,
    ),
    Claim(
        "loss/scores",
        "Scores q·k of d independent entries of variance 1 have variance d: 4, 16, 64",
        "Vaswani et al. 2017, 1706.03762, footnote 4",
        "d; the variance over drawn q and k",
        lambda: _variance(False),
        _OF_SCORES,
        each=True,
    ),
    Claim(
        "loss/scaled_scores",
        "Scores times 1/√d have variance 1 at every d",
        "Vaswani et al. 2017, 1706.03762, section 3.2.1",
        "1; the same draws times the model's own factor",
        lambda: _variance(True),
        _OF_SCORES,
        each=True,
    ),
)
