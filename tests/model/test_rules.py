"""Every residual rule: its equation against a second transformer, delta against the dense definition, its start."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import networks
from model.config import ModelConfig, ResidualConfig, problems
from model.network import Network
from model.residual import RULES, Context, Sublayer, numbers_of, rule_of, structure_of
from model.residual.attnres import mix
from model.residual.streams import sinkhorn
from model.rules import options
from networks import EACH_RULE, FEW_RULES, B, D, L, T, V, parameters
from reference import Reference
from train.core.loss import tapped_loss
from train.gradflow.delta import backward, true_gradients
from train.gradflow.norms import log10, value

WINDOWS: Any = np.random.default_rng(0).integers(0, V, size=(B, T + 1)).astype(np.int32)
TOKENS = WINDOWS[:, :-1]


def network(residual: Any, dtype="float64", unroll=1, **model: Any) -> Network:
    return networks.network(dtype, unroll, residual=residual, **model)


@partial(jax.jit, static_argnums=0)
def logits(net: Network, params, s=None, key=None):
    return net.apply(params, TOKENS, numbers={} if s is None else {"skip_scale": s}, key=key)[0]


@partial(jax.jit, static_argnums=0)
def start(net: Network):
    return net.init(0, {"init_std": 0.5})


@partial(jax.jit, static_argnums=0)
def tapped(net: Network, params, numbers=None):
    loss, result, _ = backward(tapped_loss(net, WINDOWS, numbers, None), params, net.config.layers)
    return loss, result.delta, true_gradients(result)


@partial(jax.jit, static_argnums=0)
def plain(net: Network, params):
    loss: Any = tapped_loss(net, WINDOWS, None, None)
    return jax.value_and_grad(lambda p: loss(p, None, None)[0])(params)


def skip_scales(rule: str) -> tuple[float | None, ...]:
    return (None, 0.5, 0.0) if RULES[rule].additive and rule != "none" else (None,)


@pytest.mark.parametrize("norm", ["rms", "none"])
@pytest.mark.parametrize("rule", RULES)
def test_logits_equal_those_of_the_second_transformer(x64, rule, norm):
    net = network(rule, norm=norm, heads=4, kv_heads=2)
    params = parameters(net)
    for s in skip_scales(rule):
        wanted = Reference(net.config, params).logits(TOKENS, 1.0 if s is None else s)
        np.testing.assert_allclose(logits(net, params, s), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "residual",
    [
        {"rule": "hyper_connections", "streams": 2, "dynamic": True},
        {"rule": "mhc", "streams": 3, "rounds": 2},
        {"rule": "attnres", "block": 1},
        {"rule": "attnres", "block": 2},
    ],
)
def test_options_against_the_second_transformer(x64, residual):
    net = network(residual)
    params = parameters(net)
    same(logits(net, params), Reference(net.config, params).logits(TOKENS), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", FEW_RULES)
def test_scanned_and_unrolled_alike(x64, rule):
    params = parameters(network(rule))
    one, all_ = (tapped(network(rule, unroll=unroll), params) for unroll in (1, L))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14), one, all_)


@pytest.mark.parametrize("rule", EACH_RULE)
def test_gradients_behind_taps_are_jax_s(x64, rule):
    net = network(rule)
    params = parameters(net)
    loss, delta, grads = tapped(net, params)
    assert np.isfinite(value(delta)).all() and (value(delta) > 0).all()
    wanted_loss, wanted = plain(net, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(wanted))
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-13)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-15), grads, wanted)


@pytest.mark.parametrize("rule", EACH_RULE)
def test_delta_at_the_bottom_and_the_top_by_finite_differences(x64, rule):
    """|delta_0| from the gradient of the embedding rows, each token its own; |delta_L| by the second transformer."""
    net = network(rule, positions="none", tied_head=False, layers=2)
    params = parameters(net)
    distinct = np.arange(T + 1, dtype=np.int32)[None] % V

    def loss(embed):
        probabilities = Reference(net.config, params | {"embed": embed}).logits(distinct[:, :-1])
        top = probabilities.max(axis=1, keepdims=True)
        logs = probabilities - top - np.log(np.exp(probabilities - top).sum(axis=1, keepdims=True))
        return -logs[np.arange(T), distinct[0, 1:]].mean()

    embed, rng = np.asarray(params["embed"]), np.random.default_rng(1)
    run: Any = jax.jit(lambda p: backward(tapped_loss(net, distinct, None, None), p, 2)[1])
    result = run(params)
    # With every token apart, the gradient of the table is delta_0, row by row.
    analytic = np.asarray(true_gradients(result)["embed"])
    # The embeddings are copied into every stream there, and have a second path here.
    if rule not in ("hyper_connections", "mhc", "x0_lambda", "attnres"):
        assert value(result.delta)[0] == pytest.approx(np.linalg.norm(analytic), rel=1e-9)
    s = numbers_of(net.config)["skip_scale"]
    assert s == (0.0 if rule == "none" else 1.0)
    for _ in range(3):
        direction = rng.normal(size=embed.shape) * (np.arange(V) < T)[:, None]
        slope = (loss(embed + 1e-5 * direction) - loss(embed - 1e-5 * direction)) / 2e-5
        assert np.sum(analytic * direction) == pytest.approx(slope, rel=1e-5)


def offset(rule: str, carry, o):
    """The carry with `o` added to what delta is taken of, by rule: not as `Residual.stream` has it."""
    if rule in ("value_residual", "x0_lambda"):
        return carry[0] + o, carry[1]
    return (carry[0], carry[1] + o) if rule == "attnres" else carry + o


@pytest.mark.parametrize("rule", FEW_RULES)
def test_delta_at_every_depth_is_the_gradient_of_an_offset_there(x64, rule):
    """By the blocks one after the other, without scan or taps."""
    net = network(rule)
    params, numbers = parameters(net), {name: jnp.asarray(x) for name, x in numbers_of(net.config).items()}
    copies = (net.config.residual.streams or 4,) if rule in ("hyper_connections", "mhc") else ()

    @jax.jit
    def by_offsets(offsets):
        model = nnx.merge(net._graph, params)
        graph, stacked = nnx.split(model.blocks)
        context = Context(numbers, (B, T))
        carry = rule_of(net.config).begin(model._embedded(TOKENS), context)
        for layer in range(L):
            block = nnx.merge(graph, jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked))
            carry = block(offset(rule, carry, offsets[layer]), context._replace(layer=jnp.int32(layer)), "float64")
        x = rule_of(net.config).end(offset(rule, carry, offsets[L]))
        x = x if model.norm_f is None else model.norm_f(x, numbers["norm_eps"])
        logs = jax.nn.log_softmax(x @ params["embed"].T)
        return -jnp.mean(logs[jnp.arange(B * T), WINDOWS[:, 1:].reshape(-1)])

    slopes = jax.grad(by_offsets)(jnp.zeros((L + 1, *copies, B * T, D)))
    wanted = np.sqrt(np.sum(np.square(slopes), axis=tuple(range(1, slopes.ndim))))
    np.testing.assert_allclose(value(tapped(net, params)[1]), wanted, rtol=1e-9)


@pytest.mark.parametrize(("rule", "layers"), [("x0_lambda", 20), ("value_residual", 20)])
def test_delta_far_below_the_other_part_of_the_carry(x64, rule, layers):
    """In the dtype's own range the parts of a carry may differ: nothing is lost at 1e-19 of the largest."""
    found = {}
    for dtype in ("float32", "float64"):
        net = network(rule, dtype, norm="none", layers=layers, skip_scale=0.0)
        found[dtype] = log10(tapped(net, parameters(net, 0.2))[1])
    known = found["float64"] > found["float64"].max() - 35
    assert 3 < known.sum() and found["float64"][known].min() < found["float64"].max() - 20
    np.testing.assert_allclose(found["float32"][known], found["float64"][known], atol=1e-3)


