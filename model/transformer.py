"""The transformer: embeddings, one scan over stacked blocks, the final norm and the head."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from model.attention import Attention
from model.config import ModelConfig
from model.init import Init
from model.layers import Norm, dropout
from model.mlp import MLP
from model.residual import Carry, Context, rule_of
from model.taps import tap


class Block(nnx.Module):
    """Attention and MLP, each joined to the stream by the residual rule."""

    def __init__(self, config: ModelConfig, init: Init, layer: Int[Array, ""]):
        self.config = config
        self.attn = Attention(config, init, layer)
        self.mlp = MLP(config, init, layer)
        self.norm_1 = None if config.norm == "none" else Norm(config, init)
        self.norm_2 = None if config.norm == "none" else Norm(config, init)

    def __call__(self, carry: Carry, shape: tuple[int, int], context: Context, key: Key[Array, ""] | None, dtype):
        """The carry after both sublayers; sublayers compute in `dtype`, the stream keeps its own."""
        rule, rate = rule_of(self.config), self.config.dropout
        keys = (None, None, None) if key is None else jax.random.split(key, 3)

        def attention(h: Array) -> Array:
            y = self.attn(h.astype(dtype), shape, keys[0]).astype(h.dtype)
            return dropout(y, rate, keys[1])

        def mlp(h: Array) -> Array:
            return dropout(self.mlp(h.astype(dtype)).astype(h.dtype), rate, keys[2])

        carry = rule.sublayer(carry, attention, self.norm_1 or _identity, context)
        return rule.sublayer(carry, mlp, self.norm_2 or _identity, context)


def _identity(x: Array) -> Array:
    return x


class Seen(NamedTuple):
    """The stream at every depth: 0 is the embedding output, L the last block's output."""

    rms: Float[Array, "L+1"]
    rank: Float[Array, "L+1"]  # |X - mean over tokens|_F / |X|_F a sequence, mean over the batch; 0 = collapsed


class Transformer(nnx.Module):
    """Tokens to logits. Parameters are float32, or float64 when the compute dtype is."""

    def __init__(self, config: ModelConfig, vocab_size: int, context: int, init: Init):
        self.config = config
        self.embed = nnx.Param(init.table("embed", vocab_size, config.width))
        learned = config.positions == "learned"
        self.positions = nnx.Param(init.table("positions", context, config.width)) if learned else None
        self.blocks = nnx.vmap(lambda layer: Block(config, init, layer))(jnp.arange(config.layers))
        normed = rule_of(config).final_norm and config.norm != "none"
        self.norm_f = Norm(config, init) if normed else None
        self.head = None if config.tied_head else nnx.Param(init.table("head", vocab_size, config.width))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        skip_scale: float | Float[Array, ""] = 1.0,
        key: Key[Array, ""] | None = None,
        dtype: jax.typing.DTypeLike = "float32",
        unroll: int = 1,
        slots: Float[Array, "L+1 2"] | None = None,
        head: Float[Array, "V D"] | None = None,
    ) -> tuple[Float[Array, "N V"], Seen | None]:
        """Logits [B*T, V] in at least float32, and what the taps saw of the stream.

        `key`: dropout; None turns it off. `slots`: zeros whose gradient holds |delta| at every depth (model/taps.py);
        None leaves the taps and the stream's statistics out of the program. `head`: replaces the head's table, so
        that a tied table can be differentiated apart from the lookup. `unroll`: blocks a scan iteration.
        """
        (B, T), config, rule = tokens.shape, self.config, rule_of(self.config)
        shape = (B, T)
        x = self.embed[...][tokens.reshape(-1)]
        if self.positions is not None:
            x = x + jnp.tile(self.positions[...][:T], (B, 1))
        x = dropout(x, config.dropout, None if key is None else jax.random.fold_in(key, config.layers))
        context = Context(jnp.asarray(skip_scale, x.dtype))
        graph, stacked = nnx.split(self.blocks)
        layers = jnp.arange(config.layers)

        def look(carry: Carry) -> Seen | None:
            return None if slots is None else _seen(rule.stream(carry), shape)

        def body(state, inputs):
            (carry, exponent), (parameters, layer, slot) = state, inputs
            seen = look(carry)
            if slot is not None:
                carry, exponent = tap(carry, exponent, slot)
            layer_key = None if key is None else jax.random.fold_in(key, layer)
            carry = nnx.merge(graph, parameters)(carry, shape, context, layer_key, dtype)
            return (carry, exponent), seen

        state = (rule.begin(x), jnp.zeros((), jnp.float32))
        inputs = (stacked, layers, None if slots is None else slots[:-1])
        (carry, exponent), seen = jax.lax.scan(body, state, inputs, unroll=min(unroll, config.layers))
        if slots is not None:
            last = look(carry)
            seen = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), seen, last)
            carry, _ = tap(carry, exponent, slots[-1])
        x = rule.end(carry)
        x = x if self.norm_f is None else self.norm_f(x)
        table = self._table() if head is None else head
        logits = jnp.matmul(x.astype(dtype), table.astype(dtype).T, preferred_element_type=x.dtype)
        return logits, seen

    def _table(self) -> Array:
        return self.embed[...] if self.head is None else self.head[...]


def _seen(x: Float[Array, "N D"], shape: tuple[int, int]) -> Seen:
    x = jax.lax.stop_gradient(x).reshape(*shape, -1)
    # The largest entry comes out first: the squares of a plain network's activations may underflow.
    largest = jnp.max(jnp.abs(x))
    unit = x / jnp.where(largest > 0, largest, 1)
    square = jnp.sum(jnp.square(unit), axis=(1, 2))
    spread = jnp.sum(jnp.square(unit - jnp.mean(unit, axis=1, keepdims=True)), axis=(1, 2))
    rank = jnp.mean(jnp.sqrt(spread / jnp.where(square > 0, square, 1)))
    return Seen(rms=largest * jnp.sqrt(jnp.mean(square) / (x.shape[1] * x.shape[2])), rank=rank)
