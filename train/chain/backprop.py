"""Claims about backpropagation through an MLP by hand, and about probabilities and losses.

Here δ is dL/dz at a pre-activation, as in textbooks.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig
from model.layers import dropout
from model.mlp import ACTIVATIONS

from ..core.loss import cross_entropy
from ..device.programs import called_once
from . import by_hand
from .claim import Evidence, Pair, Tolerance, belief, claim

SIZES, EXAMPLES = (5, 8, 7, 4), 6
BOOK = "Nielsen 2015, Neural Networks and Deep Learning, chapter 2"
BRIDLE = "Bridle 1990, Neurocomputing, NATO ASI F68"
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

Layers = list[tuple[np.ndarray, np.ndarray]]  # (W [in, out], b [out])


@cache
def backward_passes(examples: int) -> tuple[list[np.ndarray], list[np.ndarray], Layers, list[np.ndarray]]:
    """Backpropagates the mean loss of the first examples of an MLP.

    Returns by hand the activations that enter each layer and δ of each layer, [N, ...]; by JAX the gradients of every
    W and b, and of an offset to every pre-activation.
    """
    rng = np.random.default_rng(4)
    shapes = list(zip(SIZES[:-1], SIZES[1:], strict=True))
    layers = [(rng.normal(size=(a, b)) / np.sqrt(a), 0.3 * rng.normal(size=b)) for a, b in shapes]
    x, targets = rng.normal(size=(EXAMPLES, SIZES[0])), rng.integers(0, SIZES[-1], EXAMPLES).astype(np.int32)
    x, targets = x[:examples], targets[:examples]

    entering, before = [x], []
    for w, b in layers:
        before.append(entering[-1] @ w + b)
        entering.append(by_hand.gelu(before[-1]))
    # The last pre-activations are the logits.
    delta = [(by_hand.softmax(before[-1]) - by_hand.one_hot(targets, SIZES[-1])) / examples]
    for (w, _), z in zip(layers[:0:-1], before[-2::-1], strict=True):
        delta.insert(0, delta[0] @ w.T * by_hand.gelu_slope(z))

    def loss(layers: list[tuple[jax.Array, jax.Array]], offsets: list[jax.Array]) -> jax.Array:
        h = z = jnp.asarray(x)
        for (w, b), offset in zip(layers, offsets, strict=True):
            z = h @ w + b[None, :] + offset
            h = ACTIVATIONS["gelu"](z)
        return jnp.mean(cross_entropy(z, jnp.asarray(targets)))

    offsets = [jnp.zeros((examples, size)) for size in SIZES[1:]]
    gradients = called_once(jax.grad(loss, argnums=(0, 1)), jax.tree.map(jnp.asarray, layers), offsets)
    return entering[:-1], delta, *jax.device_get(gradients)


@claim(
    "backprop/delta",
    "δ_l = (W_(l+1)ᵀ δ_(l+1)) ⊙ σ'(z_l), from δ_last = (p - y)/N down, in an MLP of three layers",
    BOOK + ", eqs. BP1 and BP2",
    "the recursion in numpy; jax.grad by an offset to each pre-activation",
)
def delta() -> Evidence:
    _, predicted, _, measured = backward_passes(EXAMPLES)
    return Evidence([Pair(p, m, f"δ_{n}") for n, (p, m) in enumerate(zip(predicted, measured, strict=True), 1)])


@claim(
    "backprop/weights",
    "dL/dW_l = Σ a_(l-1) δ_lᵀ, an outer product for each example, and dL/db_l = Σ δ_l",
    BOOK + ", eqs. BP3 and BP4",
    "numpy's outer products of what the recursion gives; jax.grad",
)
def weights() -> Evidence:
    entering, deltas, gradients, _ = backward_passes(EXAMPLES)
    pairs = []
    for n, (a, delta, (w, b)) in enumerate(zip(entering, deltas, gradients, strict=True), 1):
        outer = sum(np.outer(each, error) for each, error in zip(a, delta, strict=True))
        pairs += [Pair(outer, w, f"W_{n}"), Pair(delta.sum(axis=0), b, f"b_{n}")]
    return Evidence(pairs)


@claim(
    "backprop/rank",
    "One example's dL/dW has rank 1: all singular values but the first are 0",
    "follows from BP4",
    "0, against the first singular value; numpy's SVD of jax.grad for one example",
)
def rank() -> Evidence:
    values = [np.linalg.svd(w, compute_uv=False) for w, _ in backward_passes(1)[2]]
    return Evidence([Pair(np.zeros(len(s) - 1), s[1:], f"W_{n}", float(s[0])) for n, s in enumerate(values, 1)])


@claim(
    "loss/softmax_jacobian",
    "The softmax's Jacobian is diag(p) - p pᵀ",
    BRIDLE,
    "by hand in numpy; jax.jacfwd of jax.nn.softmax",
)
def softmax_jacobian() -> Pair:
    measured = called_once(jax.jacfwd(jax.nn.softmax), jnp.asarray(LOGITS))
    return Pair(by_hand.softmax_jacobian(by_hand.softmax(LOGITS)), measured)


@claim(
    "loss/softmax_null",
    "That Jacobian's null vector is 1 on both sides: a constant on all logits changes nothing, p still adds to 1",
    "follows from diag(p) - p pᵀ",
    "0, against |J|; the product of 1 with what jax.jacrev gives",
)
def softmax_null() -> Evidence:
    jacobian = np.asarray(called_once(jax.jacrev(jax.nn.softmax), jnp.asarray(LOGITS)))
    size, ones = float(np.linalg.norm(jacobian)), np.ones(len(LOGITS))
    return Evidence([Pair(0 * ones, jacobian @ ones, "J 1", size), Pair(0 * ones, ones @ jacobian, "1ᵀ J", size)])


@claim(
    "loss/cross_entropy",
    "The gradient of the mean cross-entropy by the logits is (p - y)/N",
    BRIDLE,
    "numpy's softmax minus the one-hot targets; jax.grad of the project's loss",
)
def gradient_by_logits() -> Pair:
    rng = np.random.default_rng(5)
    logits, targets = 2 * rng.normal(size=(7, 5)), rng.integers(0, 5, 7).astype(np.int32)
    gradient = called_once(jax.grad(lambda z: jnp.mean(cross_entropy(z, jnp.asarray(targets)))), logits)
    return Pair((by_hand.softmax(logits) - by_hand.one_hot(targets, 5)) / 7, gradient)


def dropped(*x: float) -> np.ndarray:
    """Returns DRAWS rows of x after the model's own dropout."""
    return np.asarray(called_once(dropout, np.tile(x, (DRAWS, 1)), RATE, jax.random.key(0)))