# --- how each rule starts ---


def same(a, b, rtol=1e-12, atol=0.0):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_rezero_and_skipinit_start_as_the_identity_and_pass_delta_unchanged(x64):
    for rule in ("rezero", "skipinit"):
        net = network(rule)
        params = start(net)
        _, delta, grads = tapped(net, params)
        np.testing.assert_array_equal(value(delta), value(delta)[-1])
        blocks = grads["blocks"]
        for path, leaf in jax.tree_util.tree_leaves_with_path(blocks):
            moves = path[0].key == "residual"
            assert np.any(np.asarray(leaf) != 0) == moves, path
        assert set(blocks["residual"]) == {"alpha_1", "alpha_2"}


def test_the_start_of_alpha_is_the_config_s(x64):
    for rule in ("rezero", "skipinit"):
        own = start(network({"rule": rule, "alpha": 0.25}))["blocks"]["residual"]
        np.testing.assert_array_equal(own["alpha_1"], np.full(L, 0.25))


@pytest.mark.parametrize(("layers", "scale"), [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_layerscale_starts_smaller_the_deeper_the_model(layers, scale):
    own = start(network("layerscale", layers=layers, dtype="float32"))["blocks"]["residual"]
    np.testing.assert_array_equal(own["lambda_2"], np.full((layers, D), np.float32(scale)))


def test_layerscale_of_one_is_pre_ln(x64):
    params = parameters(network("pre_ln"))
    ones = {f"lambda_{n}": jnp.ones((L, D)) for n in (1, 2)}
    scaled = params | {"blocks": params["blocks"] | {"residual": ones}}
    same(logits(network("layerscale"), scaled), logits(network("pre_ln"), params))


def test_deepnorm_s_constants(x64):
    # L = 8: alpha = 16^(1/4) = 2, beta = 64^(-1/4) = 1 / (2 sqrt 2), on V, O and the MLP, and not on Q and K.
    model: Any = {"layers": 8, "init": "normal", "activation": "swiglu"}
    net = network("deepnorm", **model)
    drawn, usual = start(net)["blocks"], start(network("pre_ln", **model))["blocks"]
    beta = 1 / (2 * np.sqrt(2))
    for part, name, factor in (
        ("attn", "q", 1),
        ("attn", "k", 1),
        ("attn", "v", beta),
        ("attn", "o", beta),
        ("mlp", "in_", beta),
        ("mlp", "gate", beta),
        ("mlp", "out", beta),
    ):
        same(drawn[part][name]["kernel"], factor * usual[part][name]["kernel"], rtol=1e-6)
    params = parameters(net)
    same(logits(net, params), logits(network({"rule": "deepnorm", "alpha": 2.0}, **model), params))
    assert net.config.residual.alpha is None and "norm_f" not in params


def test_gpt2_scaled_is_pre_ln_with_smaller_output_matrices(x64):
    drawn, usual = (start(network(rule, layers=8))["blocks"] for rule in ("gpt2_scaled", "pre_ln"))
    for part, name, factor in (("attn", "o", 1 / 4), ("mlp", "out", 1 / 4), ("attn", "v", 1), ("mlp", "in_", 1)):
        same(drawn[part][name]["kernel"], factor * usual[part][name]["kernel"], rtol=1e-6)
    assert structure_of(ModelConfig(residual="gpt2_scaled")) == structure_of(ModelConfig())


def test_value_residual_at_lambda_zero_is_pre_ln(x64):
    net = network("value_residual")
    params = start(net)
    np.testing.assert_array_equal(params["blocks"]["residual"]["lambda"], np.full(L, 0.5))
    own = params["blocks"]["residual"]
    zero = params | {"blocks": params["blocks"] | {"residual": {"lambda": jnp.zeros(L)}}}
    usual = start(network("pre_ln"))
    same(logits(net, zero), logits(network("pre_ln"), usual))
    # Block 0 is where V_1 comes from: its lambda changes nothing.
    moved = params | {"blocks": params["blocks"] | {"residual": {"lambda": own["lambda"].at[0].set(3.0)}}}
    same(logits(net, moved), logits(net, params), atol=1e-13)


def test_x0_lambda_starts_as_pre_ln(x64):
    same(logits(network("x0_lambda"), start(network("x0_lambda"))), logits(network("pre_ln"), start(network("pre_ln"))))


def test_value_skipinit_starts_with_attention_as_the_identity(x64):
    """At alpha = 1, beta = 0 tokens do not look at each other, and with orthogonal V and O attention keeps norms."""
    net = network("value_skipinit", init="orthogonal", positions="none")
    params = start(net)
    np.testing.assert_array_equal(params["blocks"]["residual"]["alpha"], np.ones(L))
    np.testing.assert_array_equal(params["blocks"]["residual"]["beta"], np.zeros(L))
    repeated = np.asarray(logits(net, params)).reshape(B, T, V)
    for sequence, tokens in zip(repeated, TOKENS, strict=True):
        for token in set(tokens.tolist()):
            rows = sequence[tokens == token]
            same(rows, np.broadcast_to(rows[:1], rows.shape))


def test_highway_starts_mostly_open(x64):
    own = start(network("highway"))["blocks"]["residual"]["gate_1"]
    np.testing.assert_array_equal(own["bias"], np.full((L, D), -1.0))
    net, params = network("highway"), parameters(network("highway"))
    shut = jax.tree.map(jnp.zeros_like, params["blocks"]["residual"])
    shut["gate_1"]["bias"] -= 1e3
    shut["gate_2"]["bias"] -= 1e3
    identity = params | {"blocks": params["blocks"] | {"residual": shut}}
    _, delta, _ = tapped(net, identity)
    same(value(delta), np.full(L + 1, value(delta)[-1]))


# --- several streams, and attention over depth ---


@pytest.mark.parametrize(
    "option", [{"dynamic": True}, *(pytest.param(x, marks=pytest.mark.slow) for x in ({}, {"streams": 2}))]
)
def test_hyper_connections_start_as_pre_ln(x64, option):
    net, usual = network({"rule": "hyper_connections", **option}, norm_eps=0.0), network("pre_ln", norm_eps=0.0)
    params = start(net)
    own = params["blocks"]["residual"]
    n = option.get("streams", 4)
    for index in (0, 1):
        reads = np.argmax(own[f"read_{index + 1}"], axis=1)
        np.testing.assert_array_equal(reads, [(2 * layer + index) % n for layer in range(L)])
    same(logits(net, params), logits(usual, start(usual)), rtol=1e-9, atol=1e-12)
    _, delta, _ = tapped(net, params)
    _, expected, _ = tapped(usual, start(usual))
    # Copies share the gradient of the one stream, up to the way a sublayer reads one of them.
    assert value(delta)[-1] == pytest.approx(value(expected)[-1] / np.sqrt(n), rel=1e-9)


def test_mhc_starts_as_pre_ln(x64):
    net, usual = network("mhc", norm_eps=0.0), network("pre_ln", norm_eps=0.0)
    same(logits(net, start(net)), logits(usual, start(usual)), rtol=1e-9, atol=1e-12)


def test_sinkhorn_is_doubly_stochastic_and_so_are_products(x64):
    matrices = np.asarray(sinkhorn(jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 4))), 50))
    product = np.linalg.multi_dot(list(matrices))
    for matrix in (*matrices, product):
        assert (matrix > 0).all()
        same(matrix.sum(axis=0), np.ones(4), rtol=1e-10)
        same(matrix.sum(axis=1), np.ones(4), rtol=1e-10)
    (one,) = np.asarray(sinkhorn(jnp.asarray([[[0.0, np.log(3.0)], [0.0, 0.0]]]), 1))
    # By hand: columns [1, 1] and [3, 1] become [1/2, 1/2] and [3/4, 1/4]; rows 5/4 and 3/4 then become 1.
    same(one, [[2 / 5, 3 / 5], [2 / 3, 1 / 3]])


