"""A residual rule's own parameters in numbers: one a block, and the matrices that mix streams or depths."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.layers import normalize
from model.network import Anatomy, path_of
from model.residual import Carry
from model.residual.streams import sinkhorn


def own_parameters(params: Mapping[str, Any]) -> dict[str, Array]:
    """Returns the rule's own parameters of all blocks by path, `alpha_1` or `gate_1/kernel`, each [L, ...]."""
    leaves = jax.tree_util.tree_leaves_with_path(params["blocks"]["residual"])
    return {path_of(keys): leaf for keys, leaf in leaves}


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


def stream_mixing(bias: Float[Array, "L n*n"], rounds: int) -> Float[Array, "L n n"]:
    """Returns mhc's H_res of a token whose dynamic part is 0, (from, to) as `across` of hyper_connections."""
    n = round(bias.shape[1] ** 0.5)
    return jnp.swapaxes(sinkhorn(bias.reshape(-1, n, n), rounds), 1, 2)


def depth_mixing(anatomy: Anatomy, own: Mapping[str, Array], size: int, eps: Array) -> Float[Array, "L 2 S"]:
    """Returns the weights of attnres' sources (model/residual/attnres.py), means over tokens; rows sum to 1.

    [l, 0]: what the MLP of block l reads, [l, 1]: what the next block, or the head, reads. `size`: sublayers whose
    outputs are summed into one source; the sum that is not complete is taken as it is at the end of the block.
    """

    def one(carry: Carry, inputs: tuple[Any, Array, Array]) -> tuple[Carry, Float[Array, "2 S"]]:
        block, layer, queries = inputs
        sources, h = anatomy.block(block, layer, carry)
        counts = 2 + (2 * layer + jnp.arange(2, dtype=layer.dtype)) // size
        weights = [jnp.mean(source_weights(sources, queries[k].astype(h.dtype), counts[k], eps), 1) for k in (0, 1)]
        return (sources, h), jnp.stack(weights)

    queries = jnp.stack([own["query_1"], own["query_2"]], axis=1)
    return jax.lax.scan(one, anatomy.carry, (anatomy.blocks, jnp.arange(queries.shape[0]), queries))[1]


def source_weights(
    sources: Float[Array, "S N D"], query: Float[Array, "D"], count: Array, eps: Array
) -> Float[Array, "S N"]:
    """Returns the weight of each of the first `count` sources in `mix` of model/residual/attnres.py; 0 for the rest."""
    seen_S = jnp.arange(sources.shape[0], dtype=count.dtype) < count
    keys = normalize(jnp.where(seen_S[:, None, None], sources, jnp.ones_like(sources)), "rms", eps)
    scores_SN = jnp.einsum("snd,d->sn", keys, query)
    return jax.nn.softmax(jnp.where(seen_S[:, None], scores_SN, -jnp.inf), axis=0)