@claim(
    "loss/dropout",
    "Inverted dropout keeps the expectation: E[x m/(1-r)] = x, r = 0.3",
    "Srivastava et al. 2014, JMLR 15, section 10",
    "x; the mean of what the model's dropout makes of it",
    tolerance=OF_DROPOUT,
    each=True,
)
def expectation() -> Evidence:
    x = (1.0, -2.0, 0.5)
    return Evidence([Pair(x, dropped(*x).mean(axis=0))], f"{DRAWS:,} draws, seed 0")


@belief(
    "loss/dropout_of_a_layer",
    "“What follows dropout has the same expectation with it and without it”",
    "widely told; true of linear layers only: E[(x m/(1-r))²] = x²/(1-r)",
    "x² = 9; the mean of the squares of what the model's dropout makes of 3",
)
def expectation_of_a_square() -> Evidence:
    return Evidence([Pair(9.0, np.square(dropped(3.0)).mean())], f"{DRAWS:,} draws, seed 0")


def score_variances(predicted: list[float], factors: list[float]) -> Evidence:
    """The variance of q . k times a factor at each width, for normal q and k."""
    measured = []
    for width, factor in zip(WIDTHS, factors, strict=True):
        q, k = np.random.default_rng(width).normal(size=(2, SCORES, width))
        measured.append(np.var(np.sum(q * k, axis=-1) * factor))
    return Evidence([Pair(predicted, measured)], f"{SCORES:,} draws of q and k for each d")


@claim(
    "loss/scores",
    "Scores q·k of d independent entries of variance 1 have variance d: 4, 16, 64",
    "Vaswani et al. 2017, 1706.03762, footnote 4",
    "d; the variance over drawn q and k",
    tolerance=OF_SCORES,
    each=True,
)
def scores() -> Evidence:
    return score_variances([float(width) for width in WIDTHS], [1.0] * len(WIDTHS))


@claim(
    "loss/scaled_scores",
    "Scores times 1/√d have variance 1 at every d",
    "Vaswani et al. 2017, 1706.03762, section 3.2.1",
    "1; the same draws times the model's own factor",
    tolerance=OF_SCORES,
    each=True,
)
def scaled_scores() -> Evidence:
    factors = [ModelConfig(width=width, heads=1).usual_attention_scale for width in WIDTHS]
    return score_variances([1.0] * len(WIDTHS), factors)