@pytest.mark.parametrize("block", [None, 1, 2, 3])
def test_zero_query_attnres_is_pre_ln(x64, block):
    net, usual = network({"rule": "attnres", "block": block}, norm_eps=0.0), network("pre_ln", norm_eps=0.0)
    params = start(net)
    np.testing.assert_array_equal(params["blocks"]["residual"]["query_1"], np.zeros((L, D)))
    same(logits(net, params), logits(usual, start(usual)), rtol=1e-9, atol=1e-12)
    # The gradients of what both have are the same too.
    found, wanted = plain(net, params)[1], plain(usual, start(usual))[1]
    for part in ("attn", "mlp"):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12), found["blocks"][part], wanted["blocks"][part]
        )


def test_a_mix_weighs_by_normed_keys_and_adds_raw_values(x64):
    # Two sources of one token in the direction of the query, lengths 1 and 10: equal keys, so equal weights.
    sources = jnp.asarray([[[1.0, 0.0]], [[10.0, 0.0]], [[7.0, 7.0]]])
    same(mix(sources, jnp.asarray([3.0, 0.0]), jnp.int32(2), jnp.asarray(0.0)), [[5.5, 0.0]])
    # Normed keys are (sqrt 2, 0) and (1, 1): scores q sqrt 2 and q.
    q = np.log(3) / (np.sqrt(2) - 1)
    found = mix(sources[1:], jnp.asarray([q, 0.0]), jnp.int32(2), jnp.asarray(0.0))
    same(found, [[(3 * 10 + 7) / 4, 7 / 4]])


