"""Every residual rule: its equation against a second transformer, delta against the dense definition, its start."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from data.source import open_source
from model.config import ModelConfig, ResidualConfig, problems
from model.network import Network
from model.residual import RULES, Context, Sublayer, numbers_of, rule_of
from model.residual.attnres import mix
from model.residual.streams import sinkhorn
from model.rules import options
from networks import APART, DISTINCT, TOKENS, B, D, L, T, V, logits, parameters, quick, same, tapped, untapped
from networks import rule_network as network
from train.chain.reference import Reference
from train.core.dispatch import run_dispatch
from train.core.state import hparams_of, initial_state
from train.gradflow import delta
from train.gradflow.norms import log10, value

true_gradients = jax.jit(delta.true_gradients)


@pytest.mark.parametrize("norm", ["rms", pytest.param("none", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", RULES)
def test_logits_equal_those_of_the_second_transformer(x64, rule, norm):
    net = networks.network(residual=rule, norm=norm, heads=4, kv_heads=2)
    params = parameters(net)
    for s in (1.0, 0.5, 0.0) if RULES[rule].additive and rule != "none" else (None,):
        result = logits(net, params, {} if s is None else {"skip_scale": s})
        same(result, Reference(net.config, params).logits(TOKENS, 1.0 if s is None else s), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "residual",
    [
        {"rule": "hyper_connections", "streams": 2, "dynamic": True},
        pytest.param({"rule": "mhc", "streams": 3, "rounds": 2}, marks=pytest.mark.slow),
        pytest.param({"rule": "attnres", "block": 1}, marks=pytest.mark.slow),
        {"rule": "attnres", "block": 2},
        pytest.param({"rule": "attnres", "heads": 4}, marks=pytest.mark.slow),
        pytest.param({"rule": "mhc", "mixing": "identity"}, marks=pytest.mark.slow),
        pytest.param({"rule": "mhc", "mixing": "circulant", "streams": 3}, marks=pytest.mark.slow),
        {"rule": "mhc", "mixing": "lite", "streams": 3},
        {"rule": "denseformer", "dynamic": True},
        {"rule": "mix_ln", "share": 0.5},
        *(pytest.param({"rule": "mix_ln", "share": share}, marks=pytest.mark.slow) for share in (0.0, 1.0)),
        {"rule": "keel", "alpha": 1.5},
        pytest.param({"rule": "completep", "base_layers": 1}, marks=pytest.mark.slow),
    ],
)
def test_options_against_the_second_transformer(x64, residual):
    net = networks.network(residual=residual)
    params = parameters(net)
    same(logits(net, params), Reference(net.config, params).logits(TOKENS), rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_scanned_and_unrolled_alike(x64, rule):
    params = parameters(network(rule))
    (one, scanned), (all_, unrolled) = (tapped(network(rule, unroll=unroll), params, None, APART) for unroll in (1, L))
    same((one, value(scanned.delta)), (all_, value(unrolled.delta)))
    same(true_gradients(scanned), true_gradients(unrolled), atol=1e-14)


@pytest.mark.parametrize("rule", quick("attnres"))
def test_delta_and_gradients_are_those_of_the_dense_definition(x64, rule):
    net = network(rule)
    params = parameters(net)
    copies = {"hyper_connections": (4,), "mhc": (4,), "siamese": (2,)}.get(rule, ())
    dense = jax.value_and_grad(lambda p, o: networks.dense_loss(net, p, p["head"], o, windows=APART), argnums=(0, 1))
    loss, (grads, slopes) = jax.jit(dense)(params, jnp.zeros((L + 1, *copies, B * T, D)))
    primal, result = tapped(net, params, None, APART)
    same(primal, loss, rtol=1e-13)
    delta = value(result.delta)
    assert np.isfinite(delta).all() and (delta > 0).all()
    same(delta, np.sqrt(np.sum(np.square(slopes), axis=tuple(range(1, slopes.ndim)))), rtol=1e-9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    same(true_gradients(result), grads, rtol=1e-9, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mhc", "value_residual"])
def test_gradients_behind_taps_are_jax_s(x64, rule):
    """Rules whose dense definition takes long to compile."""
    net = network(rule)
    params = parameters(net)
    loss, result = tapped(net, params, None, APART)
    assert np.isfinite(value(result.delta)).all() and (value(result.delta) > 0).all()
    wanted_loss, wanted = untapped(net, params, None, APART)
    same(loss, wanted_loss, rtol=1e-13)
    same(true_gradients(result), wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("rule", quick("highway", "attnres", "siamese"))
def test_delta_at_the_bottom_by_finite_differences_of_the_second_transformer(x64, rule):
    net = network(rule)
    params, rng = parameters(net), np.random.default_rng(1)

    def loss(embed):
        rows = Reference(net.config, params | {"embed": embed}).logits(DISTINCT)
        logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return -logs[np.arange(B * T), APART[:, 1:].reshape(-1)].mean()

    embed, (_, result) = np.asarray(params["embed"]), tapped(net, params, None, APART)
    analytic = np.asarray(true_gradients(result)["embed"])
    # The embeddings are copied into every stream there, and have a second path here.
    if rule not in ("hyper_connections", "mhc", "x0_lambda", "attnres", "siamese", "denseformer"):
        assert value(result.delta)[0] == pytest.approx(np.linalg.norm(analytic), rel=1e-9)
    assert numbers_of(net.config)["skip_scale"] == (0.0 if rule == "none" else 1.0)
    for _ in range(3):
        direction = rng.normal(size=embed.shape) * np.isin(np.arange(V), DISTINCT)[:, None]
        slope = (loss(embed + 1e-6 * direction) - loss(embed - 1e-6 * direction)) / 2e-6
        assert (np.sum(analytic * direction) == pytest.approx(slope, rel=1e-5)) == RULES[rule].derivative


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["x0_lambda", "value_residual"])
def test_delta_far_below_the_other_part_of_the_carry(x64, rule):
    """The parts of a carry may differ within the dtype's range: nothing is lost at 1e-19 of the largest."""
    result = {}
    for dtype in ("float32", "float64"):
        net = networks.network(dtype, residual=rule, norm="none", layers=20, skip_scale=0.0)
        result[dtype] = log10(tapped(net, parameters(net, 0.2))[1].delta)
    in_range = result["float64"] > result["float64"].max() - 35
    assert 3 < in_range.sum() and result["float64"][in_range].min() < result["float64"].max() - 20
    same(result["float32"][in_range], result["float64"][in_range], rtol=0, atol=1e-3)


