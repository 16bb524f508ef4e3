"""The transformer against a second implementation in numpy, and laws of its parts."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from model.config import ModelConfig
from model.network import Network
from model.residual import numbers_of
from networks import TOKENS, B, T, V, changed, logits, parameters
from networks import float32_network as network
from train.chain.reference import Reference


@partial(jax.jit, static_argnums=0)
def stream_stats(network: Network, params, tokens):
    return network.apply(params, tokens, slots=jnp.zeros((network.config.layers + 1, 2), params["embed"].dtype))[1]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("{}", marks=pytest.mark.slow),
        pytest.param("{norm: layer, bias: true, norm_eps: 0.01}", marks=pytest.mark.slow),
        "{norm: none, activation: relu, attention: full}",
        "{norm: dyt, bias: true}",
        "{norm: derf, norm_gain: false, residual: keel}",
        pytest.param("{residual: post_ln}", marks=pytest.mark.slow),
        "{residual: post_ln, norm: layer, norm_gain: false, activation: silu}",
        pytest.param("{residual: post_ln, norm: none, positions: none}", marks=pytest.mark.slow),
        pytest.param("{residual: none}", marks=pytest.mark.slow),
        "{residual: none, norm: none, tied_head: false, activation: swiglu, mlp_ratio: 2.5}",
        "{positions: alibi, heads: 4, kv_heads: 2, attention_cap: 2.0, logit_cap: 3.0, attention_scale: 0.7, "
        "activation: geglu}",
        "{heads: 4, kv_heads: 2, base_width: 6, base_heads: 2, logit_cap: 3.0}",
        "{window: 3, positions: sinusoidal, activation: relu2}",
        "{window: 2, attention: full, activation: linear}",
        "{positions: rope, qk_norm: true, heads: 4, kv_heads: 2, activation: swiglu, bias: true, norm_eps: 0.001}",
    ],
)
def test_logits_equal_those_of_the_second_transformer(x64, model):
    net = network("float64", **yaml.safe_load(model))
    params = parameters(net)
    reference = Reference(net.config, params)
    for s in (0.0,) if net.config.residual.rule == "none" else (1.0, 0.5, 0.0):
        wanted, actual = reference.logits(TOKENS, s), logits(net, params, {"skip_scale": s})
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max(), err_msg=f"s = {s}")
    assert numbers_of(net.config)["skip_scale"] == (0.0 if net.config.residual.rule == "none" else 1.0)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about what XLA:CPU fuses and rearranges")
def test_what_a_block_computes_of_the_blocks_above_it_and_its_narrowing_kernel():
    """Without the barrier a kernel adds twice as many terms for twice as many blocks, and the gradients of the MLP's
    [64, 256] and [256, 64] matrices are not both computed as [64, 256] products."""
    three, six = compiled_gradient(3), compiled_gradient(6)

    def most_adds(text: str) -> int:
        kernels = re.findall(r"^%?fused[^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
        return max(len(re.findall(r"= f32\[64,64\]\S* add\(", kernel)) for kernel in kernels)

    assert most_adds(three) == most_adds(six) > 0
    products = re.findall(r"= f32\[(64,256|256,64)\]\S* dot\(", three)
    # 64 tokens: the hidden units and their cotangent, and the gradients of two matrices, in each of three blocks.
    assert products == ["64,256"] * 12


def compiled_gradient(layers: int) -> str:
    """Returns the optimized HLO of a training gradient on 64 tokens, width 64, all blocks unrolled."""
    tokens = np.zeros((4, 16), np.int32)
    net = Network(ModelConfig(layers=layers, width=64, heads=2, norm="layer"), V, 16, "float32", layers)
    grad = jax.jit(jax.grad(lambda params, s: jnp.sum(logits(net, params, {"skip_scale": s}, None, tokens) ** 2)))
    return str(grad.lower(parameters(net), jnp.float32(1)).compile().as_text())


# --- precision ---


def test_bfloat16_computes_close_to_float32_and_hands_out_float32():
    """bfloat16 has 8 bits, so rounding errs by up to 2^-9 = 0.2 %; 3 % of the logits' rms allow 15 of these."""
    exact, rounded = network(), network("bfloat16")
    params, tokens = parameters(exact), np.random.default_rng(0).integers(0, V, size=(B, T))
    a, b = (logits(net, params, None, None, tokens) for net in (exact, rounded))
    assert a.dtype == b.dtype == jnp.float32
    error = np.abs(np.asarray(a - b)).max() / np.sqrt(np.mean(np.square(a)))
    assert 1e-4 < error < 0.03


def test_the_gradients_of_bfloat16_compute_are_float32():
    net = network("bfloat16")
    params = parameters(net)
    grads = jax.eval_shape(jax.grad(lambda p: jnp.sum(net.apply(p, TOKENS)[0])), params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), grads) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), net.shapes()
    )


# --- what the taps see of the stream ---


@pytest.mark.parametrize("model", [{}, {"residual": "post_ln"}], ids=["pre_ln", "post_ln"])
def test_rms_and_rank_of_the_stream(x64, model):
    net = network("float64", **model)
    params = parameters(net)
    result = stream_stats(net, params, TOKENS)
    streams = np.stack([Reference(net.config, params).streams(sequence, 1.0) for sequence in TOKENS])  # [B, L+1, T, D]
    np.testing.assert_allclose(result.rms, np.sqrt((streams**2).mean(axis=(0, 2, 3))), rtol=1e-12)
    spread = np.linalg.norm(streams - streams.mean(axis=2, keepdims=True), axis=(2, 3))
    rank = (spread / np.linalg.norm(streams, axis=(2, 3))).mean(axis=0)
    np.testing.assert_allclose(result.rank, rank, rtol=1e-12)


def test_rank_is_zero_when_all_tokens_are_alike():
    net = network(positions="none")
    result = stream_stats(net, parameters(net), np.full((B, T), 3, np.int32))
    np.testing.assert_allclose(result.rank, 0, atol=1e-6)
    assert (np.asarray(result.rms) > 0.1).all()


@pytest.mark.parametrize("largest", [0.0, 1e-37, 1e-30, 1e-20, 1e20, 1.5e38, 3e38])
def test_rms_and_rank_at_the_ends_of_the_range(largest):
    """Squares underflow and overflow in float32, the rms does not; a stream of zeros has rms and rank 0, not nan."""
    net = network(norm="none", positions="none")
    params = changed(parameters(net), "embed", lambda x: x / jnp.max(jnp.abs(x)) * jnp.float32(largest))
    stream, result = np.asarray(params["embed"], np.float64)[TOKENS], stream_stats(net, params, TOKENS)
    assert float(result.rms[0]) == pytest.approx(np.sqrt((stream**2).mean()), rel=1e-5, abs=0)
    spread = np.linalg.norm(stream - stream.mean(axis=1, keepdims=True), axis=(1, 2))
    rank = (spread / np.maximum(np.linalg.norm(stream, axis=(1, 2)), 1e-300)).mean()
    assert float(result.rank[0]) == pytest.approx(rank, rel=1e-5)
    if largest == 0:
        assert not np.any(result.rms) and not np.any(result.rank)
