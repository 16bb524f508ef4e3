"""Claims about backpropagation through an MLP by hand. Here δ is dL/dz at a pre-activation, as in textbooks."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from model.rules import ACTIVATIONS

from ..core.loss import cross_entropy
from ..device.programs import called_once
from .by_hand import gelu, gelu_slope, softmax
from .claim import Evidence, Pair, claim

SIZES, EXAMPLES = (5, 8, 7, 4), 6
BOOK = "Nielsen 2015, Neural Networks and Deep Learning, chapter 2"

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
        entering.append(gelu(before[-1]))
    delta = [(softmax(before[-1]) - np.eye(SIZES[-1])[targets]) / examples]  # the last pre-activations are the logits
    for (w, _), z in zip(layers[:0:-1], before[-2::-1], strict=True):
        delta.insert(0, delta[0] @ w.T * gelu_slope(z))

    def loss(layers: list[tuple[jax.Array, jax.Array]], offsets: list[jax.Array]) -> jax.Array:
        h = z = jnp.asarray(x)
        for (w, b), offset in zip(layers, offsets, strict=True):
            z = h @ w + b[None, :] + offset
            h = ACTIVATIONS["gelu"].function()(z)
        return jnp.mean(cross_entropy(z, jnp.asarray(targets)))

    offsets = [jnp.zeros((examples, size)) for size in SIZES[1:]]
    gradients = called_once(jax.grad(loss, argnums=(0, 1)), layers, offsets)
    return entering[:-1], delta, *jax.device_get(gradients)


@claim(BOOK + ", eqs. BP1 and BP2", "the recursion in numpy; jax.grad by an offset to each pre-activation")
def delta() -> Evidence:
    """δ_l = (W_(l+1)ᵀ δ_(l+1)) ⊙ σ'(z_l), from δ_last = (p - y)/N down, in an MLP of three layers"""
    _, predicted, _, measured = backward_passes(EXAMPLES)
    return Evidence([Pair(p, m, f"δ_{n}") for n, (p, m) in enumerate(zip(predicted, measured, strict=True), 1)])


@claim(BOOK + ", eqs. BP3 and BP4", "numpy's outer products of what the recursion gives; jax.grad")
def weights() -> Evidence:
    """dL/dW_l = Σ a_(l-1) δ_lᵀ, an outer product for each example, and dL/db_l = Σ δ_l"""
    entering, deltas, gradients, _ = backward_passes(EXAMPLES)
    pairs = []
    for n, (a, delta, (w, b)) in enumerate(zip(entering, deltas, gradients, strict=True), 1):
        outer = sum(np.outer(each, error) for each, error in zip(a, delta, strict=True))
        pairs += [Pair(outer, w, f"W_{n}"), Pair(delta.sum(axis=0), b, f"b_{n}")]
    return Evidence(pairs)


@claim("follows from BP4", "0, against the first singular value; numpy's SVD of jax.grad for one example")
def rank() -> Evidence:
    """One example's dL/dW has rank 1: all singular values but the first are 0"""
    values = [np.linalg.svd(w, compute_uv=False) for w, _ in backward_passes(1)[2]]
    return Evidence([Pair(np.zeros(len(s) - 1), s[1:], f"W_{n}", float(s[0])) for n, s in enumerate(values, 1)])