# --- several streams, and attention over depth ---


def test_sinkhorn_is_doubly_stochastic_and_so_are_products(x64):
    matrices = np.moveaxis(sinkhorn(jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 5))), 50), 2, 0)
    for matrix in (*matrices, np.linalg.multi_dot(list(matrices))):
        assert (matrix > 0).all()
        same((matrix.sum(axis=0), matrix.sum(axis=1)), (np.ones(4), np.ones(4)), rtol=1e-10)
    one = np.asarray(sinkhorn(jnp.asarray([[0.0, np.log(3.0)], [0.0, 0.0]])[..., None], 1))[..., 0]
    # By hand: columns [1, 1] and [3, 1] become [1/2, 1/2] and [3/4, 1/4]; rows 5/4 and 3/4 then become 1.
    same(one, np.array([[2 / 5, 3 / 5], [2 / 3, 1 / 3]]))


def test_a_mix_weighs_by_normed_keys_and_adds_raw_values(x64):
    # Two sources of one token in the direction of the query, lengths 1 and 10: equal keys, so equal weights.
    sources = jnp.asarray([[[1.0, 0.0]], [[10.0, 0.0]], [[7.0, 7.0]]])
    same(mix(sources, jnp.asarray([[3.0, 0.0]]), jnp.int32(2), jnp.asarray(0.0)), np.array([[5.5, 0.0]]))
    # Normed keys are (sqrt 2, 0) and (1, 1): scores q sqrt 2 and q.
    q = np.log(3) / (np.sqrt(2) - 1)
    result = mix(sources[1:], jnp.asarray([[q, 0.0]]), jnp.int32(2), jnp.asarray(0.0))
    same(result, np.array([[(3 * 10 + 7) / 4, 7 / 4]]))


