"""Norms that neither underflow nor overflow.

In float32 the squares of entries below 1e-19 are flushed to zero, and the entries themselves below 1e-38. A norm is
therefore a pair (mantissa, exponent) of value mantissa * 2^exponent: the power of two of the largest entry is factored
out first (a CPU sums in float64 instead), and exponents that a tap factored out of the cotangent (model/taps.py) are
added. Nothing is floored; an exact zero has mantissa 0.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from model.layers import wide
from model.network import leaves_by_path
from model.scaling import exponent_of, in_double, power_of_two, rooted, scaled


class Norm(NamedTuple):
    """mantissa * 2^exponent, elementwise, with an integer-valued exponent. Also used for signed values."""

    mantissa: Float[Array, "..."]
    exponent: Float[Array, "..."]

    def times(self, exponent: Float[Array, "..."] | float) -> "Norm":
        """Returns the values times 2^exponent."""
        return Norm(self.mantissa, self.exponent + exponent)

    def over(self, other: "Norm") -> "Norm":
        """Returns the elementwise quotient; nan where the divisor is exactly zero."""
        divisor = jnp.where(other.mantissa == 0, jnp.nan, other.mantissa)
        return Norm(self.mantissa / divisor, self.exponent - other.exponent)


@jax.tree_util.register_pytree_node_class
class Norms(Mapping[str, Norm]):
    """A mapping from names to norms, stored as stacks [..., names], one for each shape.

    A program then returns a few arrays; one output a norm would be slow to compile and to fetch.
    """

    def __init__(self, *stacks: tuple[tuple[str, ...], Norm]) -> None:
        self._stacks = stacks

    def __getitem__(self, name: str) -> Norm:
        for names, stack in self._stacks:
            if name in names:
                index = names.index(name)
                return Norm(stack.mantissa[..., index], stack.exponent[..., index])
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for names, _ in self._stacks for name in names)

    def __len__(self) -> int:
        return sum(len(names) for names, _ in self._stacks)

    def joined(self, other: "Norms") -> "Norms":
        return Norms(*self._stacks, *other._stacks)

    def log10(self) -> dict[str, np.ndarray]:
        """Returns `log10` of every norm by name, on the host."""
        out = {}
        for names, stack in self._stacks:
            logs = log10(stack)
            out |= {name: logs[..., index] for index, name in enumerate(names)}
        return out

    def tree_flatten(self) -> tuple[tuple[Norm, ...], tuple[tuple[str, ...], ...]]:
        return tuple(stack for _, stack in self._stacks), tuple(names for names, _ in self._stacks)

    @classmethod
    def tree_unflatten(cls, names: tuple[tuple[str, ...], ...], stacks: Iterable[Norm]) -> "Norms":
        return cls(*zip(names, stacks, strict=True))


def frobenius(x: Array, exponent: Float[Array, ""] | float = 0.0) -> Norm:
    """Returns the Frobenius norm of x * 2^exponent, x of any shape and floating dtype, summed in at least float32."""
    return jax.tree.map(lambda leaf: leaf[0], _frobenius_of([x], ())).times(exponent)


def stacked_frobenius(x: Float[Array, "L ..."], exponents: Float[Array, "L"] | None = None) -> Norm:
    """Returns the Frobenius norms [L] of x[l] * 2^exponents[l], reduced over every axis but the first."""
    norm = jax.tree.map(lambda leaf: leaf[:, 0], _frobenius_of([x], x.shape[:1]))
    return norm if exponents is None else norm.times(exponents)


def _frobenius_of(leaves: list[Array], lead: tuple[int, ...]) -> Norm:
    """Returns norms [*lead, leaves] of arrays [*lead, ...] together: one kernel a norm would be slow to compile."""
    axes = [tuple(range(len(lead), leaf.ndim)) for leaf in leaves]
    dtype = jnp.result_type(*(wide(leaf.dtype) for leaf in leaves))

    def sums_of_squares(units: list[Array]) -> Array:
        return jnp.stack([jnp.sum(jnp.square(unit), axis=axis) for unit, axis in zip(units, axes, strict=True)], -1)

    def largest_factored_out() -> Norm:
        tops = [jnp.max(jnp.abs(leaf), axis=axis).astype(dtype) for leaf, axis in zip(leaves, axes, strict=True)]
        k = exponent_of(jnp.stack(tops, axis=-1))
        units = [leaf.astype(dtype) for leaf in leaves]  # before squaring: a bfloat16 square has three digits
        shifts = [-k[..., i].reshape(lead + (1,) * (leaf.ndim - len(lead))) for i, leaf in enumerate(leaves)]
        return Norm(jnp.sqrt(sums_of_squares([scaled(*pair) for pair in zip(units, shifts, strict=True)])), k)

    def in_one_pass() -> Norm:
        return Norm(*rooted(sums_of_squares([leaf.astype(jnp.float64) for leaf in leaves])))

    return in_double(dtype, in_one_pass, largest_factored_out)


def inner(a: Array, b: Array, exponent: Float[Array, ""] | float = 0.0) -> Norm:
    """Returns <a, b * 2^exponent>, signed, summed in at least float32."""
    k, m, dtype = power_of_two(a), power_of_two(b), wide(a.dtype)
    total = jnp.sum(scaled(a, -k).astype(dtype) * scaled(b, -m).astype(dtype))
    return Norm(total, k + m + exponent)


def signed_sum(parts: Iterable[Norm]) -> Norm:
    """Returns the elementwise sum of signed values of one shape."""
    return along(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts), 0)


def along(stack: Norm, axis: int) -> Norm:
    """Returns the sum of signed values over an axis."""
    terms, top = _aligned(stack, axis)
    return Norm(jnp.sum(terms, axis), top)


def _aligned(stack: Norm, axis: int) -> tuple[Array, Array]:
    """Returns mantissas at one exponent, and that exponent, the largest of a nonzero value along the axis."""
    top = jnp.max(jnp.where(stack.mantissa != 0, stack.exponent, -jnp.inf), axis, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    # Terms below 2^-126 of the largest vanish in a sum; exponents above 0 belong to zeros.
    return scaled(stack.mantissa, jnp.clip(stack.exponent - top, -126.0, 0.0)), top.squeeze(axis)


def cosine(product: Norm, a_square: Norm, b_square: Norm) -> Array:
    """Returns <a, b> / (|a| |b|) from <a, b>, <a, a> and <b, b>; nan where a or b is exactly zero."""
    sizes = jnp.sqrt(a_square.mantissa) * jnp.sqrt(b_square.mantissa)
    # The cosine is at most 1, so the difference of the exponents is in range.
    power = product.exponent - (a_square.exponent + b_square.exponent) / 2
    return product.mantissa / sizes * jnp.exp2(power).astype(sizes.dtype)


def root_sum_square(norms: Iterable[Norm]) -> Norm:
    """Returns the elementwise root of the sum of squares of norms of one shape."""
    return _combined(jax.tree.map(lambda *leaves: jnp.stack(leaves), *norms))


def _combined(stack: Norm, axis: int = 0) -> Norm:
    """Returns the root of the sum of squares over an axis."""
    parts, top = _aligned(stack, axis)
    return Norm(jnp.sqrt(jnp.sum(jnp.square(parts), axis)), top)


def root_mean_of_parts(stack: Norm) -> Norm:
    """Returns sqrt(sum |delta_m|^2 / M^2) over the leading axis: delta of a batch from its M micro-batches."""
    parts = stack.mantissa.shape[0]
    total = _combined(stack)
    return Norm(total.mantissa / parts, total.exponent)


def matrix_norms(blocks: Mapping[str, Any], exponents: Float[Array, "L"] | None = None) -> Norms:
    """Returns norms [L] of every stacked parameter of the blocks, by tag, and of the whole block as `layer`."""
    leaves = named(blocks)
    stack = _frobenius_of(list(leaves.values()), next(iter(leaves.values())).shape[:1])
    if exponents is not None:
        stack = stack.times(exponents[:, None])
    whole = jax.tree.map(lambda leaf: leaf[:, None], _combined(stack, 1))
    return Norms(((*leaves, "layer"), jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), stack, whole)))


def separate_norms(leaves: Mapping[str, Array], exponents: Mapping[str, Array] | None = None) -> Norms:
    """Returns the Frobenius norm [] of each leaf, times 2^exponent where `exponents` has one."""
    stack = _frobenius_of(list(leaves.values()), ())
    if exponents:
        zero = jnp.zeros((), jnp.float32)
        stack = stack.times(jnp.stack([exponents.get(name, zero) for name in leaves]))
    return Norms((tuple(leaves), stack))


def flat(tree: Any) -> Float[Array, "n"]:
    """Returns all entries of a tree as one vector."""
    leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)


def parameter_norms(params: Mapping[str, Any]) -> Norms:
    """Returns the norms of parameters or gradients: `matrix_norms` of the blocks, and each other entry by name."""
    rest = {name: flat(leaves) for name, leaves in params.items() if name != "blocks"}
    return matrix_norms(params["blocks"]).joined(separate_norms(rest))


def total_norm(norms: Mapping[str, Norm], parts: Iterable[str]) -> Norm:
    """Returns the Frobenius norm over all blocks and the other entries `parts`."""
    return root_sum_square([_combined(norms["layer"]), *(norms[part] for part in parts if part != "blocks")])


def named(tree: Mapping[str, Any]) -> dict[str, Array]:
    """Returns leaves by tag: `attn/q/kernel` is attn_q, `norm_1/gain` is norm_1, `attn/q/bias` is attn_q_bias."""
    return {
        path.removesuffix("/kernel").removesuffix("/gain").replace("/", "_"): leaf
        for path, leaf in leaves_by_path(tree).items()
    }


def log10(norm: Norm) -> np.ndarray:
    """Returns log10 of the absolute values on the host, in float64: -inf for an exact zero, nan for nan."""
    mantissa = np.abs(np.asarray(norm.mantissa, np.float64))
    with np.errstate(divide="ignore"):
        return np.log10(mantissa) + np.asarray(norm.exponent, np.float64) * np.log10(2.0)


def value(norm: Norm) -> np.ndarray:
    """Returns the values on the host, in float64: exact unless they leave its range."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(np.asarray(norm.mantissa, np.float64), np.asarray(norm.exponent, np.int64))


def gains(delta_log10: np.ndarray) -> np.ndarray:
    """Returns g_l = |delta_l| / |delta_(l+1)|, [..., L], from log10 norms [..., L+1]; nan where both are 0."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        return 10.0 ** (delta_log10[..., :-1] - delta_log10[..., 1:])
