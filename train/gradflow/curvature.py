"""A loss around the current weights: the ends of its Hessian's spectrum, and its values along a line.

`loss` is any scalar function of a pytree of parameters. The spectrum comes from Lanczos on Hessian-vector products,
which are differentiated in forward mode: that rules out the tapped loss (a custom_vjp), so leave the taps out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

Loss = Callable[[Any], Float[Array, ""]]
Product = Callable[[Float[Array, "P"]], Float[Array, "P"]]


class SpectrumEnds(NamedTuple):
    """Estimates of the largest and smallest eigenvalues of a symmetric matrix A.

    Each residual is |A v - value v| with |v| = 1; an eigenvalue lies within that distance of the estimate.
    """

    top: Float[Array, ""]
    bottom: Float[Array, ""]
    top_residual: Float[Array, ""]
    bottom_residual: Float[Array, ""]


def hessian_product(loss: Loss, params: Any) -> tuple[Product, int]:
    """Returns (v -> H v, number of parameters), forward over reverse (Pearlmutter 1994), with v one flat vector."""
    flat, unravel = ravel_pytree(params)

    def gradient(x: Array) -> Array:
        return jax.grad(lambda y: loss(unravel(y)))(x)

    return lambda v: jax.jvp(gradient, (flat,), (v,))[1], flat.size


def sharpness(loss: Loss, params: Any, key: Key[Array, ""], iterations: int = 24) -> SpectrumEnds:
    """Returns the largest and the smallest eigenvalue of the Hessian; the smallest is negative at a saddle."""
    product, size = hessian_product(loss, params)
    return lanczos(product, _start(key, size, params), iterations)


def preconditioned_sharpness(
    loss: Loss, params: Any, preconditioner: Any, key: Key[Array, ""], iterations: int = 24
) -> SpectrumEnds:
    """Returns the `sharpness` of P^(-1/2) H P^(-1/2), which has the eigenvalues of P^-1 H.

    `preconditioner` is the positive diagonal P, a pytree like the parameters; for Adam P = sqrt(v-hat) + eps (Cohen et
    al. 2022, 2207.14484, eq. 3). At a constant learning rate the largest eigenvalue hovers near
    (2 + 2 beta_1) / ((1 - beta_1) lr), which is 38 / lr for beta_1 = 0.9.
    """
    product, size = hessian_product(loss, params)
    root = jax.lax.rsqrt(ravel_pytree(preconditioner)[0])
    return lanczos(lambda v: root * product(root * v), _start(key, size, params), iterations)


def _start(key: Key[Array, ""], size: int, params: Any) -> Float[Array, "P"]:
    return jax.random.normal(key, (size,), ravel_pytree(params)[0].dtype)


def lanczos(product: Product, start: Float[Array, "P"], iterations: int) -> SpectrumEnds:
    """Estimates the ends of a spectrum by Lanczos with full reorthogonalization. Memory: iterations x P.

    Each vector is orthogonalized twice, since once is not enough in floating point (Parlett 1998, section 6.9).
    Residuals are computed from the vectors: the recursion's estimate holds in exact arithmetic only.
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
        # At an invariant subspace the remainder is rounding and gives no further direction.
        alive = alive & (beta > 100 * jnp.finfo(w.dtype).eps * size)
        beta = jnp.where(alive, beta, 0)
        following = jnp.where(alive, w / jnp.where(alive, beta, 1), 0)
        basis = jax.lax.dynamic_update_index_in_dim(
            basis, jnp.where(index + 1 < iterations, following, basis[-1]), jnp.minimum(index + 1, iterations - 1), 0
        )
        return (basis, alive), (alpha, beta)

    (basis, _), (alphas, betas) = jax.lax.scan(body, (basis, jnp.array(True)), jnp.arange(iterations))
    # Missing basis vectors get a diagonal entry outside the range of the others, so that they do not mix with them.
    there = jnp.any(basis != 0, axis=1)
    beyond = 4 * (jnp.max(jnp.abs(alphas)) + jnp.max(betas)) + 1
    off = betas[:-1]
    small = jnp.diag(jnp.where(there, alphas, beyond)) + jnp.diag(off, 1) + jnp.diag(off, -1)
    values, vectors = jnp.linalg.eigh(small)
    real = values < beyond / 2

    def quotient(vector: Array) -> tuple[Array, Array]:
        """Returns (Rayleigh quotient, residual) of a vector given by its coordinates in the basis."""
        v = vector @ basis
        v = v / jnp.linalg.norm(v)
        w = product(v)
        value = jnp.dot(v, w)
        return value, jnp.linalg.norm(w - value * v)

    chosen = jnp.stack([vectors[:, jnp.sum(real) - 1], vectors[:, 0]])
    (top, bottom), (top_residual, bottom_residual) = jax.lax.map(quotient, chosen)
    return SpectrumEnds(top, bottom, top_residual, bottom_residual)