# --- stochastic depth ---


def test_stochastic_depth_drops_whole_blocks_as_often_as_it_says(x64):
    """p_l = 1 - (l/L)(1 - p_L); with one block and p_1 = 0.7 the output is x or x + F(N(x)) / 0.7 (two sublayers)."""
    net, usual = (network(rule, layers=1) for rule in ({"rule": "stochastic_depth", "keep": 0.7}, "pre_ln"))
    params = parameters(net)
    keys = jax.random.split(jax.random.key(0), 400)
    many = np.asarray(jax.jit(jax.vmap(lambda key: net.apply(params, TOKENS, key=key)[0]))(keys))
    assert len(np.unique(many[:, 0, 0].round(9))) == 2
    larger = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf / 0.7 if path[-2].key in ("o", "out") else leaf, params["blocks"]
    )
    assert np.isclose(many, np.asarray(logits(usual, params | {"blocks": larger}))).all(axis=(1, 2)).any()
    empty = jax.tree.map(jnp.zeros_like, params["blocks"])
    survivors = ~np.isclose(many, np.asarray(logits(usual, params | {"blocks": empty}))).all(axis=(1, 2))
    assert abs(survivors.mean() - 0.7) < 5 * np.sqrt(0.7 * 0.3 / len(keys))


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
        result = np.asarray(jax.vmap(partial(after, jnp.int32(layer)))(keys))
        assert set(result.round(9)) == {0.0, round(1 / p, 9)}
        assert abs((result > 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / len(keys))


# --- options ---


def test_every_rule_is_named_and_built_and_an_option_of_another_rule_is_refused(wording):
    for rule in RULES:
        assert rule_of(ModelConfig(residual=rule)).config.residual == ResidualConfig(rule=rule)  # pyright: ignore[reportArgumentType]
    assert ["rule", *options()] == list(ResidualConfig.model_fields)
    words = set()
    for option, owners in options().items():
        config = ModelConfig(
            residual={"rule": "pre_ln", option: {"dynamic": True, "streams": 2, "mixing": "lite"}.get(option, 1)}
        )  # pyright: ignore[reportArgumentType]
        ((key, message),) = problems(config)
        assert key == f"residual.{option}" and ", ".join(owners) in message
        words.add(message.replace(", ".join(owners), "RULES"))
    wording(*words)


# --- training ---


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_it_learns_to_copy(tiny, rule):
    """Knowing the task but not the question costs ln 4 = 1.386 nats a symbol; looking it up costs nothing."""
    keys = {"model.residual": rule, "model.positions": "rope", "model.init_std": 0.3}
    keys |= {"model.init": "orthogonal"} if rule == "value_skipinit" else {}
    keys |= {"data.path": None, "data.kind": "copy", "data.symbols": 4, "data.batch": 16, "watch.every": 0}
    keys |= {"optimizer.lr": 1e-2, "optimizer.min_lr": 1e-3, "optimizer.warmup": 40, "train.steps": 250}
    config = tiny(keys).variants[0].config
    source = open_source(config.data)
    net, hp = Network(config.model, source.spec.vocab_size, config.data.context), hparams_of(config)
    state = jax.jit(initial_state, static_argnums=(0, 1))(net, config, hp)
    trained = jax.jit(run_dispatch, static_argnums=(0, 1, 2))
    _, metrics, _ = trained(net, config, 0, state, hp, None, source.train_batches(16, 0, 0, 250))
    # The median: now and then stochastic_depth drops the very block that looks things up.
    assert np.median(metrics.loss[-40:]) < 0.5 * np.log(4)
