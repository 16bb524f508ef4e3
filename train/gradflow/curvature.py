"""Curvature of a loss: the ends of the Hessian's spectrum, by Lanczos on Hessian-vector products.

Functions of functions: `loss` is any scalar function of a pytree of parameters. What it is made of must have forward
derivatives, so it cannot be the tapped loss (a custom_vjp): leave the taps out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

Loss = Callable[[Any], Float[Array, ""]]
Product = Callable[[Float[Array, "P"]], Float[Array, "P"]]


class SpectrumEnds(NamedTuple):
    """The ends of a symmetric matrix's spectrum, as far as the iterations found them.

    A residual |A v - value v| bounds the distance to an eigenvalue; v has length 1.
    """

    top: Float[Array, ""]
    bottom: Float[Array, ""]
    top_residual: Float[Array, ""]
    bottom_residual: Float[Array, ""]


def hessian_product(loss: Loss, params: Any) -> tuple[Product, int]:
    """v -> H v of the parameters as one vector, forward over reverse (Pearlmutter 1994), and how many there are."""
    flat, unravel = ravel_pytree(params)

    def gradient(x: Array) -> Array:
        return jax.grad(lambda y: loss(unravel(y)))(x)

    return lambda v: jax.jvp(gradient, (flat,), (v,))[1], flat.size


def sharpness(loss: Loss, params: Any, key: Key[Array, ""], iterations: int = 24) -> SpectrumEnds:
    """The largest eigenvalue of the Hessian and the most negative one (a saddle has one)."""
    product, size = hessian_product(loss, params)
    return lanczos(product, _start(key, size, params), iterations)


def preconditioned_sharpness(
    loss: Loss, params: Any, preconditioner: Any, key: Key[Array, ""], iterations: int = 24
) -> SpectrumEnds:
    """The same of P^(-1/2) H P^(-1/2), which has the eigenvalues of P^-1 H; P is diagonal, a pytree like the
    parameters and positive.

    For Adam P = sqrt(v-hat) + eps: what an optimizer that divides by P feels (Cohen et al. 2022, 2207.14484, eq. 3). At
    a constant rate it stays near (2 + 2 beta_1) / ((1 - beta_1) lr), 38 / lr for beta_1 = 0.9.
    """
    product, size = hessian_product(loss, params)
    root = jax.lax.rsqrt(ravel_pytree(preconditioner)[0])
    return lanczos(lambda v: root * product(root * v), _start(key, size, params), iterations)


def _start(key: Key[Array, ""], size: int, params: Any) -> Float[Array, "P"]:
    return jax.random.normal(key, (size,), ravel_pytree(params)[0].dtype)


def lanczos(product: Product, start: Float[Array, "P"], iterations: int) -> SpectrumEnds:
    """Lanczos with full reorthogonalization, twice, since in floating point once is not enough (Parlett 1998, section
    6.9). Memory: iterations x P.

    The residuals are computed from the vectors and not from the recursion, whose estimate holds in exact arithmetic.
    """
    iterations = min(iterations, start.size)
    basis = jnp.zeros((iterations, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))

    def body(state: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, alive = state
        v = basis[index]
        w = product(v)
        alpha = jnp.dot(v, w)
        size = jnp.linalg.norm(w)
        for _ in range(2):
            w = w - basis.T @ (basis @ w)
        beta = jnp.linalg.norm(w)
        # An invariant subspace was found: what is left is rounding, and no direction to go on with.
        alive = alive & (beta > 100 * jnp.finfo(w.dtype).eps * size)
        beta = jnp.where(alive, beta, 0)
        following = jnp.where(alive, w / jnp.where(alive, beta, 1), 0)
        basis = jax.lax.dynamic_update_index_in_dim(
            basis, jnp.where(index + 1 < iterations, following, basis[-1]), jnp.minimum(index + 1, iterations - 1), 0
        )
        return (basis, alive), (alpha, beta)

    (basis, _), (alphas, betas) = jax.lax.scan(body, (basis, jnp.array(True)), jnp.arange(iterations))
    # Vectors that the basis lacks are kept apart by a value that none of the others has.
    there = jnp.any(basis != 0, axis=1)
    beyond = 4 * (jnp.max(jnp.abs(alphas)) + jnp.max(betas)) + 1
    off = betas[:-1]
    small = jnp.diag(jnp.where(there, alphas, beyond)) + jnp.diag(off, 1) + jnp.diag(off, -1)
    values, vectors = jnp.linalg.eigh(small)
    real = values < beyond / 2

    def quotient(vector: Array) -> tuple[Array, Array]:
        """(Rayleigh quotient, residual) of a vector of the small space: no less true than the small matrix's value."""
        v = vector @ basis
        v = v / jnp.linalg.norm(v)
        w = product(v)
        value = jnp.dot(v, w)
        return value, jnp.linalg.norm(w - value * v)

    chosen = jnp.stack([vectors[:, jnp.sum(real) - 1], vectors[:, 0]])
    (top, bottom), (top_residual, bottom_residual) = jax.lax.map(quotient, chosen)
    return SpectrumEnds(top, bottom, top_residual, bottom_residual)