# --- stochastic depth ---


def test_stochastic_depth_is_pre_ln_without_a_key(x64):
    params = parameters(network("pre_ln"))
    np.testing.assert_array_equal(logits(network("stochastic_depth"), params), logits(network("pre_ln"), params))


def test_stochastic_depth_drops_whole_blocks_as_often_as_it_says(x64):
    """p_l = 1 - (l/L)(1 - p_L); with one block and p_1 = 0.7 the output is x or x + F(N(x)) / 0.7 (two sublayers)."""
    net = network({"rule": "stochastic_depth", "keep": 0.7}, layers=1)
    params = parameters(net)
    keys = jax.random.split(jax.random.key(0), 400)
    many = np.asarray(jax.jit(jax.vmap(lambda key: net.apply(params, TOKENS, key=key)[0]))(keys))
    values = np.unique(many[:, 0, 0].round(9))
    assert len(values) == 2
    larger = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf / 0.7 if path[-2].key in ("o", "out") else leaf, params["blocks"]
    )
    whole = np.asarray(logits(network("pre_ln", layers=1), params | {"blocks": larger}))
    assert np.isclose(many, whole[None]).all(axis=(1, 2)).any()
    empty = jax.tree.map(jnp.zeros_like, params["blocks"])
    dropped = np.asarray(logits(network("pre_ln", layers=1), params | {"blocks": empty}))
    kept = ~np.isclose(many, dropped[None]).all(axis=(1, 2))
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.7 * 0.3 / len(keys))


