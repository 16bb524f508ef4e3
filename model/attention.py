"""Multi-head attention (Vaswani et al. 2017, 1706.03762, eq. 1) with grouped key and value heads (2305.13245)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from model.config import ModelConfig
from model.init import Init
from model.layers import Linear, dropout, joined, normalize, wide


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(K)) v, then the output matrix; the softmax runs in the stream's dtype."""

    def __init__(self, config: ModelConfig, init: Init, layer: int | Int[Array, ""]):
        self.config = config
        kv_width = config.value_heads * config.head_width

        def linear(name: str, columns: int) -> Linear:
            return Linear(init, f"blocks/attn/{name}", layer, config.width, columns, config.bias)

        self.q = linear("q", config.width)
        self.k = linear("k", kv_width)
        self.v = linear("v", kv_width)
        self.o = linear("o", config.width)

    def __call__(self, h: Float[Array, "N D"], shape: tuple[int, int], key: Key[Array, ""] | None) -> Array:
        """h [N, D] with shape = (B, T) -> [N, D], in h's dtype. `key` None: no dropout."""
        config, (B, T) = self.config, shape
        G, R, K = config.value_heads, config.heads // config.value_heads, config.head_width
        q, k, v = joined([self.q, self.k, self.v], h)
        q, k, v = q.reshape(B, T, G * R, K), k.reshape(B, T, G, K), v.reshape(B, T, G, K)
        if config.qk_norm:  # Henry et al. 2020, 2010.04245; without a gain
            q, k = normalize(q, "rms", config.norm_eps), normalize(k, "rms", config.norm_eps)
        if config.positions == "rope":
            q, k = rotate(q), rotate(k)
        # Batched products over [B, G] with the R heads of a group below one another: the layout XLA:CPU likes best.
        q = q * jnp.asarray(1.0 / math.sqrt(K), q.dtype)
        q_BGQK = q.reshape(B, T, G, R, K).transpose(0, 2, 3, 1, 4).reshape(B, G, R * T, K)
        k_BGSK, v_BGSK = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        scores_BGRTS = jnp.einsum("bgqk,bgsk->bgqs", q_BGQK, k_BGSK).reshape(B, G, R, T, T).astype(wide(h.dtype))
        if config.attention == "causal":
            seen_TS = jnp.tril(jnp.ones((T, T), bool))[None, None, None]
            scores_BGRTS = jnp.where(seen_TS, scores_BGRTS, jnp.finfo(scores_BGRTS.dtype).min)
        weights_BGRTS = jax.nn.softmax(scores_BGRTS, axis=-1).astype(h.dtype)
        weights_BGRTS = dropout(weights_BGRTS, config.dropout, key)
        out_BGQK = jnp.einsum("bgqs,bgsk->bgqk", weights_BGRTS.reshape(B, G, R * T, T), v_BGSK)
        out_BTGRK = out_BGQK.reshape(B, G, R, T, K).transpose(0, 3, 1, 2, 4)
        return self.o(out_BTGRK.reshape(B * T, G * R * K))


def rotate(x: Float[Array, "B T H K"], base: float = 10_000.0) -> Float[Array, "B T H K"]:
    """Rotary positions (Su et al. 2021, 2104.09864, eq. 34): the pair (i, i + K/2) turns by t * base^(-2i/K)."""
    T, K = x.shape[1], x.shape[-1]
    dtype = wide(x.dtype)
    speed = jnp.asarray(base, dtype) ** (-jnp.arange(0, K, 2, dtype=dtype) / K)
    angle = jnp.arange(T, dtype=dtype)[:, None] * speed[None, :]
    cos, sin = jnp.cos(angle)[None, :, None, :], jnp.sin(angle)[None, :, None, :]
    a, b = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
