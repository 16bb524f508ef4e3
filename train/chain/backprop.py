"""Claims about backpropagation through an MLP by hand. Here δ is dL/dz at a pre-activation, as in textbooks."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from model.rules import ACTIVATIONS

from ..core.loss import cross_entropy
from ..device.programs import called_once
from .claim import Evidence, Pair, claim
from .reference import gelu, gelu_slope, softmax

SIZES, EXAMPLES = (5, 8, 7, 4), 6
BOOK = "Nielsen 2015, Neural Networks and Deep Learning, chapter 2"


@cache
def passes(examples: int = EXAMPLES) -> tuple[list, list, list, list]:
    """Backpropagates the mean loss of the first examples of an MLP.

    Returns by hand the activations that enter each layer and δ of each layer, [N, ...]; by JAX the gradients (W, b) of
    each layer, and those of an offset to each pre-activation.
    """
    rng, shapes = np.random.default_rng(4), zip(SIZES[:-1], SIZES[1:], strict=True)
    layers = [(rng.normal(size=(a, b)) / np.sqrt(a), 0.3 * rng.normal(size=b)) for a, b in shapes]  # (W [in, out], b)
    x = rng.normal(size=(EXAMPLES, SIZES[0]))[:examples]
    targets = rng.integers(0, SIZES[-1], EXAMPLES)[:examples].astype(np.int32)
    entering, before = [x], []
    for w, b in layers:
        before.append(entering[-1] @ w + b)
        entering.append(gelu(before[-1]))
    delta = [(softmax(before[-1]) - np.eye(SIZES[-1])[targets]) / examples]  # the last pre-activations are the logits
    for (w, _), z in zip(layers[:0:-1], before[-2::-1], strict=True):
        delta.insert(0, delta[0] @ w.T * gelu_slope(z))

    def loss(layers: list, offsets: list) -> jax.Array:
        h = z = jnp.asarray(x)
        for (w, b), offset in zip(layers, offsets, strict=True):
            z = h @ w + b[None, :] + offset
            h = ACTIVATIONS["gelu"].function()(z)
        return jnp.mean(cross_entropy(z, jnp.asarray(targets)))

    offsets = [np.zeros_like(z) for z in before]
    return entering[:-1], delta, *jax.device_get(called_once(jax.grad(loss, argnums=(0, 1)), layers, offsets))


@claim(BOOK + ", eqs. BP1 and BP2", "the recursion in numpy; jax.grad by an offset to each pre-activation")
def delta() -> Evidence:
    """δ_l = (W_(l+1)ᵀ δ_(l+1)) ⊙ σ'(z_l), from δ_last = (p - y)/N down, in an MLP of three layers"""
    _, predicted, _, measured = passes()
    return Evidence([Pair(p, m, f"δ_{n}") for n, (p, m) in enumerate(zip(predicted, measured, strict=True), 1)])


@claim(BOOK + ", eqs. BP3 and BP4", "numpy's outer products of what the recursion gives; jax.grad")
def weights() -> Evidence:
    """dL/dW_l = Σ a_(l-1) δ_lᵀ, an outer product for each example, and dL/db_l = Σ δ_l"""
    pairs = []
    for n, (a, delta, (w, b)) in enumerate(zip(*passes()[:3], strict=True), 1):
        outer = sum(np.outer(each, error) for each, error in zip(a, delta, strict=True))
        pairs += [Pair(outer, w, f"W_{n}"), Pair(delta.sum(axis=0), b, f"b_{n}")]
    return Evidence(pairs)


@claim("follows from BP4", "0, against the first singular value; numpy's SVD of jax.grad for one example")
def rank() -> Evidence:
    """One example's dL/dW has rank 1: all singular values but the first are 0"""
    values = [np.linalg.svd(w, compute_uv=False) for w, _ in passes(1)[2]]
    return Evidence([Pair(np.zeros(len(s) - 1), s[1:], f"W_{n}", float(s[0])) for n, s in enumerate(values, 1)])
