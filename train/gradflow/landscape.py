"""The loss along a line through the current weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def along_line(
    loss: Callable[[Any], Float[Array, ""]], params: Any, direction: Any, multiples: Float[Array, "n"]
) -> Float[Array, "n"]:
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
