"""Claims about cost in FLOPs, counted by XLA in the programs: without a clock, so that they are deterministic."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ..device.programs import called_once
from .claim import Evidence, Pair, Tolerance, claim
from .subject import Subject

SIZES, BATCH = (64, 96, 64, 8), 32
SMALL, FEW = (3, 5, 4, 2), 6
BOOK = "Griewank & Walther 2008, Evaluating Derivatives, sections 3.2 and 3.3"
ELEMENTWISE = Tolerance(
    0.1, "tanh, sums and differences are not in the prediction: a few operations for each 2 x 64 of a product"
)
# FLOPs of the MLP's matrix products forward, layer by layer.
PRODUCTS = [2.0 * BATCH * a * b for a, b in zip(SIZES[:-1], SIZES[1:], strict=True)]
FORWARD, FIRST = sum(PRODUCTS), PRODUCTS[0]


def mlp(sizes: tuple[int, ...] = SIZES, batch: int = BATCH) -> tuple[Callable[[Array], Array], np.ndarray]:
    """Returns the loss of a tanh MLP as a function of all its weights in one vector, and such a vector."""
    rng = np.random.default_rng(12)
    weights = [rng.normal(size=pair) / np.sqrt(pair[0]) for pair in zip(sizes[:-1], sizes[1:], strict=True)]
    x, y = rng.normal(size=(batch, sizes[0])), rng.normal(size=(batch, sizes[-1]))
    flat, unflat = ravel_pytree([jnp.asarray(w) for w in weights])

    def loss(flat: Array) -> Array:
        h = jnp.asarray(x)
        for w in unflat(flat):
            h = jnp.tanh(h @ w)
        return jnp.mean(jnp.square(h - y))

    return loss, np.asarray(flat)


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns XLA's count for the program of a function as it was traced, before any rewriting."""
    counted: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return float((counted[0] if isinstance(counted, list) else counted)["flops"])  # a list in older versions of JAX


@cache
@claim(
    BOOK,
    "2 N Σ d_l d_(l+1) by hand (no gradient of the input); XLA's count in jax.grad of an MLP, and in the loss",
    ELEMENTWISE,
    each=True,
)
def backward() -> Evidence:
    """A backward pass costs two forward passes: 3 F - F_1 FLOPs in all, F those of the matrix products"""
    loss, flat = mlp()
    measured = [flops(jax.grad(loss), flat), flops(loss, flat)]
    return Evidence([Pair([3 * FORWARD - FIRST, FORWARD], measured)], f"n = {flat.size:,} weights")


@cache
@claim(BOOK, "by hand; XLA's count in jax.jvp and in jax.jacfwd of the same MLP", ELEMENTWISE)
def forward() -> Evidence:
    """A forward-mode pass costs as much and gives one number of n: F + n (2 F - F_1) FLOPs for the gradient"""
    loss, flat = mlp()
    tangent = flops(lambda w, u: jax.jvp(loss, (w,), (u,))[1], flat, np.ones_like(flat))
    one = Pair(3 * FORWARD - FIRST, tangent, "one pass")
    gradient = FORWARD + flat.size * (2 * FORWARD - FIRST)
    shared = Pair(gradient, flops(jax.jacfwd(loss), flat), "n passes that share the way forward")
    return Evidence([one, shared], f"n = {flat.size:,} weights")


@claim(
    "Baur & Strassen 1983; " + BOOK,
    "n, the number of weights; n times XLA's count in jax.jvp over that in jax.grad",
    ELEMENTWISE,
)
def ratio() -> Pair:
    """n forward-mode passes cost n backward passes, which is why gradients are propagated backwards"""
    (one, _), (gradient,), n = forward().pairs, backward().pairs, mlp()[1].size
    return Pair(float(n), n * one.measured / gradient.measured[0])


@claim(BOOK, "n passes of jax.jvp, one along each weight, of a small MLP; one of jax.grad")
def same_gradient() -> Pair:
    """n forward-mode passes and one backward pass give the same gradient"""
    loss, flat = mlp(SMALL, FEW)
    passes = jax.vmap(lambda u: jax.jvp(loss, (flat,), (u,))[1])
    return Pair(called_once(passes, np.eye(flat.size)), called_once(jax.grad(loss), flat))


@claim(
    "the cheap gradient principle: Griewank & Walther 2008, Evaluating Derivatives, chapter 3",
    "4; XLA's counts in the project's network, blocks unrolled",
    Tolerance(0.0, "a bound"),
    relation="<=",
    of_model=True,
)
def model(subject: Subject) -> Pair:
    """Loss and gradient of the model cost at most 4 times the loss alone"""
    # In a loop over blocks XLA would count only one of them.
    network = dataclasses.replace(subject.network, unroll=subject.network.config.layers)
    loss, shapes = dataclasses.replace(subject, network=network).loss, network.shapes()
    return Pair(4.0, flops(jax.grad(loss), shapes) / flops(loss, shapes))
