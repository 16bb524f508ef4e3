"""Measurements inside blocks against the whole model, hand-computed cases and the taps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.residual import numbers_of
from networks import FEW_RULES, TARGETS, TOKENS, WINDOWS, B, D, L, T, changed, network, parameters
from train.core.loss import tapped_loss
from train.gradflow import per_block
from train.gradflow.delta import backward
from train.gradflow.norms import log10, value


def mean_loss(logits):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(TARGETS)), TARGETS])


@partial(jax.jit, static_argnums=0)
def split_of(net, params):
    return per_block.split(net.anatomy(params, TOKENS), mean_loss)


ADDED = ("pre_ln", "sandwich", "rezero", "skipinit", "layerscale", "gpt2_scaled", "stochastic_depth")  # s x + F


@partial(jax.jit, static_argnums=0)
def both_ways(net, params, numbers):
    """Returns (logits by the anatomy, logits by apply, the split, delta by the taps)."""
    anatomy = net.anatomy(params, TOKENS, numbers=numbers)
    last = jax.tree.map(lambda leaf: leaf[-1], per_block.carries(anatomy))
    _, result, _ = backward(tapped_loss(net, WINDOWS, numbers, None), params, net.config.layers)
    logits = net.apply(params, TOKENS, numbers=numbers)[0]
    return (
        anatomy.logits(last),
        logits,
        per_block.split(anatomy, lambda carry: mean_loss(anatomy.logits(carry))),
        result.delta,
    )


@pytest.mark.parametrize("rule", FEW_RULES)
def test_the_anatomy_is_the_model_and_its_delta_the_taps(rule, x64):
    net = network(residual=rule)
    numbers = numbers_of(net.config)
    numbers["skip_scale"] = numbers["skip_scale"] * 0.7
    mine, theirs, split, delta = both_ways(net, parameters(net), numbers)
    np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    skip, branch, whole = value(split.skip), value(split.branch), value(split.delta)
    np.testing.assert_allclose(whole, value(delta)[:-1], rtol=1e-9)
    cosine = np.nan_to_num(np.asarray(split.cosine))
    np.testing.assert_allclose(whole**2, skip**2 + 2 * cosine * skip * branch + branch**2, rtol=1e-9)
    if rule in (*ADDED, "value_residual"):
        np.testing.assert_allclose(skip, 0.7**2 * value(delta)[1:], rtol=1e-9)  # s once a sublayer
    if rule == "none":
        assert (skip == 0).all() and np.isnan(split.cosine).all()
    if rule == "value_skipinit":
        assert (skip == 0).all()


def test_the_split_has_no_range(x64):
    """A stack without skip and norm that shrinks delta by a million a block: float32 against float64."""
    logs = []
    for dtype in ("float32", "float64"):
        net = network(dtype, layers=60, residual="none", norm="none")
        split = split_of(net, parameters(net, 0.01))
        logs.append((log10(split.delta), log10(split.branch)))
    assert logs[1][0][0] < -150
    np.testing.assert_allclose(logs[0][0], logs[1][0], atol=2e-3)
    np.testing.assert_array_equal(*[np.isfinite(log).all() for log, _ in logs])
    np.testing.assert_allclose(logs[0][1], logs[0][0], atol=1e-6)  # no skip: all of it comes through the branches


attention = jax.jit(per_block.attention)


def scores_of(weights):
    """Returns scores whose softmax has these rows."""
    weights = np.asarray(weights, np.float32)
    return np.where(weights > 0, np.log(np.maximum(weights, 1e-30)) + 3.0, np.finfo(np.float32).min)[None, None]


@pytest.mark.parametrize(
    ("weights", "entropy"),
    [
        ([[0.25] * 4] * 4, 1.0),
        ([[1, 0, 0, 0], [0.5, 0.5, 0, 0]], 1.0),  # the first query sees one key: it has no choice
        ([[0.9, 0.1, 0, 0]], -(0.9 * np.log(0.9) + 0.1 * np.log(0.1)) / np.log(2)),
        ([[1, 0, 0, 0]], np.nan),
    ],
)
def test_entropy_is_of_the_visible_keys(weights, entropy):
    seen = attention(scores_of(weights))
    np.testing.assert_allclose(seen.entropy, [entropy], rtol=1e-6)
    np.testing.assert_allclose(seen.logit_max, [3 + np.log(np.max(weights))], rtol=1e-6)
    one_key = np.zeros((1, 1, 1, 4), np.float32)
    one_key[..., 2] = 1000
    assert float(attention(one_key).entropy[0]) == 0.0


def test_scores_that_are_no_numbers_are_not_taken_for_masked():
    seen = attention(np.full((1, 1, 2, 2), np.nan, np.float32))
    assert np.isnan(seen.entropy).all() and np.isnan(seen.logit_max).all()
    scores = np.random.default_rng(0).normal(size=(12, 4, 64, 64)).astype(np.float32)
    scores[5, 2, 40, 17] = np.nan
    assert np.isnan(attention(scores).logit_max).tolist() == [False, False, True, False]


@pytest.mark.parametrize("model", [{}, {"kv_heads": 1, "positions": "alibi"}, {"attention_cap": 0.5, "window": 2}])
def test_attention_is_watched_in_every_layer_and_head(model, x64):
    """With Q = 0 attention is uniform and entropy 1, except under alibi; a cap bounds the scores."""
    net = network(**model)
    params = parameters(net)

    @jax.jit
    def watched(params):
        return per_block.observed(net.anatomy(params, TOKENS), {"attention": per_block.attention})["attention"]

    found = watched(params)
    assert found.entropy.shape == found.logit_max.shape == (L, 2)
    assert ((found.entropy > 0) & (found.entropy < 1)).all()
    assert len(np.unique(np.asarray(found.entropy))) == L * 2
    if "attention_cap" in model:
        assert (np.abs(found.logit_max) <= 0.5).all()
    found = watched(changed(params, "blocks/attn/q", lambda q: jax.tree.map(jnp.zeros_like, q)))
    uniform = np.allclose(found.entropy, 1, atol=1e-12)
    assert uniform == ("positions" not in model)
    if uniform:
        assert (found.logit_max == 0).all()


def test_dead_units_are_those_that_no_token_wakes(x64):
    hidden = np.array([[0, 0.0, 1, 0], [0, 2.0, 0, -0.0]], np.float32)
    assert float(per_block.dead_units(hidden)) == 0.5
    net = network(activation="relu", bias=True)
    params = parameters(net)
    seen = jax.jit(lambda p: per_block.observed(net.anatomy(p, TOKENS), {"mlp": per_block.dead_units})["mlp"])

    def killing(bias):
        return jnp.full_like(bias, 100.0).at[1, : bias.shape[1] // 4].set(-1e6)

    killed = changed(params, "blocks/mlp/in_/bias", killing)
    np.testing.assert_array_equal(seen(killed), [0, 0.25, 0])


def test_observers_change_nothing(x64):
    net, heard = network(), []

    @jax.jit
    def both(params):
        anatomy = net.anatomy(params, TOKENS)
        first = jax.tree.map(lambda leaf: leaf[0], anatomy.blocks)
        observed = anatomy.block(first, jnp.int32(0), anatomy.carry, lambda name, x: heard.append((name, x.shape)))
        return observed, anatomy.block(first, jnp.int32(0), anatomy.carry)

    np.testing.assert_array_equal(*both(parameters(net)))
    assert heard == [("attention", (B, 2, T, T)), ("mlp", (B * T, 32))]


def test_a_branch_that_rounding_swallows_is_not_told():
    """float32 cannot resolve a branch of 1e-7 of delta; layerscale starts at 1e-6 beyond 24 blocks."""
    found = []
    for scale in (1e-7, 1e-2):
        net = network("float32", residual="layerscale")
        own = {name: jnp.full((L, D), scale, jnp.float32) for name in ("lambda_1", "lambda_2")}
        split = split_of(net, changed(parameters(net), "blocks/residual", lambda _, own=own: own))
        found.append([np.isnan(x) for x in (log10(split.branch), split.cosine, log10(split.delta))])
    assert found[0][0].all() and found[0][1].all() and not found[0][2].any()
    assert not any(part.any() for part in found[1])
