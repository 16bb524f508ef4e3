"""The transformer against a second implementation in numpy, and laws of its parts."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import networks
from model import layers
from model.attention import Attention
from model.config import InitGain, ModelConfig, problems
from model.init import Init
from model.layers import dropout, fusion_barrier, normalize, product
from model.network import Network, draw, filtered, next_token_logits
from model.positions import rotate
from model.residual import numbers_of
from model.rules import ACTIVATIONS
from networks import TOKENS, B, D, L, T, V, changed, leaves, logits, parameters
from train.chain.reference import ACTIVATIONS as FORMULAS
from train.chain.reference import GATES, Reference, normalized, softmax

SIGMAS = 5  # a statistical test fails by chance once in two million


def network(dtype="float32", unroll=1, **model: Any) -> Network:
    return networks.network(dtype, unroll, **model)


@partial(jax.jit, static_argnums=0)
def seen(network: Network, params, tokens):
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
        wanted, found = reference.logits(TOKENS, s), logits(net, params, {"skip_scale": s})
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max(), err_msg=f"s = {s}")
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


def test_the_fusion_barrier_is_the_identity_and_so_are_its_derivatives():
    x, v = jnp.asarray([[0.1, -3e-38, 1e38], [np.inf, 0.0, 7.0]], jnp.float32)

    def cube(x, keep):
        return jnp.sum(keep(x * x) * x)

    def derivatives(keep):
        slope = jax.grad(partial(cube, keep=keep))
        return keep(x), slope(x), jax.jvp(slope, (x,), (v,))[1], jax.vmap(slope)(x[None])[0]

    kept = derivatives(lambda x: fusion_barrier(x, jnp.float32(1)))
    jax.tree.map(np.testing.assert_array_equal, kept, derivatives(lambda x: x))


# --- attention ---


def test_a_product_and_its_derivatives_in_bfloat16_are_those_in_float32_but_for_rounding():
    rng = np.random.default_rng(0)
    x, y, dx, dy = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((4, 6), (6, 5)) * 2)
    cotangent = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)

    def all_of(*factors):
        out, tangent = jax.jvp(partial(product, "nd,dv->nv"), factors[:2], factors[2:])
        return out, tangent, *jax.vjp(partial(product, "nd,dv->nv"), *factors[:2])[1](cotangent)

    found, wanted = all_of(x, y, dx, dy), all_of(*(factor.astype(jnp.float32) for factor in (x, y, dx, dy)))
    assert [leaf.dtype for leaf in found] == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=0, atol=2**-6 * np.abs(other).max())


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

    (plain, wanted), (fused, found) = gradient(net), gradient(replace(net, fused="xla"))
    assert plain != fused
    largest = max(np.abs(leaf).max() for leaf in leaves(wanted).values())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=3e-7 * largest), found, wanted)


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


def test_the_softmax_s_derivative_is_its_jacobian_forwards_and_backwards(x64):
    x = jnp.asarray([[1.0, -2.0, 0.5], [30.0, 0.0, -1e3]])
    y = np.asarray(layers.softmax(x))
    np.testing.assert_allclose(y, softmax(np.asarray(x)), rtol=1e-14)
    wanted = np.zeros((2, 3, 2, 3))
    for row in (0, 1):
        wanted[row, :, row] = np.diag(y[row]) - np.outer(y[row], y[row])
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jax.jit(jacobian(layers.softmax))(x), wanted, rtol=0, atol=1e-15)


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


# --- parts ---


def test_activations(x64):
    x = np.linspace(-6, 6, 41)
    for name, formula in (FORMULAS | GATES).items():
        np.testing.assert_allclose(
            ACTIVATIONS[name].function()(jnp.asarray(x)), formula(x), rtol=1e-12, atol=1e-15, err_msg=name
        )
    assert set(ACTIVATIONS) == set(FORMULAS) | set(GATES) and {n for n in ACTIVATIONS if ACTIVATIONS[n].gated} == set(
        GATES
    )


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms(x64, kind, eps):
    x = np.random.default_rng(3).normal(size=(4, 6)) * np.asarray([[1], [1e-3], [1e3], [5]]) + 2
    found = np.asarray(normalize(jnp.asarray(x), kind, eps))
    np.testing.assert_allclose(found, normalized(x, kind, eps), rtol=1e-10)
    if eps == 0:
        np.testing.assert_allclose((found**2).mean(axis=-1), 1, rtol=1e-12)
        np.testing.assert_allclose(normalize(jnp.asarray(9 * x), kind, eps), found, rtol=1e-10)


def test_dropout_keeps_the_mean_and_drops_its_share():
    n, rate = 100_000, 0.3
    y = np.asarray(dropout(jnp.full((n,), 2.0), jnp.float32(rate), jax.random.key(0)))
    kept = np.float32(2) / np.float32(0.7)
    assert set(np.unique(y)) == {0.0, kept}
    # An entry over 2 is 1/(1-p) with probability 1-p: mean 1, variance p/(1-p). The zeros are binomial.
    assert abs(y.mean() / 2 - 1) < SIGMAS * np.sqrt(rate / (1 - rate) / n)
    assert abs((y == 0).mean() - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / n)


def test_dropout_is_off_without_a_key_or_a_rate():
    x = jnp.arange(5.0)
    np.testing.assert_array_equal(dropout(x, jnp.float32(0.9), None), x)
    np.testing.assert_array_equal(dropout(x, None, jax.random.key(0)), x)
    params = parameters(network())
    np.testing.assert_array_equal(logits(network(dropout=0.5), params), logits(network(), params))


@pytest.mark.slow
def test_each_place_has_its_own_rate():
    """A rate of 0 for one place disables its dropout; with one active place only its rate matters."""
    places = ("embed", "attention", "residual")
    rates = [ModelConfig(dropout=0.1, dropout_attention=0.0).dropout_at(place) for place in places]
    assert rates == ["dropout", None, "dropout"]
    params, key, off = parameters(network()), jax.random.key(1), {f"dropout_{place}": 0.0 for place in places}
    plain = np.asarray(logits(network(), params))
    np.testing.assert_array_equal(logits(network(dropout=0.5, **off), params, None, key), plain)
    dropped = [np.asarray(logits(network(**{f"dropout_{place}": 0.5}), params, None, key)) for place in places]
    for one, other in [(plain, found) for found in dropped] + [(dropped[0], dropped[1]), (dropped[1], dropped[2])]:
        assert np.abs(one - other).max() > 1e-2


def test_every_key_layer_and_place_draws_for_itself():
    net = network(dropout=0.5)
    params = parameters(net)
    one, again, other = (np.asarray(logits(net, params, None, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (np.abs(one - other).max(axis=-1) > 1e-3).all()
    # Every draw of a forward pass has a key of its own: three a block, and the embedding's.
    keys, unrolled = [], network(dropout=0.5, unroll=L)

    bernoulli = jax.random.bernoulli

    def spy(key, *rest):
        jax.debug.callback(lambda data: keys.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key))
        return bernoulli(key, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "bernoulli", spy)
        jax.block_until_ready(unrolled.apply(params, TOKENS, key=jax.random.key(1)))
        jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 3 * L + 1


# --- initial values ---


@partial(jax.jit, static_argnums=0)
def init(network: Network, seed, init_std=0.02):
    return network.init(seed, {"init_std": init_std})


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(network(residual="none", norm="none"), marks=pytest.mark.slow),
        network(residual="post_ln", tied_head=False, bias=True, positions="rope"),
        pytest.param(network(layers=6), marks=pytest.mark.slow),
        network("bfloat16"),
    ],
    ids=["no norm", "other ends", "deeper", "bfloat16"],
)
def test_a_parameter_starts_from_the_same_value_under_every_rule_option_depth_and_dtype(other):
    first, second = leaves(init(network(), 3)), leaves(init(other, 3))
    shared = first.keys() & second.keys()
    assert len(shared) >= 7  # the table and six matrices
    for path in shared:
        there = second[path][:L] if path.startswith("blocks/") else second[path]
        np.testing.assert_array_equal(first[path], there, err_msg=path)
        assert there.dtype == "float32"


@pytest.mark.slow
def test_float64_starts_from_the_float32_weights(x64):
    narrow, wide = leaves(init(network("float32"), 3)), leaves(init(network("float64"), 3))
    for path, leaf in wide.items():
        assert leaf.dtype == "float64"
        np.testing.assert_array_equal(leaf, narrow[path], err_msg=path)


def test_different_matrices_layers_and_seeds_differ():
    params = init(network(), 3)
    matrices = [leaf[layer] for layer in range(L) for leaf in jax.tree.leaves(params["blocks"]) if leaf.ndim == 3]
    matrices += [params["embed"], params["positions"]]
    assert len(matrices) == 3 * 6 + 2
    for i, a in enumerate(matrices):
        for b in matrices[i + 1 :]:
            assert a.shape != b.shape or abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < SIGMAS / np.sqrt(a.size)
    other = init(network(), 4)
    assert not np.any(np.asarray(other["embed"]) == np.asarray(params["embed"]))


def matrices(kind, rows, columns, std=0.02):
    drawn = Init(jax.random.key(0), kind, {"init_std": std}, jnp.dtype("float32"))
    return np.asarray(jax.jit(lambda: jnp.stack([drawn.matrix("w", layer, rows, columns) for layer in range(2)]))())


def test_standard_deviations():
    # The standard error of a standard deviation from n draws is std / sqrt(2n): 0.3 % here.
    for kind, rows, columns, std in (("xavier", 192, 320, np.sqrt(2 / 512)), ("normal", 320, 192, 0.02)):
        w = matrices(kind, rows, columns)
        assert w.shape == (2, rows, columns)
        assert w.std() == pytest.approx(std, rel=0.03)
        assert abs(w.mean()) < SIGMAS * std / np.sqrt(w.size)
    np.testing.assert_allclose(matrices("normal", 8, 8, std=0.5), 25 * matrices("normal", 8, 8), rtol=1e-6)


def test_orthogonal_matrices_are_not_factorized_as_a_batch():
    """A batch waits for the thread pool from inside it; two at once deadlock two cores (model/init.py)."""
    net = network(init="orthogonal")
    text = jax.jit(lambda seed: net.init(seed)).lower(np.uint32(0)).as_text()
    calls = [line for line in text.splitlines() if "geqrf" in line and "custom_call" in line]
    assert calls and not [line for line in calls if re.search(r"tensor<\d+x\d+x\d+xf32>", line)]


def test_orthogonal_matrices():
    for rows, columns in ((24, 24), (24, 8), (8, 24)):
        for w in matrices("orthogonal", rows, columns).astype(np.float64):
            short = w.T @ w if rows >= columns else w @ w.T
            np.testing.assert_allclose(short, np.eye(min(rows, columns)), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_tables_gains_and_biases_start_as_stated():
    params = init(network(bias=True, norm="layer", tied_head=False, init="orthogonal"), 0, 0.5)
    for table in ("embed", "head", "positions"):
        values = np.asarray(params[table])
        assert values.std() == pytest.approx(0.5, rel=SIGMAS / np.sqrt(2 * values.size))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key in ("gain", "bias"):
            np.testing.assert_array_equal(leaf, 1.0 if path[-1].key == "gain" else 0.0)


@pytest.mark.slow
def test_init_gains_scale_one_kind_of_matrix_each():
    tags = {f"init_gain.{tag}": float(gain) for gain, tag in enumerate(InitGain.model_fields, 2)}
    net, scaled_by = network(activation="swiglu"), {}
    usual, scaled = (leaves(jax.jit(lambda numbers=numbers: net.init(0, numbers))()) for numbers in ({}, tags))
    for path, leaf in usual.items():
        if path.endswith("kernel"):
            scaled_by["init_gain." + "_".join(path.split("/")[1:3])] = scaled[path] / leaf
    assert set(scaled_by) == set(tags)
    for key, ratio in scaled_by.items():
        np.testing.assert_allclose(ratio, tags[key], rtol=1e-6)


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
    found = seen(net, params, TOKENS)
    streams = np.stack([Reference(net.config, params).streams(sequence, 1.0) for sequence in TOKENS])  # [B, L+1, T, D]
    np.testing.assert_allclose(found.rms, np.sqrt((streams**2).mean(axis=(0, 2, 3))), rtol=1e-12)
    spread = np.linalg.norm(streams - streams.mean(axis=2, keepdims=True), axis=(2, 3))
    rank = (spread / np.linalg.norm(streams, axis=(2, 3))).mean(axis=0)
    np.testing.assert_allclose(found.rank, rank, rtol=1e-12)


def test_rank_is_zero_when_all_tokens_are_alike():
    net = network(positions="none")
    found = seen(net, parameters(net), np.full((B, T), 3, np.int32))
    np.testing.assert_allclose(found.rank, 0, atol=1e-6)
    assert (np.asarray(found.rms) > 0.1).all()


@pytest.mark.parametrize("largest", [0.0, 1e-37, 1e-30, 1e-20, 1e20, 1.5e38, 3e38])
def test_rms_and_rank_at_the_ends_of_the_range(largest):
    """Squares underflow and overflow in float32, the rms does not; a stream of zeros has rms and rank 0, not nan."""
    net = network(norm="none", positions="none")
    params = changed(parameters(net), "embed", lambda x: x / jnp.max(jnp.abs(x)) * jnp.float32(largest))
    stream, found = np.asarray(params["embed"], np.float64)[TOKENS], seen(net, params, TOKENS)
    assert float(found.rms[0]) == pytest.approx(np.sqrt((stream**2).mean()), rel=1e-5, abs=0)
    spread = np.linalg.norm(stream - stream.mean(axis=1, keepdims=True), axis=(1, 2))
    rank = (spread / np.maximum(np.linalg.norm(stream, axis=(1, 2)), 1e-300)).mean()
    assert float(found.rank[0]) == pytest.approx(rank, rel=1e-5)
    if largest == 0:
        assert not np.any(found.rms) and not np.any(found.rank)


# --- config ---


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("{width: 12, heads: 5}", ["heads: expected a divisor of width 12 (nearest: 3, 4, 6), got 5"]),
        (
            "{width: 12, heads: 4, positions: rope}",
            ["positions: rope turns pairs, so width/heads must be even, got 3"],
        ),
        ("{width: 12, heads: 6, positions: rope}", []),
        ("{heads: 4, kv_heads: 3}", ["kv_heads: expected a divisor of heads 4, got 3"]),
        ("{heads: 4, kv_heads: 8}", ["kv_heads: expected a divisor of heads 4, got 8"]),
        ("{heads: 4, kv_heads: 1, residual: none, skip_scale: 0.0}", []),
        (
            "{residual: none, skip_scale: 0.5}",
            ["skip_scale: residual: none means skip_scale 0; leave it out or use pre_ln, got 0.5"],
        ),
        (  # all at once
            "{width: 10, heads: 3, kv_heads: 2, mlp_ratio: 0.01}",
            [
                "heads: expected a divisor of width 10 (nearest: 1, 2, 5), got 3",
                "kv_heads: expected a divisor of heads 3, got 2",
                "mlp_ratio: mlp_ratio times width must be at least 1, got 0.01 * 10",
            ],
        ),
    ],
)
def test_problems(model, wanted):
    found = problems(ModelConfig(**yaml.safe_load(model)))
    assert [f"{key}: {message}" for key, message in found] == wanted


# --- sampling ---

LOGITS = jnp.asarray([1.0, 3.0, -1.0, 2.5, 0.0], jnp.float32)


def test_filtered():
    np.testing.assert_allclose(filtered(LOGITS, 0.5, None), 2 * np.asarray(LOGITS))
    np.testing.assert_allclose(filtered(LOGITS, 2.0, 2), [-np.inf, 1.5, -np.inf, 1.25, -np.inf])
    np.testing.assert_array_equal(filtered(LOGITS, 1.0, 1), [-np.inf, 3.0, -np.inf, -np.inf, -np.inf])
    for all_of_them in (5, 50):
        np.testing.assert_array_equal(filtered(LOGITS, 1.0, all_of_them), LOGITS)


def test_temperature_zero_takes_the_most_likely_token():
    for seed in range(5):
        assert draw(jax.random.key(seed), LOGITS, 0.0, None) == 1
        assert draw(jax.random.key(seed), LOGITS, 1.0, 1) == 1


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (2.0, None), (0.7, 3)])
def test_tokens_come_as_often_as_their_probability_says(temperature, top_k):
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    tokens = np.asarray(jax.jit(jax.vmap(lambda key: draw(key, LOGITS, temperature, top_k)))(keys))
    p = softmax(np.asarray(LOGITS, np.float64) / temperature)
    if top_k is not None:
        p = np.where(np.isin(np.arange(5), [1, 3, 0]), p, 0) / p[[1, 3, 0]].sum()
    share = np.bincount(tokens, minlength=5) / n
    assert (np.abs(share - p) <= SIGMAS * np.sqrt(p * (1 - p) / n)).all()
    np.testing.assert_array_equal(share[p == 0], 0)


def test_the_next_token_is_told_from_those_before_it_and_never_from_the_padding():
    net = network(skip_scale=0.5)
    params = parameters(net)
    ask = jax.jit(lambda tokens, length: next_token_logits(net, params, tokens, length))
    wanted = Reference(net.config, params).logits([TOKENS[0, :3]], 0.5)[-1]
    for padding in (0, 7):
        padded = np.concatenate([TOKENS[0, :3], np.full(T - 3, padding)]).astype(np.int32)
        np.testing.assert_allclose(ask(padded, 3), wanted, rtol=0, atol=1e-5)
