"""The straightforward Flax program: NNX modules in a Python loop, jax.jit over the split state, one step a call."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .contestant import INIT_STD, NORM_EPS, Contestant, Corpus, Shapes, facts, one_step_a_call
from .jax_plain import Trainer


class Block(nnx.Module):
    def __init__(self, shapes: Shapes, dtype: Any, rngs: nnx.Rngs) -> None:
        width = shapes.width

        def linear(inputs: int, outputs: int, std: float = INIT_STD) -> nnx.Linear:
            init = nnx.initializers.normal(std)
            return nnx.Linear(inputs, outputs, use_bias=False, dtype=dtype, kernel_init=init, rngs=rngs)

        self.heads = shapes.heads
        self.norm_1 = nnx.LayerNorm(width, epsilon=NORM_EPS, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm_2 = nnx.LayerNorm(width, epsilon=NORM_EPS, use_bias=False, dtype=dtype, rngs=rngs)
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width, INIT_STD / (2 * shapes.layers) ** 0.5)
        self.up = linear(width, 4 * width)
        self.down = linear(4 * width, width, INIT_STD / (2 * shapes.layers) ** 0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, context, width = x.shape
        q, k, v = jnp.split(self.qkv(self.norm_1(x)), 3, axis=-1)
        q, k, v = (a.reshape(batch, context, self.heads, width // self.heads) for a in (q, k, v))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.reshape(batch, context, width))
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class GPT(nnx.Module):
    def __init__(self, shapes: Shapes, dtype: Any, rngs: nnx.Rngs) -> None:
        def embed(rows: int) -> nnx.Embed:
            init = nnx.initializers.normal(INIT_STD)
            return nnx.Embed(rows, shapes.width, dtype=dtype, embedding_init=init, rngs=rngs)

        self.embed = embed(shapes.vocab)
        self.positions = embed(shapes.context)
        blocks = [Block(shapes, dtype, rngs) for _ in range(shapes.layers)]
        # From 0.12 a list of modules must be an nnx.List, which 0.11.2 does not have.
        self.blocks = nnx.List(blocks) if hasattr(nnx, "List") else blocks
        self.norm = nnx.LayerNorm(shapes.width, epsilon=NORM_EPS, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, T, V] of the tokens x [B, T]."""
        h = self.embed(x) + self.positions(jnp.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.embed.attend(self.norm(h))

    def loss(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Mean cross-entropy in nats; x and y are int32 [B, T]."""
        logits = self(x).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def trainer(shapes: Shapes, dtype: str = "float32", seed: int = 0) -> Trainer:
    graph, params = nnx.split(GPT(shapes, jnp.dtype(dtype), nnx.Rngs(seed)), nnx.Param)
    return Trainer(params, lambda params, x, y: nnx.merge(graph, params).loss(x, y), Corpus(shapes, seed))


def contestant(shapes: Shapes, dtype: str) -> Contestant:
    stated = facts("jax flax optax", dtype, shapes)
    program = trainer(shapes, stated.dtype)
    return Contestant(one_step_a_call(program, program.wait), stated)