def test_a_block_survives_the_less_the_higher_it_stands(x64):
    """p_l = 1 - (l/3)(1 - 0.1) is 0.7, 0.4 and 0.1."""
    rule = rule_of(ModelConfig(layers=L, residual={"rule": "stochastic_depth", "keep": 0.1}))  # pyright: ignore
    numbers = {"residual.keep": jnp.asarray(0.1), "skip_scale": jnp.asarray(1.0)}
    branch = Sublayer(0, lambda h, *_: (jnp.ones_like(h), None), {"in": lambda x: x}, {}, {})

    def after(layer, key):
        context = Context(numbers, (1, 1), layer, key)
        return rule.sublayer(jnp.zeros((1, 1)), branch, context)[0, 0]

    keys = jax.random.split(jax.random.key(0), 2000)
    for layer, p in enumerate((0.7, 0.4, 0.1)):
        found = np.asarray(jax.vmap(partial(after, jnp.int32(layer)))(keys))
        assert set(found.round(9)) == {0.0, round(1 / p, 9)}
        assert abs((found > 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / len(keys))


def test_stochastic_depth_at_keep_one_is_pre_ln_in_training_too(x64):
    net = network({"rule": "stochastic_depth", "keep": 1.0})
    params = parameters(net)
    same(logits(net, params, None, jax.random.key(0)), logits(network("pre_ln"), params))


# --- options ---


def test_every_rule_is_named_and_built():
    for rule in RULES:
        assert rule_of(ModelConfig(residual=rule)).config.residual == ResidualConfig(rule=rule)  # pyright: ignore[reportArgumentType]
    assert ["rule", *options()] == list(ResidualConfig.model_fields)


@pytest.mark.parametrize("option", options())
def test_an_option_of_another_rule_is_refused(option):
    config = ModelConfig(residual={"rule": "pre_ln", option: {"dynamic": True, "streams": 2}.get(option, 1)})  # pyright: ignore[reportArgumentType]
    assert problems(config) == [
        (f"residual.{option}", f"an option of {', '.join(options()[option])}; residual.rule is pre_ln")
    ]
