"""Initial values of parameters, which depend on seed, path and layer alone.

A parameter's key is fold_in(fold_in(key(seed), crc32(path)), layer), so adding a rule, a layer or a norm changes no
other draw. Draws are float32 and then cast, so runs in different dtypes start from the same weights.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@dataclass(frozen=True)
class Init:
    """Draws the parameters of a model in `dtype`. `numbers` may be traced (model/traced.py)."""

    key: Key[Array, ""]
    kind: str
    numbers: Mapping[str, Any]
    dtype: jnp.dtype
    width_ratio: float = 1.0  # m = width / base width of muP

    def gain(self, tag: str) -> Any:
        """Returns the factor of a block matrix's initial values, by tag: `attn_o`, `mlp_in` ..."""
        return self.numbers[f"init_gain.{tag}"]

    def _key_of(self, path: str, layer: int | Int[Array, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(self.key, zlib.crc32(path.encode())), layer)

    def matrix(self, path: str, layer: int | Int[Array, ""], rows: int, columns: int, gain: Any = 1.0) -> Array:
        """Draws a [rows, columns] matrix that maps vectors of size rows to size columns.

        xavier: normal with variance 2 / (rows + columns) (Glorot & Bengio 2010, eq. 12 has the same variance).
        orthogonal: orthonormal along the shorter side (Saxe et al. 2013). normal: standard deviation
        init_std / sqrt(m). All three then scale as 1 / sqrt(width) (Yang et al. 2022, 2203.03466, tables 3 and 8).
        """
        key = self._key_of(path, layer)
        if self.kind == "orthogonal":
            values = _orthogonal(rows, columns)(key)
        else:
            values = jax.random.normal(key, (rows, columns), jnp.float32)
            if self.kind == "xavier":
                scale = math.sqrt(2.0 / (rows + columns))
            else:
                scale = self.numbers["init_std"] / math.sqrt(self.width_ratio)
            values = values * jnp.asarray(scale, jnp.float32)
        return (values * jnp.asarray(gain, jnp.float32)).astype(self.dtype)

    def table(self, path: str, rows: int, columns: int) -> Array:
        """Draws a [rows, columns] table, normal with standard deviation init_std for every kind and width."""
        values = jax.random.normal(self._key_of(path, 0), (rows, columns), jnp.float32)
        return (values * jnp.asarray(self.numbers["init_std"], jnp.float32)).astype(self.dtype)

    def constant(self, value: float, *shape: int) -> Array:
        """Returns a constant array (gains 1, biases 0)."""
        return jnp.full(shape, value, self.dtype)


def _orthogonal(rows: int, columns: int) -> Callable[[Key[Array, ""]], Float[Array, "rows columns"]]:
    """Returns a function that draws an orthogonal matrix; vmap evaluates it sequentially.

    jaxlib runs the matrices of a batch on the CPU's thread pool and waits for them inside a thread of it, which
    deadlocks once there are as many batches as threads (0.10.2: 100 layers on 2 cores).
    """

    @jax.custom_batching.sequential_vmap
    def draw(key: Array) -> Array:
        return jax.nn.initializers.orthogonal()(key, (rows, columns), jnp.float32)

    return draw
