"""Multi-head attention (Vaswani et al. 2017, 1706.03762, eq. 1) with grouped key and value heads (2305.13245)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from .config import ModelConfig
from .init import Init
from .layers import Linear, dropout, joined, normalize, product, soft_cap, softmax, wide
from .positions import alibi, rotate, visible


class Attention(nnx.Module):
    """softmax(scale q k^T) v, followed by the output matrix; scale is 1 / sqrt(K) unless the config sets it.

    Scores and softmax are computed in at least float32.
    """

    def __init__(self, config: ModelConfig, init: Init, layer: int | Int[Array, ""]):
        self.config = config
        kv_width = config.value_heads * config.head_width

        def linear(name: str, rows: int, columns: int) -> Linear:
            return Linear(init, f"blocks/attn/{name}", layer, rows, columns, config.bias)

        self.q = linear("q", config.width, config.width)
        self.k = linear("k", config.width, kv_width)
        self.v = linear("v", config.width, kv_width)
        self.o = linear("o", config.width, config.width)

    def __call__(
        self,
        h: Float[Array, "N D"],
        shape: tuple[int, int],
        numbers: Mapping[str, Array],
        key: Key[Array, ""] | None,
        mix_value: Callable[[Array], Array] | None = None,
        mix_heads: Callable[[Array, Array], Array] | None = None,
        observe: Callable[[str, Array], Array] | None = None,
        fused: str | None = None,
    ) -> tuple[Float[Array, "N D"], Float[Array, "B T G K"]]:
        """Maps h [N, D] with shape = (B, T) to ([N, D], v before `mix_value`), in h's dtype. `key`: dropout, or None.

        A residual rule may map the values, `mix_value`: v [B, T, G, K] -> v, and the output of the heads, `mix_heads`:
        (v of each query head, o), both [B, T, H, K] -> o. `observe`: see model/residual/base.py's Observer.
        `fused`: implementation of jax.nn.dot_product_attention (cudnn, xla), used where it applies: see `fusible`.
        """
        config, (B, T) = self.config, shape
        G, R, K = config.value_heads, config.heads // config.value_heads, config.head_width
        q, k, v = joined([self.q, self.k, self.v], h)
        q, k, v = q.reshape(B, T, G * R, K), k.reshape(B, T, G, K), v.reshape(B, T, G, K)
        raw = v
        if mix_value is not None:
            v = mix_value(v)
        if config.qk_norm:  # Henry et al. 2020, 2010.04245; without a gain
            eps = numbers["norm_eps"]
            q, k = (normalize(x.astype(wide(x.dtype)), "rms", eps).astype(x.dtype) for x in (q, k))
        if config.positions == "rope":
            q, k = rotate(q), rotate(k)
        q = q * jnp.asarray(numbers.get("attention_scale", config.usual_attention_scale), q.dtype)
        if fused is not None and observe is None and fusible(config, key is not None):
            window = None if config.window is None else (config.window - 1, 0)  # keys before a query, and after it
            options: Any = {"local_window_size": window, "implementation": fused}
            out_BTHK = jax.nn.dot_product_attention(
                q, k, v, scale=1.0, is_causal=config.attention == "causal", **options
            )
        else:
            # Batched products over [B, G] with the R heads of a group stacked as rows: the fastest layout on XLA:CPU.
            q_BGQK = q.reshape(B, T, G, R, K).transpose(0, 2, 3, 1, 4).reshape(B, G, R * T, K)
            k_BGSK, v_BGSK = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
            scores_BGQS = product("bgqk,bgsk->bgqs", q_BGQK, k_BGSK)
            scores_BGRTS = soft_cap(scores_BGQS.reshape(B, G, R, T, T), numbers.get("attention_cap"))
            if config.positions == "alibi":
                scores_BGRTS = scores_BGRTS + alibi(G * R, T, scores_BGRTS.dtype).reshape(1, G, R, T, T)
            visible_TS = visible(config, T)
            if visible_TS is not None:
                scores_BGRTS = jnp.where(visible_TS[None, None, None], scores_BGRTS, jnp.finfo(scores_BGRTS.dtype).min)
            if observe is not None:
                scores_BGRTS = observe("attn/scores", scores_BGRTS.reshape(B, G * R, T, T)).reshape(B, G, R, T, T)
            weights_BGRTS = softmax(scores_BGRTS).astype(h.dtype)
            place = config.dropout_at("attention")
            weights_BGRTS = dropout(weights_BGRTS, None if place is None else numbers[place], key)
            out_BGQK = jnp.einsum("bgqs,bgsk->bgqk", weights_BGRTS.reshape(B, G, R * T, T), v_BGSK)
            out_BTHK = out_BGQK.reshape(B, G, R, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)
        if mix_heads is not None:
            out_BTHK = mix_heads(jnp.repeat(v, R, axis=2), out_BTHK)
        out = out_BTHK.reshape(B * T, G * R * K)
        return self.o(out if observe is None else observe("attn/heads", out)), raw


def fusible(config: ModelConfig, training: bool) -> bool:
    """True if jax.nn.dot_product_attention computes this attention, with cuDNN too; `training`: dropout is on."""
    one_sided = config.window is None or config.attention == "causal"
    plain = config.attention_cap is None and config.positions != "alibi"
    dropped = training and config.dropout_at("attention") is not None
    return one_sided and plain and not dropped and config.head_width % 8 == 0 and config.head_width <= 128
