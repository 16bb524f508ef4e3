"""Measurements inside blocks against the whole model, hand-computed cases and the taps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.residual import numbers_of
from model.rules import RULES
from networks import TARGETS, TOKENS, WINDOWS, B, D, L, T, changed, network, parameters, quick, tapped
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
    """Returns (logits by the anatomy, logits by apply, the split, delta by the taps, the losses by depth, the loss)."""
    anatomy = net.anatomy(params, TOKENS, numbers=numbers)
    last = jax.tree.map(lambda leaf: leaf[-1], per_block.carries(anatomy))
    loss, result, _ = backward(tapped_loss(net, WINDOWS, numbers, None), params, net.config.layers)
    logits = net.apply(params, TOKENS, numbers=numbers)[0]

    def loss_at(carry):
        return mean_loss(anatomy.logits(carry))

    split, losses = per_block.split(anatomy, loss_at), per_block.depth_loss(anatomy, loss_at)
    return anatomy.logits(last), logits, split, result.delta, losses, loss


@pytest.mark.parametrize("rule", quick("attnres"))
def test_the_anatomy_is_the_model_and_its_delta_the_taps(rule, x64):
    net = network(residual=rule)
    numbers = numbers_of(net.config)
    numbers["skip_scale"] = numbers["skip_scale"] * 0.7
    mine, theirs, split, delta, losses, loss = both_ways(net, parameters(net), numbers)
    np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    np.testing.assert_allclose(losses.lens[-1], loss, rtol=1e-12)
    assert np.isfinite(losses.lens).all() and np.isfinite(losses.ablated).all()
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


@pytest.mark.slow
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


@partial(jax.jit, static_argnums=0)
def depth_loss_of(net, params):
    anatomy = net.anatomy(params, TOKENS)
    return per_block.depth_loss(anatomy, lambda carry: mean_loss(anatomy.logits(carry)))


@pytest.mark.slow
def test_the_loss_by_depth(x64):
    """At a depth it is that of the network cut there, and without a block that of the network where it adds nothing."""
    net = network()
    params = parameters(net)
    losses = depth_loss_of(net, params)
    cut = params | {"blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
    np.testing.assert_allclose(losses.lens[1], tapped(network(layers=1), cut)[0], rtol=1e-12)
    for layer in range(L):
        mute = params
        for path in ("blocks/attn/o/kernel", "blocks/mlp/out/kernel"):
            mute = changed(mute, path, lambda kernel, layer=layer: kernel.at[layer].set(0))
        np.testing.assert_allclose(losses.ablated[layer], tapped(net, mute)[0], rtol=1e-12)
    assert losses.ablated[-1] == losses.lens[-2]
    assert len({*np.asarray(losses.lens).tolist(), *np.asarray(losses.ablated).tolist()}) == 2 * L


@pytest.mark.slow
def test_blocks_that_add_nothing_are_worth_nothing(x64):
    """rezero at its start."""
    net = network(residual="rezero")
    losses = depth_loss_of(net, jax.jit(lambda: net.init(0))())
    assert len({*np.asarray(losses.lens).tolist(), *np.asarray(losses.ablated).tolist()}) == 1


SUBLAYERS = [(part, layer) for part in ("attn", "mlp") for layer in range(L)]


@partial(jax.jit, static_argnums=0)
def ledger_of(net, params):
    """Returns (the ledger, and by sublayer what it reads at the attention, its output, and dL/dF by jax.grad)."""
    anatomy = net.anatomy(params, TOKENS)

    def loss(carry):
        return mean_loss(anatomy.logits(carry))

    def shifted(offsets):
        """Returns the loss with offsets [N, D] to the outputs of the sublayers, and what goes in and comes out."""
        carry, arrays = anatomy.carry, {}
        for layer in range(net.config.layers):
            arrays["stream", layer] = anatomy.stream(carry)

            def observe(name, value, layer=layer):
                part, _, place = name.partition("/")
                if place != "output":
                    return value
                arrays[part, layer] = value
                return value + offsets[part, layer]

            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], anatomy.blocks)
            carry = anatomy.block(block, jnp.int32(layer), carry, observe)
        return loss(carry), arrays

    offsets = {place: jnp.zeros((B * T, D), params["embed"].dtype) for place in SUBLAYERS}
    deltas, arrays = jax.grad(shifted, has_aux=True)(offsets)
    step = 1e-5 * jax.random.normal(jax.random.key(0), (20, B * T, D), params["embed"].dtype)
    first = ("attn", 0)
    slopes = jax.vmap(lambda o: shifted(offsets | {first: o})[0] - shifted(offsets | {first: -o})[0])(step) / 2
    return per_block.ledger(anatomy, loss), deltas, arrays, (slopes, jnp.sum(step * deltas[first][None], (1, 2)))


def size(x):
    return np.linalg.norm(np.asarray(x).ravel())


@pytest.mark.parametrize("rule", quick("pre_ln"))
def test_the_ledger_of_every_rule(rule, x64):
    """dL/dF by jax.grad at the outputs, and that by finite differences; F against the stream where that is what the
    attention reads."""
    net = network(residual=rule)
    result, deltas, arrays, (slopes, products) = ledger_of(net, parameters(net))
    close = np.allclose(slopes, products, rtol=1e-5, atol=1e-5 * np.abs(products).max())
    assert close == RULES[rule].derivative
    for part, layer in SUBLAYERS:
        np.testing.assert_allclose(value(result[part].delta)[layer], size(deltas[part, layer]), rtol=1e-9)
        assert abs(result[part].cosine[layer]) < 1 and value(result[part].ratio)[layer] > 0
        x, y = arrays["stream", layer], arrays[part, layer]
        if part == "attn" and x.shape == y.shape and rule != "x0_lambda":  # which mixes x_0 in first
            np.testing.assert_allclose(value(result[part].ratio)[layer], size(y) / size(x), rtol=1e-12)
            np.testing.assert_allclose(result[part].cosine[layer], np.sum(x * y) / size(x) / size(y), rtol=1e-9)


@partial(jax.jit, static_argnums=0)
def ledger_and_taps(net, params):
    anatomy = net.anatomy(params, TOKENS)
    return per_block.ledger(anatomy, lambda carry: mean_loss(anatomy.logits(carry))), tapped(net, params)[1]


@pytest.mark.slow
def test_the_ledger_of_pre_ln_adds_up_to_the_stream(x64):
    """|x + F|^2 = |x|^2 (1 + 2 cosine ratio + ratio^2) goes from x_l to x_(l+1), and delta passes the additions."""
    net = network()
    ledger, result = ledger_and_taps(net, parameters(net))
    growth = np.ones(L)
    for stats in ledger.values():
        ratio = value(stats.ratio)
        growth *= np.sqrt(1 + 2 * np.asarray(stats.cosine) * ratio + ratio**2)
    rms = np.asarray(result.stream.rms)
    np.testing.assert_allclose(growth, rms[1:] / rms[:-1], rtol=1e-12)
    np.testing.assert_allclose(value(ledger["mlp"].delta), value(result.delta)[1:], rtol=1e-12)


@pytest.mark.slow
def test_the_ledger_has_no_range():
    """A stack without skip and norm that shrinks delta by a million a block, in float32; and one of zeros."""
    net = network("float32", layers=60, residual="none", norm="none")
    params = parameters(net, 0.01)
    ledger, result = ledger_and_taps(net, params)
    assert log10(ledger["attn"].delta)[0] < -150
    np.testing.assert_allclose(log10(ledger["mlp"].delta), log10(result.delta)[1:], atol=1e-6)
    ledger, _ = ledger_and_taps(net, jax.tree.map(jnp.zeros_like, params))
    assert np.isnan(log10(ledger["attn"].ratio)).all() and (log10(ledger["attn"].delta) == -np.inf).all()


attention = jax.jit(per_block.attention)


def scores_of(weights):
    """Returns scores whose softmax has these rows."""
    weights = np.asarray(weights, np.float32)
    return np.where(weights > 0, np.log(np.maximum(weights, 1e-30)) + 3.0, np.finfo(np.float32).min)[None, None]


@pytest.mark.parametrize(
    ("weights", "entropy", "sink"),
    [
        ([[0.25] * 4] * 4, 1.0, 0.25),
        ([[1, 0, 0, 0], [0.5, 0.5, 0, 0]], 1.0, 0.5),  # the first query sees one key: it has no choice
        ([[0.9, 0.1, 0, 0]], -(0.9 * np.log(0.9) + 0.1 * np.log(0.1)) / np.log(2), 0.9),
        ([[0.9, 0.1, 0, 0], [0, 0.5, 0.5, 0]], 1 / 2 - (0.9 * np.log(0.9) + 0.1 * np.log(0.1)) / np.log(4), 0.45),
        ([[1, 0, 0, 0]], np.nan, np.nan),
    ],
)
def test_entropy_is_of_the_visible_keys(weights, entropy, sink):
    stats = attention(scores_of(weights))
    np.testing.assert_allclose(stats.entropy, [entropy], rtol=1e-6)
    np.testing.assert_allclose(stats.sink, [sink], rtol=1e-6)
    np.testing.assert_allclose(stats.logit_max, [3 + np.log(np.max(weights))], rtol=1e-6)
    one_key = np.zeros((1, 1, 1, 4), np.float32)
    one_key[..., 2] = 1000
    assert float(attention(one_key).entropy[0]) == 0.0


def test_scores_that_are_no_numbers_are_not_taken_for_masked():
    stats = attention(np.full((1, 1, 2, 2), np.nan, np.float32))
    assert np.isnan(stats.entropy).all() and np.isnan(stats.logit_max).all()
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
        return per_block.observed(net.anatomy(params, TOKENS), {"attn/scores": per_block.attention})["attn/scores"]

    result = watched(params)
    assert result.entropy.shape == result.logit_max.shape == (L, 2)
    assert ((result.entropy > 0) & (result.entropy < 1)).all()
    assert len(np.unique(np.asarray(result.entropy))) == L * 2
    if "attention_cap" in model:
        assert (np.abs(result.logit_max) <= 0.5).all()
    result = watched(changed(params, "blocks/attn/q", lambda q: jax.tree.map(jnp.zeros_like, q)))
    uniform = np.allclose(result.entropy, 1, atol=1e-12)
    assert uniform == ("positions" not in model)
    if uniform:
        assert (result.logit_max == 0).all()


def test_a_peak_is_over_the_rms():
    x = np.zeros((4, 4), np.float32)
    x[1, 2], x[0, 0] = -1e-30, 1e-40
    assert float(per_block.peak(x)) == pytest.approx(4)
    assert float(per_block.peak(np.full((2, 3), -1e30, np.float32))) == pytest.approx(1)
    assert np.isnan(per_block.peak(jnp.zeros((2, 2))))
    net = network("float32")
    result = jax.jit(lambda p: per_block.observed(net.anatomy(p, TOKENS), {"stream": per_block.peak}))(parameters(net))
    assert result["stream"].shape == (L,) and len({*np.asarray(result["stream"]).tolist()}) == L


def test_dead_units_are_those_that_no_token_wakes(x64):
    hidden = np.array([[0, 0.0, 1, 0], [0, 2.0, 0, -0.0]], np.float32)
    assert float(per_block.dead_units(hidden)) == 0.5
    net = network(activation="relu", bias=True)
    params = parameters(net)
    observe = jax.jit(lambda p: per_block.observed(net.anatomy(p, TOKENS), {"mlp/hidden": per_block.dead_units}))

    def killing(bias):
        return jnp.full_like(bias, 100.0).at[1, : bias.shape[1] // 4].set(-1e6)

    killed = changed(params, "blocks/mlp/in_/bias", killing)
    np.testing.assert_array_equal(observe(killed)["mlp/hidden"], [0, 0.25, 0])


def test_observers_change_nothing(x64):
    net, heard = network(), []

    @jax.jit
    def both(params):
        anatomy = net.anatomy(params, TOKENS)
        first = jax.tree.map(lambda leaf: leaf[0], anatomy.blocks)

        def observe(name, value):
            heard.append((name, value.shape))
            return value

        observed = anatomy.block(first, jnp.int32(0), anatomy.carry, observe)
        return observed, anatomy.block(first, jnp.int32(0), anatomy.carry)

    np.testing.assert_array_equal(*both(parameters(net)))
    stream, shapes = (B * T, D), {"attn/scores": (B, 2, T, T), "mlp/hidden": (B * T, 32)}
    places = "attn/norm attn/input attn/scores attn/heads attn/output mlp/norm mlp/input mlp/hidden mlp/output"
    assert heard == [(place, shapes.get(place, stream)) for place in places.split()]


@pytest.mark.slow
def test_a_branch_that_rounding_swallows_is_not_told():
    """float32 cannot resolve a branch of 1e-7 of delta; layerscale starts at 1e-6 beyond 24 blocks."""
    result = []
    for scale in (1e-7, 1e-2):
        net = network("float32", residual="layerscale")
        own = {name: jnp.full((L, D), scale, jnp.float32) for name in ("lambda_1", "lambda_2")}
        split = split_of(net, changed(parameters(net), "blocks/residual", lambda _, own=own: own))
        result.append([np.isnan(x) for x in (log10(split.branch), split.cosine, log10(split.delta))])
    assert result[0][0].all() and result[0][1].all() and not result[0][2].any()
    assert not any(part.any() for part in result[1])
