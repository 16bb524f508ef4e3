"""Attention by hand and against its fused kernels, and positions."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from model.attention import Attention
from model.config import ModelConfig
from model.init import Init
from model.positions import rotate
from model.residual import numbers_of
from networks import TOKENS, B, D, L, T, V, changed, leaves, logits, parameters
from networks import float32_network as network
from train.chain.reference import softmax


@partial(jax.jit, static_argnums=0)
def attention(config, x, kernels):
    """Returns the output of an attention module with these [rows, columns] kernels, of x [T, D]."""
    module = Attention(config, Init(jax.random.key(0), "normal", numbers_of(config), x.dtype), 0)
    for name, kernel in kernels.items():
        getattr(module, name).kernel[...] = jnp.asarray(kernel, x.dtype)
    return module(x, (1, len(x)), {}, None)[0]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("{}", marks=pytest.mark.slow),
        pytest.param("{attention: full}", marks=pytest.mark.slow),
        pytest.param("{window: 2}", marks=pytest.mark.slow),
        "{heads: 4, width: 32, kv_heads: 2, positions: rope, qk_norm: true, attention_scale: 0.7}",
        pytest.param("{dropout_residual: 0.5, residual: value_residual}", marks=pytest.mark.slow),
        pytest.param("{residual: value_skipinit}", marks=pytest.mark.slow),
    ],
)
def test_fused_attention_is_attention(x64, model):
    """jax.nn.dot_product_attention computes its softmax in float32, also of float64 scores."""
    net = network("float64", **({"width": 16} | yaml.safe_load(model)))
    params = parameters(net)

    def gradient(net):
        program = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, TOKENS, key=jax.random.key(0))[0] ** 2)))
        with jax.numpy_dtype_promotion("standard"):  # JAX's own function needs it
            lowered = program.lower(params)
        return lowered.as_text(), lowered.compile()(params)

    (plain, wanted), (fused, actual) = gradient(net), gradient(replace(net, fused="xla"))
    assert plain != fused
    largest = max(np.abs(leaf).max() for leaf in leaves(wanted).values())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=3e-7 * largest), actual, wanted)


@pytest.mark.parametrize(
    "model",
    [
        {"attention_cap": 2.0},
        pytest.param({"positions": "alibi"}, marks=pytest.mark.slow),
        {"window": 2, "attention": "full"},
        pytest.param({"dropout_attention": 0.1}, marks=pytest.mark.slow),
        pytest.param({"width": 8}, marks=pytest.mark.slow),
    ],
)
def test_attention_that_cannot_be_fused_is_not(model):
    net = network("bfloat16", **({"width": 16} | model))
    programs = [replace(net, fused=fused) for fused in (None, "cudnn")]
    texts = [jax.jit(partial(n.apply, key=jax.random.key(0))).lower(n.shapes(), TOKENS).as_text() for n in programs]
    assert texts[0] == texts[1]


def test_attention_by_hand(x64):
    """Two tokens, one head of width 1: q = (1, 2), k = (3, 6), v = (5, 10), and o negates the output."""
    config, x = ModelConfig(layers=1, width=1, heads=1), np.array([[1.0], [2.0]])
    kernels = {name: np.array([[entry]]) for name, entry in (("q", 1.0), ("k", 3.0), ("v", 5.0), ("o", -1.0))}
    # The first token sees itself alone; the second one's scores are 2*3 and 2*6.
    second = (5 + 10 * np.exp(6)) / (1 + np.exp(6))
    np.testing.assert_allclose(attention(config, x, kernels), [[-5], [-second]], rtol=1e-14)
    full = config.model_copy(update={"attention": "full"})
    first = (5 + 10 * np.exp(3)) / (1 + np.exp(3))  # scores 1*3 and 1*6
    np.testing.assert_allclose(attention(full, x, kernels), [[-first], [-second]], rtol=1e-14)


def test_scores_are_divided_by_the_root_of_the_head_width(x64):
    config = ModelConfig(layers=1, width=4, heads=1, attention="full")
    x = np.asarray([[1.0, 1, 1, 1], [-1, -1, -1, 1]])
    weights = softmax(x @ x.T / 2)  # sqrt(4)
    np.testing.assert_allclose(attention(config, x, dict.fromkeys("qkvo", np.eye(4))), weights @ x, rtol=1e-14)


def test_saturated_scores_have_no_gradient_not_even_a_rounded_one():
    """A rounding error left there would be multiplied by these large scores in every block below."""
    rng, config = np.random.default_rng(0), ModelConfig(layers=1, width=D, heads=1)
    x, cotangent = (jnp.asarray(rng.normal(size=(6, D)), jnp.float32) for _ in range(2))
    gradient = jax.jit(jax.grad(lambda kernels: jnp.sum(cotangent * attention(config, x, kernels))))

    def sizes(scale: float):
        kernels = {"q": scale * np.eye(D), "k": scale * np.eye(D), "v": 3 * np.eye(D), "o": np.eye(D)}
        return {name: np.abs(g).max() for name, g in gradient(jax.tree.map(np.float32, kernels)).items()}

    assert min(sizes(1.0).values()) > 1e-6
    saturated = sizes(1e3)
    assert saturated["v"] > 1e-6 and saturated["q"] == saturated["k"] == 0


@pytest.mark.parametrize("model", [{"positions": "learned"}, {"positions": "rope"}, {"attention": "full"}])
def test_causal_attention_sees_no_future_token_and_sequences_never_see_each_other(model):
    net = network(**model)
    params, later = parameters(net), TOKENS.copy()
    later[0, 3] = (later[0, 3] + 1) % V
    a, b = (np.asarray(logits(net, params, tokens=tokens)).reshape(B, T, V) for tokens in (TOKENS, later))
    change = np.abs(a - b).max(axis=-1)
    assert (change[1] == 0).all() and (change[0, 3:] > 1e-4).all()
    assert (change[0, :3] > 1e-5).all() if net.config.attention == "full" else (change[0, :3] == 0).all()


def test_rope_scores_depend_on_the_distance_only(x64):
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(np.broadcast_to(rng.normal(size=6), (1, 8, 1, 6))) for _ in range(2))
    scores = np.einsum("tk,sk->ts", np.asarray(rotate(q))[0, :, 0], np.asarray(rotate(k))[0, :, 0])
    for distance in range(-7, 8):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-13)
    assert np.abs(scores[0] - scores[0, 0])[1:].min() > 1e-3  # and do depend on it


def test_rope_turns_and_never_stretches(x64):
    x = np.random.default_rng(2).normal(size=(2, 5, 3, 4))
    y = np.asarray(rotate(jnp.asarray(x)))
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
    np.testing.assert_array_equal(y[:, 0], x[:, 0])  # position 0 stays
    # Position 1 by hand: the pair (0, 2) by one radian, (1, 3) by 1/100.
    by_hand = [np.cos(a) * x[..., i] - np.sin(a) * x[..., i + 2] for i, a in ((0, 1.0), (1, 0.01))]
    np.testing.assert_allclose(y[:, 1, :, 0], by_hand[0][:, 1], rtol=1e-12)
    np.testing.assert_allclose(y[:, 1, :, 1], by_hand[1][:, 1], rtol=1e-12)


def test_grouped_heads_are_full_heads_with_keys_and_values_repeated(x64):
    grouped, full = network("float64", heads=4, kv_heads=2), network("float64", heads=4)
    repeated = params = parameters(grouped)
    assert params["blocks"]["attn"]["k"]["kernel"].shape == (L, D, 2 * 2)
    for name in "kv":
        twice = lambda x: jnp.repeat(x.reshape(L, D, 2, 2), 2, axis=2).reshape(L, D, D)  # noqa: E731  # [L, D, G, K]
        repeated = changed(repeated, f"blocks/attn/{name}/kernel", twice)
    np.testing.assert_allclose(logits(grouped, params), logits(full, repeated), rtol=0, atol=1e-13)


def test_qk_norm_makes_scores_blind_to_the_size_of_q_and_k(x64):
    for qk_norm in (True, False):
        net = network("float64", qk_norm=qk_norm, norm_eps=0.0)
        larger = params = parameters(net)
        for name in "qk":
            larger = changed(larger, f"blocks/attn/{name}/kernel", lambda x: 7 * x)
        assert (np.abs(np.asarray(logits(net, params) - logits(net, larger))).max() < 1e-12) == qk_norm
