"""Singular values of the Jacobians of each block and of the whole stack of blocks.

The input is the carry of one example entering a block, flattened: n = tokens x width entries, or those of all parts
of a residual rule's carry. If all singular values are near 1, gradients pass unchanged (dynamical isometry: Saxe et al.
2014, 1312.6120; Pennington et al. 2017, 1711.04735).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from model.network import Anatomy
from model.residual import Carry
from model.scaling import power_of_two, scaled

from .norms import Norm
from .per_block import carries

EXACT = 1024  # largest n whose Jacobians are formed


class Spectrum(NamedTuple):
    """Singular values; rms is |J|_F / sqrt(n). nan: not measured, or below the rounding error n eps largest."""

    largest: Norm
    residual: Float[Array, "..."]  # |J^T J v - s^2 v| / s^2 of the largest; 0 for an exact spectrum
    rms: Norm
    median: Norm
    smallest: Norm


class Jacobians(NamedTuple):
    """Spectra of each block [L] and of the whole stack []."""

    block: Spectrum
    stack: Spectrum


def jacobians(
    anatomy: Anatomy, key: Key[Array, ""], iterations: int = 24, probes: int = 8, exact: int = EXACT
) -> Jacobians:
    """Returns the spectra of a model on one example: exact up to n = `exact`, estimated above.

    Estimates are the largest singular value by power iteration with jvp and vjp, a lower bound whose accuracy the
    residual tells, and the rms from random probes (Hutchinson 1990), accurate to about 1 / sqrt(2 probes). Vectors are
    rescaled at every depth, so that a product of many Jacobians may leave the dtype's range.
    """
    entered = carries(anatomy)
    size = sum(leaf[0].size for leaf in jax.tree.leaves(entered))
    if size <= exact:
        return _exact(anatomy, entered)
    depth = jax.tree.leaves(anatomy.blocks)[0].shape[0]

    def of_block(_: None, layer: Array) -> tuple[None, Spectrum]:
        block, carry = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, layer, 1), (anatomy.blocks, entered))
        return None, _iterated(_Stack(anatomy, block, carry, layer[None]), key, iterations, probes)

    _, blocks = jax.lax.scan(of_block, None, jnp.arange(depth))
    below = jax.tree.map(lambda leaf: leaf[:-1], entered)
    whole = _Stack(anatomy, anatomy.blocks, below, jnp.arange(depth))
    return Jacobians(blocks, _iterated(whole, key, iterations, probes))


class _Stack(NamedTuple):
    """Consecutive blocks, with the carry that enters each."""

    anatomy: Anatomy
    blocks: Any
    entered: Carry
    layers: Array

    @property
    def _inputs(self) -> tuple[Any, Array, Carry]:
        return self.blocks, self.layers, self.entered

    @property
    def like(self) -> Carry:
        return jax.tree.map(lambda leaf: leaf[0], self.entered)

    def push(self, tangent: Carry) -> tuple[Carry, Array]:
        """Returns J v as (entries at most 1, exponent of two)."""

        def body(state: tuple[Carry, Array], inputs: tuple[Any, Array, Carry]) -> tuple[tuple[Carry, Array], None]:
            (v, exponent), (parameters, layer, carry) = state, inputs
            _, out = jax.jvp(lambda c: self.anatomy.block(parameters, layer, c), (carry,), (v,))
            return _scaled(out, exponent), None

        return jax.lax.scan(body, _scaled(tangent, jnp.zeros((), jnp.float32)), self._inputs)[0]

    def pull(self, cotangent: Carry) -> tuple[Carry, Array]:
        """Returns J^T v as `push` does."""

        def body(state: tuple[Carry, Array], inputs: tuple[Any, Array, Carry]) -> tuple[tuple[Carry, Array], None]:
            (v, exponent), (parameters, layer, carry) = state, inputs
            pull: Any = jax.vjp(lambda c: self.anatomy.block(parameters, layer, c), carry)[1]
            return _scaled(pull(v)[0], exponent), None

        return jax.lax.scan(body, _scaled(cotangent, jnp.zeros((), jnp.float32)), self._inputs, reverse=True)[0]


def _iterated(stack: _Stack, key: Key[Array, ""], iterations: int, probes: int) -> Spectrum:
    flat, unravel = ravel_pytree(stack.like)

    def image(v: Array) -> tuple[Array, Array]:
        """Returns (J v, exponent)."""
        out, exponent = stack.push(unravel(v))
        return ravel_pytree(out)[0], exponent

    def round_trip(v: Array) -> tuple[Array, Array]:
        """Returns (J^T J v, exponent)."""
        out, up = stack.push(unravel(v))
        back, down = stack.pull(out)
        return ravel_pytree(back)[0], up + down

    def body(v: Array, _: None) -> tuple[Array, None]:
        w, _exponent = round_trip(v)
        length = jnp.linalg.norm(w)
        return jnp.where(length > 0, w / jnp.where(length > 0, length, 1), v), None

    start = jax.random.normal(key, flat.shape, flat.dtype)
    v, _ = jax.lax.scan(body, start / jnp.linalg.norm(start), None, length=iterations)
    w, exponent = round_trip(v)
    square = jnp.dot(v, w)
    residual = jnp.linalg.norm(w - square * v) / square
    odd = exponent % 2
    largest = Norm(jnp.sqrt(square * jnp.exp2(odd).astype(square.dtype)), (exponent - odd) / 2)

    def probe(_: None, key: Array) -> tuple[None, Norm]:
        out, exponent = image(jax.random.rademacher(key, flat.shape, flat.dtype))
        return None, Norm(jnp.linalg.norm(out), exponent)

    _, sizes = jax.lax.scan(probe, None, jax.random.split(key, probes))
    top = jnp.max(sizes.exponent)
    squares = jnp.square(scaled(sizes.mantissa, jnp.clip(sizes.exponent - top, -126.0, 0.0)))
    rms = Norm(jnp.sqrt(jnp.mean(squares) / flat.size), top)
    unknown = Norm(jnp.full((), jnp.nan, flat.dtype), jnp.zeros((), jnp.float32))
    return Spectrum(largest, residual, rms, unknown, unknown)


def _scaled(tree: Carry, exponent: Array) -> tuple[Carry, Array]:
    k = power_of_two(tree)
    return jax.tree.map(lambda leaf: scaled(leaf, -k), tree), exponent + k


def _exact(anatomy: Anatomy, entered: Carry) -> Jacobians:
    depth = jax.tree.leaves(anatomy.blocks)[0].shape[0]
    first, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], entered))
    zero = jnp.zeros((), jnp.float32)

    def body(state: tuple[Array, Array], inputs: tuple[Any, Array, Carry]) -> tuple[tuple[Array, Array], Spectrum]:
        (product, exponent), (parameters, layer, carry) = state, inputs

        def block(x: Array) -> Array:
            return ravel_pytree(anatomy.block(parameters, layer, unravel(x)))[0]

        jacobian = jax.jacrev(block)(ravel_pytree(carry)[0])
        product = jnp.matmul(jacobian, product, precision="highest")
        k = power_of_two(product)
        return (scaled(product, -k), exponent + k), _spectrum(jacobian, zero)

    below = jax.tree.map(lambda leaf: leaf[:-1], entered)
    start = (jnp.eye(first.size, dtype=first.dtype), zero)
    (product, exponent), blocks = jax.lax.scan(body, start, (anatomy.blocks, jnp.arange(depth), below))
    return Jacobians(blocks, _spectrum(product, exponent))


def _spectrum(jacobian: Float[Array, "n n"], exponent: Array) -> Spectrum:
    values = jnp.linalg.svd(jacobian, compute_uv=False)
    rms = jnp.sqrt(jnp.mean(jnp.square(values / jnp.where(values[0] > 0, values[0], 1)))) * values[0]
    # Values below this are indistinguishable from zero: they are rounding errors of the largest.
    least = values.size * jnp.finfo(values.dtype).eps * values[0]
    median, smallest = (jnp.where(x >= least, x, jnp.nan) for x in (jnp.median(values), values[-1]))
    largest, rms, median, smallest = (Norm(x, exponent) for x in (values[0], rms, median, smallest))
    return Spectrum(largest, jnp.zeros((), values.dtype), rms, median, smallest)
