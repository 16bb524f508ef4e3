"""The straightforward JAX program: activations [B,T,D], a Python loop over the blocks, one step a call, optax.

Parameters stay float32; matrices are cast to the compute dtype where they are used, as autocast does in PyTorch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .contestant import (
    BETAS,
    CLIP,
    INIT_STD,
    LEARNING_RATE,
    NORM_EPS,
    WEIGHT_DECAY,
    Contestant,
    Corpus,
    Shapes,
    facts,
    one_step_a_call,
)

Params = dict[str, Any]


def init(shapes: Shapes, seed: int = 0) -> Params:
    """Returns float32 parameters of GPT-2's init: std 0.02, output projections smaller by sqrt(2 L), gains 1."""
    keys = iter(jax.random.split(jax.random.key(seed), 2 + 4 * shapes.layers))
    width = shapes.width

    def normal(*shape: int, std: float = INIT_STD) -> jax.Array:
        return std * jax.random.normal(next(keys), shape, jnp.float32)

    def block() -> Params:
        return {
            "norm_1": jnp.ones(width, jnp.float32),
            "qkv": normal(width, 3 * width),
            "out": normal(width, width, std=INIT_STD / (2 * shapes.layers) ** 0.5),
            "norm_2": jnp.ones(width, jnp.float32),
            "up": normal(width, 4 * width),
            "down": normal(4 * width, width, std=INIT_STD / (2 * shapes.layers) ** 0.5),
        }

    return {
        "embed": normal(shapes.vocab, width),
        "positions": normal(shapes.context, width),
        "blocks": [block() for _ in range(shapes.layers)],
        "norm": jnp.ones(width, jnp.float32),
    }


def loss(params: Params, x: jax.Array, y: jax.Array, heads: int, dtype: Any = jnp.float32) -> jax.Array:
    """Mean cross-entropy in nats; x and y are int32 [B, T]."""
    h = params["embed"][x] + params["positions"][: x.shape[1]]
    for block in params["blocks"]:
        h = h + attention(block, layer_norm(h, block["norm_1"]).astype(dtype), heads)
        up = layer_norm(h, block["norm_2"]).astype(dtype) @ block["up"].astype(dtype)
        h = h + jax.nn.gelu(up) @ block["down"].astype(dtype)
    logits = layer_norm(h, params["norm"]).astype(dtype) @ params["embed"].T.astype(dtype)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), y).mean()


def layer_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + NORM_EPS) * gain


def attention(block: Params, x: jax.Array, heads: int) -> jax.Array:
    batch, context, width = x.shape
    q, k, v = jnp.split(x @ block["qkv"].astype(x.dtype), 3, axis=-1)
    q, k, v = (a.reshape(batch, context, heads, width // heads) for a in (q, k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k).astype(jnp.float32) * (width // heads) ** -0.5
    causal = jnp.tril(jnp.ones((context, context), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bhts,bshk->bthk", weights, v).reshape(batch, context, width)
    return mixed @ block["out"].astype(x.dtype)


def optimizer() -> optax.GradientTransformation:
    """AdamW after clipping; weight decay on matrices only, as in nanoGPT."""
    return optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(
            LEARNING_RATE,
            *BETAS,
            weight_decay=WEIGHT_DECAY,
            mask=lambda params: jax.tree.map(lambda a: a.ndim >= 2, params),
        ),
    )


class Trainer:
    """The training state; a call does one step on a fresh batch and returns its loss, not yet computed.

    `loss(params, x, y)` is differentiated, jitted with the update, and called once a step with donated state.
    """

    def __init__(self, params: Any, loss: Callable[[Any, jax.Array, jax.Array], jax.Array], corpus: Corpus) -> None:
        self.params = params
        tx = optimizer()
        self._opt_state = tx.init(params)
        self._corpus = corpus

        def step(params, opt_state, x, y):
            value, grads = jax.value_and_grad(loss)(params, x, y)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        self._step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self) -> jax.Array:
        self.params, self._opt_state, value = self._step(self.params, self._opt_state, *self._corpus.batch())
        return value

    def wait(self) -> None:
        jax.block_until_ready(self.params)


def trainer(shapes: Shapes, dtype: str = "float32", seed: int = 0) -> Trainer:
    program = partial(loss, heads=shapes.heads, dtype=jnp.dtype(dtype))
    return Trainer(init(shapes, seed), program, Corpus(shapes, seed))


def contestant(shapes: Shapes, dtype: str) -> Contestant:
    stated = facts("jax optax", dtype, shapes)
    program = trainer(shapes, stated.dtype)
    return Contestant(one_step_a_call(program, program.wait), stated)