def critical_multiple(
    loss: Loss, params: Any, direction: Any, doublings: int = 20, secants: int = 3
) -> Float[Array, ""]:
    """Returns the smallest c > 0 found with loss(params + c direction) no lower than loss(params).

    From 1 on c is doubled, or halved, until the loss changes between falling and not; then the root of
    (loss(c) - loss(0)) / c is bracketed by secants, exact on a parabola, where c = -2 g.d / d.H.d. (The value at the
    end that stays is halved, which hastens the others.) At most `doublings` + `secants` + 2 forward passes; 6 if the
    first doubling brackets it. nan: not found, as for a direction that leads up.
    """
    start = loss(params)

    def slope(c: Array) -> Array:
        moved = jax.tree.map(lambda p, d: p + c.astype(p.dtype) * d.astype(p.dtype), params, direction)
        return (loss(moved) - start) / c

    one = jnp.ones((), start.dtype)
    first = slope(one)
    falls = first < 0
    factor = jnp.where(falls, 2 * one, one / 2)

    def outside(state: tuple[Array, ...]) -> Array:
        step, _, _, _, at = state
        return (step < doublings) & ((at < 0) == falls)

    def double(state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, _, _, c, at = state
        return step + 1, c, at, factor * c, slope(factor * c)

    state = jax.lax.while_loop(outside, double, (jnp.zeros((), jnp.int32), one, first, one, first))
    _, *before, c, at = state
    bracketed = (at < 0) != falls
    low, below, high, above = jax.tree.map(partial(jnp.where, falls), (*before, c, at), (c, at, *before))

    def root(bracket: tuple[Array, ...]) -> Array:
        low, below, high, above = bracket
        secant = low - below * (high - low) / (above - below)
        return jnp.where(jnp.isfinite(above), secant, (low + high) / 2)

    def narrow(_: int, bracket: tuple[Array, ...]) -> tuple[Array, ...]:
        low, below, high, above = bracket
        c = root(bracket)
        at = slope(c)
        return jax.tree.map(partial(jnp.where, at < 0), (c, at, high, above / 2), (low, below / 2, c, at))

    bracket = jax.lax.fori_loop(0, secants, narrow, (low, below, high, above))
    return jnp.where(bracketed, root(bracket), jnp.nan)


def along_line(loss: Loss, params: Any, direction: Any, multiples: Float[Array, "n"]) -> Float[Array, "n"]:
    """Returns loss(params + multiple * direction) for each multiple, evaluated one after the other."""

    def at(multiple: Array) -> Array:
        return loss(jax.tree.map(lambda p, d: p + multiple.astype(p.dtype) * d.astype(p.dtype), params, direction))

    return jax.lax.map(at, multiples)


def random_direction(params: Any, key: Key[Array, ""]) -> Any:
    """Returns a Gaussian direction in which each matrix of each layer has the Frobenius norm of the matrix itself.

    A multiple of 1 moves each matrix by its own length (filter normalization, Li et al. 2018, 1712.09913, section 4,
    with one filter a matrix). Leaves under "blocks" are stacked along their first axis.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(key, len(leaves))

    def matched(path: tuple, leaf: Array, key: Array) -> Array:
        stacked = getattr(path[0], "key", None) == "blocks"
        axes = tuple(range(int(stacked), leaf.ndim))
        noise = jax.random.normal(key, leaf.shape, leaf.dtype)
        length, norm = (jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True)) for x in (noise, leaf))
        return noise * (norm / length)

    return jax.tree.unflatten(structure, [matched(path, leaf, k) for (path, leaf), k in zip(leaves, keys, strict=True)])
