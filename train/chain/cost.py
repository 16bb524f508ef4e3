"""Claims about cost, in FLOPs that XLA counts in the programs: no clock, so nothing that can flake."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..core.compile import called_once, compiled
from .claim import Claim, Evidence, Pair, Tolerance, evidence
from .subject import Subject

SIZES, BATCH = (64, 96, 64, 8), 32
SMALL, FEW = (3, 5, 4, 2), 6
BOOK = "Griewank & Walther 2008, Evaluating Derivatives, sections 3.2 and 3.3"

Loss = Callable[[Float[Array, "n"]], Float[Array, ""]]


@cache
def _mlp(sizes: tuple[int, ...], batch: int) -> tuple[Loss, np.ndarray]:
    """The loss of a tanh MLP as a function of all its weights in one vector, and such a vector."""
    rng = np.random.default_rng(12)
    weights = [rng.normal(size=pair) / np.sqrt(pair[0]) for pair in zip(sizes[:-1], sizes[1:], strict=True)]
    x, y = rng.normal(size=(batch, sizes[0])), rng.normal(size=(batch, sizes[-1]))
    flat, unflat = ravel_pytree([jnp.asarray(w) for w in weights])

    def loss(flat: Array) -> Array:
        h = jnp.asarray(x)
        for w in unflat(flat):
            h = jnp.tanh(h @ w)
        return jnp.mean(jnp.square(h - jnp.asarray(y)))

    return loss, np.asarray(flat)


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """What XLA counts in the program of a function, as it was traced and before any rewriting."""
    counted: Any = jax.jit(function).lower(*arguments).cost_analysis()
    counted = counted[0] if isinstance(counted, list) else counted  # by older versions of JAX
    return float(counted["flops"])


def _products() -> tuple[float, float]:
    """FLOPs of the MLP's matrix products forward: of all layers, and of the first."""
    each = [2.0 * BATCH * a * b for a, b in zip(SIZES[:-1], SIZES[1:], strict=True)]
    return sum(each), each[0]


def _reverse() -> Evidence:
    loss, flat = _mlp(SIZES, BATCH)
    forward, first = _products()
    predicted = np.array([3 * forward - first, forward])
    return evidence(predicted, np.array([flops(jax.grad(loss), flat), flops(loss, flat)]), f"n = {flat.size:,} weights")


def _forward() -> Evidence:
    loss, flat = _mlp(SIZES, BATCH)
    forward, first = _products()
    n = flat.size
    one, all_at_once = 3 * forward - first, forward + n * (2 * forward - first)
    tangent = np.ones_like(flat)
    measured = flops(lambda w, u: jax.jvp(loss, (w,), (u,))[1], flat, tangent), flops(jax.jacfwd(loss), flat)
    return Evidence(
        (Pair(one, measured[0], "one pass"), Pair(all_at_once, measured[1], "n passes that share the way forward")),
        f"n = {n:,} weights",
    )


def _ratio() -> Evidence:
    loss, flat = _mlp(SIZES, BATCH)
    one_pass = flops(lambda w, u: jax.jvp(loss, (w,), (u,))[1], flat, np.ones_like(flat))
    return evidence(float(flat.size), flat.size * one_pass / flops(jax.grad(loss), flat))


def _same() -> Evidence:
    loss, flat = _mlp(SMALL, FEW)
    one_pass = compiled(lambda u: jax.jvp(loss, (jnp.asarray(flat),), (u,))[1], (flat,), once=True)
    passes = np.array([float(one_pass(u)) for u in np.eye(flat.size)])
    return evidence(passes, called_once(jax.grad(loss), flat))


def _of_the_model(subject: Subject) -> Evidence:
    loss, shapes = subject.unrolled_loss(), subject.network.shapes()
    ratio = flops(jax.grad(loss), shapes) / flops(loss, shapes)
    return evidence(4.0, ratio)


_ELEMENTWISE = Tolerance(
    0.1, "tanh, sums and differences are not in the prediction: a few operations beside each 2 x 64 of a product"
)


def claims(subject: Subject) -> tuple[Claim, ...]:
    return (
        Claim(
            "cost/backward",
            "A backward pass costs two forward passes: 3 F - F_1 FLOPs in all, F those of the matrix products",
            BOOK,
            "2 N Σ d_l d_(l+1) by hand (no gradient of the input); XLA's count in jax.grad of an MLP, and in the loss",
            _reverse,
            _ELEMENTWISE,
            each=True,
        ),
        Claim(
            "cost/forward",
            "A forward-mode pass costs as much and gives one number of n: F + n (2 F - F_1) FLOPs for the gradient",
            BOOK,
            "by hand; XLA's count in jax.jvp and in jax.jacfwd of the same MLP",
            _forward,
            _ELEMENTWISE,
        ),
        Claim(
            "cost/ratio",
            "n forward-mode passes cost n backward passes, which is why gradients are propagated backwards",
            "Baur & Strassen 1983; " + BOOK,
            "n, the number of weights; n times XLA's count in jax.jvp over that in jax.grad",
            _ratio,
            _ELEMENTWISE,
        ),
        Claim(
            "cost/same_gradient",
            "n forward-mode passes and one backward pass give the same gradient",
            BOOK,
            "n passes of jax.jvp, one along each weight, of a small MLP; one of jax.grad",
            _same,
        ),
        Claim(
            "cost/model",
            "Loss and gradient of the model cost at most 4 times the loss alone",
            "the cheap gradient principle: Griewank & Walther 2008, Evaluating Derivatives, chapter 3",
            "4; XLA's counts in the project's network, blocks unrolled",
            partial(_of_the_model, subject),
            Tolerance(0.0, "a bound"),
            "<=",
        ),
    )
