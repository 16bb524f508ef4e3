"""Position encodings without parameters (rotary, sinusoidal, ALiBi) and the mask of visible keys."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .config import ModelConfig
from .layers import wide

BASE = 10_000.0  # longest wavelength of the sines, over 2 pi


def rotate(x: Float[Array, "B T H K"]) -> Float[Array, "B T H K"]:
    """Applies rotary positions (Su et al. 2021, 2104.09864, eq. 34): rotates pairs (i, i + K/2) by t * BASE^(-2i/K)."""
    T, K = x.shape[1], x.shape[-1]
    dtype = wide(x.dtype)
    angle = _angles(T, K, dtype)
    cos, sin = jnp.cos(angle)[None, :, None, :], jnp.sin(angle)[None, :, None, :]
    a, b = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def sinusoidal(T: int, D: int, dtype: jnp.dtype) -> Float[Array, "T D"]:
    """Returns sines (even columns) and cosines of amplitude 1 (Vaswani et al. 2017, 1706.03762, section 3.5)."""
    angle = _angles(T, D, wide(dtype))
    both = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(T, -1)
    return both[:, :D].astype(dtype)


def alibi(H: int, T: int, dtype: jnp.dtype) -> Float[Array, "H T T"]:
    """Returns each head's bias -slope * distance, slopes 2^(-8 (h+1) / H) (Press et al. 2022, 2108.12409)."""
    slope = jnp.exp2(-8.0 * jnp.arange(1, H + 1, dtype=dtype) / H)
    distance = jnp.abs(jnp.arange(T)[:, None] - jnp.arange(T)[None, :]).astype(dtype)
    return -slope[:, None, None] * distance[None]


def visible(config: ModelConfig, T: int) -> Bool[Array, "T T"] | None:
    """Returns the mask of keys (columns) visible to each query (row); None if all are."""
    back_TS = jnp.arange(T)[:, None] - jnp.arange(T)[None, :]
    visible_TS = back_TS >= 0 if config.attention == "causal" else None
    if config.window is not None:
        near_TS = jnp.abs(back_TS) < config.window
        visible_TS = near_TS if visible_TS is None else visible_TS & near_TS
    return visible_TS


def _angles(T: int, K: int, dtype: jnp.dtype) -> Float[Array, "T K/2"]:
    speed = jnp.asarray(BASE, dtype) ** (-jnp.arange(0, K, 2, dtype=dtype) / K)
    return jnp.arange(T, dtype=dtype)[:, None] * speed[None, :]
