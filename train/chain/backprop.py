"""Claims about backpropagation through an MLP, by hand. Here δ is dL/dz at a pre-activation, as in textbooks."""

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from model.mlp import ACTIVATIONS

from ..core.compile import called_once
from ..core.loss import cross_entropy
from . import by_hand
from .claim import Claim, Evidence, Pair

SIZES = (5, 8, 7, 4)
EXAMPLES = 6
BOOK = "Nielsen 2015, Neural Networks and Deep Learning, chapter 2"

Layers = list[tuple[np.ndarray, np.ndarray]]  # (W [in, out], b [out])


@cache
def _problem() -> tuple[Layers, Float[np.ndarray, "N D"], Int[np.ndarray, "N"]]:
    rng = np.random.default_rng(4)
    layers = [
        (rng.normal(size=(a, b)) / np.sqrt(a), 0.3 * rng.normal(size=b))
        for a, b in zip(SIZES[:-1], SIZES[1:], strict=True)
    ]
    return layers, rng.normal(size=(EXAMPLES, SIZES[0])), rng.integers(0, SIZES[-1], EXAMPLES).astype(np.int32)


@cache
def _by_hand(examples: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(activations a_l that enter each layer, δ_l of each layer), [N, ...], of the mean loss of the first examples."""
    layers, x, targets = _problem()
    x, targets = x[:examples], targets[:examples]
    entering, before = [x], []
    for w, b in layers:
        before.append(entering[-1] @ w + b)
        entering.append(by_hand.gelu(before[-1]))
    # The last pre-activations are the logits.
    delta = [(by_hand.softmax(before[-1]) - by_hand.one_hot(targets, SIZES[-1])) / examples]
    for (w, _), z in zip(layers[:0:-1], before[-2::-1], strict=True):
        delta.insert(0, delta[0] @ w.T * by_hand.gelu_slope(z))
    return entering[:-1], delta


@cache
def _by_jax(examples: int) -> tuple[Layers, list[np.ndarray]]:
    """(gradients of every W and b, gradients of an offset to every pre-activation)."""
    layers, x, targets = _problem()

    def loss(layers: Sequence[tuple[jax.Array, jax.Array]], offsets: Sequence[jax.Array]) -> jax.Array:
        h = z = jnp.asarray(x[:examples])
        for (w, b), offset in zip(layers, offsets, strict=True):
            z = h @ w + b[None, :] + offset
            h = ACTIVATIONS["gelu"](z)
        return jnp.mean(cross_entropy(z, jnp.asarray(targets[:examples])))

    offsets = [jnp.zeros((examples, size)) for size in SIZES[1:]]
    found = called_once(jax.grad(loss, argnums=(0, 1)), [(jnp.asarray(w), jnp.asarray(b)) for w, b in layers], offsets)
    return jax.device_get(found)


def _delta() -> Evidence:
    pairs = zip(_by_hand(EXAMPLES)[1], _by_jax(EXAMPLES)[1], strict=True)
    return Evidence(tuple(Pair(p, m, f"δ_{n}") for n, (p, m) in enumerate(pairs, 1)))


def _weights() -> Evidence:
    entering, deltas = _by_hand(EXAMPLES)
    pairs = []
    for n, (a, delta, (w, b)) in enumerate(zip(entering, deltas, _by_jax(EXAMPLES)[0], strict=True), 1):
        outer = sum(np.outer(one, error) for one, error in zip(a, delta, strict=True))
        pairs += [Pair(outer, w, f"W_{n}"), Pair(delta.sum(axis=0), b, f"b_{n}")]
    return Evidence(tuple(pairs))


def _rank() -> Evidence:
    pairs = []
    for n, (w, _) in enumerate(_by_jax(1)[0], 1):
        values = np.linalg.svd(w, compute_uv=False)
        pairs.append(Pair(np.zeros(len(values) - 1), values[1:], f"W_{n}", float(values[0])))
    return Evidence(tuple(pairs))


CLAIMS = (
    Claim(
        "backprop/delta",
        "δ_l = (W_(l+1)ᵀ δ_(l+1)) ⊙ σ'(z_l), from δ_last = (p - y)/N down, in an MLP of three layers",
        BOOK + ", eqs. BP1 and BP2",
        "the recursion in numpy; jax.grad by an offset to each pre-activation",
        _delta,
    ),
    Claim(
        "backprop/weights",
        "dL/dW_l = Σ a_(l-1) δ_lᵀ, an outer product for each example, and dL/db_l = Σ δ_l",
        BOOK + ", eqs. BP3 and BP4",
        "numpy's outer products of what the recursion gives; jax.grad",
        _weights,
    ),
    Claim(
        "backprop/rank",
        "One example's dL/dW has rank 1: all singular values but the first are 0",
        "follows from BP4",
        "0, against the first singular value; numpy's SVD of jax.grad for one example",
        _rank,
    ),
)
