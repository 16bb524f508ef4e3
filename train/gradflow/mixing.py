"""A residual rule's own parameters in numbers: one a block, and the matrices that mix streams or depths."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.network import Anatomy, leaves_by_path, path_of
from model.residual import Branch, Carry, Context, Sublayer
from model.residual.attnres import AttnRes, source_weights
from model.residual.streams import Streams


def own_parameters(params: Mapping[str, Any]) -> dict[str, Array]:
    """Returns the rule's own parameters of all blocks by path, `alpha_1` or `gate_1/kernel`, each [L, ...]."""
    return leaves_by_path(params["blocks"]["residual"])


def sizes(own: Mapping[str, Array]) -> dict[str, Float[Array, "L"]]:
    """Returns each parameter by block: a number as it is, of a vector or matrix the root mean square."""
    return {
        name: leaf if leaf.ndim == 1 else jnp.sqrt(jnp.mean(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))))
        for name, leaf in own.items()
    }


def matrices(own: Mapping[str, Array], patterns: Iterable[str]) -> dict[str, Float[Array, "L rows columns"]]:
    """Returns the parameters that match a pattern and have several entries a block; a vector is one row."""
    chosen = {name: leaf for name, leaf in own.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    return {
        name: leaf.reshape(leaf.shape[0], -1, leaf.shape[-1])
        for name, leaf in chosen.items()
        if leaf.ndim > 1 and leaf[0].size > 1
    }


def stream_mixing(rule: Streams, residual: Mapping[str, Any]) -> dict[str, Float[Array, "L rows n"]]:
    """Returns how each sublayer reads, mixes (from, to) and writes n streams, for a token whose dynamic part is 0.

    residual: the parameters of `blocks/residual`, nested.
    """
    dtype = jax.tree.leaves(residual)[0].dtype
    streams, unread = jnp.ones((rule.n, 1, rule.config.width), dtype), cast(Branch, None)
    context = Context({"norm_eps": jnp.ones((), dtype)}, (1, 1))

    def mixing_of_block(block: Mapping[str, Any]) -> dict[str, Array]:
        out: dict[str, Array] = {}
        for index in (0, 1):
            own = {name[:-2]: value for name, value in block.items() if name.endswith(f"_{index + 1}")}
            own = jax.tree_util.tree_map_with_path(lambda keys, x: 0 * x if path_of(keys[-1:]) == "kernel" else x, own)
            read, across, write = rule.weights(streams, Sublayer(index, unread, {}, own, {}), context)
            out |= {f"read_{index + 1}": read.T, f"across_{index + 1}": across[..., 0], f"write_{index + 1}": write.T}
        return out

    return jax.vmap(mixing_of_block)(residual)


def depth_mixing(rule: AttnRes, anatomy: Anatomy, own: Mapping[str, Array], eps: Array) -> Float[Array, "L 2 S"]:
    """Returns the weights of attnres' sources, means over tokens and heads; rows sum to 1.

    [l, 0]: what the MLP of block l reads, [l, 1]: what the next block, or the head, reads. Under the option `block` an
    incomplete sum is taken as it is after the MLP.
    """

    def mixing_after_block(carry: Carry, inputs: tuple[Any, Array, Array]) -> tuple[Carry, Float[Array, "2 S"]]:
        block, layer, queries = inputs
        sources, h = anatomy.block(block, layer, carry)
        counts = 2 + (2 * layer + jnp.arange(2, dtype=layer.dtype)) // rule.size
        parts = queries.astype(h.dtype).reshape(2, rule.option("heads"), -1)
        return (sources, h), jnp.mean(jax.vmap(source_weights, (None, 0, 0, None))(sources, parts, counts, eps), (2, 3))

    queries = jnp.stack([own["query_1"], own["query_2"]], axis=1)
    return jax.lax.scan(mixing_after_block, anatomy.carry, (anatomy.blocks, jnp.arange(queries.shape[0]), queries))[1]
