"""The start of each residual rule: its own parameters, and the function and gradients that it begins with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import ModelConfig
from model.network import Network
from model.residual import RULES, numbers_of, structure_of
from networks import APART, TOKENS, B, D, L, T, V, changed, logits, parameters, same, tapped, untapped
from networks import rule_network as network
from train.gradflow.norms import value


def started(net: Network) -> dict[str, Any]:
    """Returns generic parameters, but for the rule's own, which have their initial values."""
    own = jax.jit(lambda: net.init(0)["blocks"].get("residual", {}))()
    return changed(parameters(net), "blocks", lambda blocks: blocks | ({"residual": own} if own else {}))


@pytest.mark.parametrize(
    ("residual", "start"),
    [
        ({"rule": "rezero"}, {"alpha_1": 0, "alpha_2": 0}),
        ({"rule": "rezero", "alpha": 0.25}, {"alpha_1": 0.25, "alpha_2": 0.25}),
        ({"rule": "skipinit", "alpha": 0.25}, {"alpha_1": 0.25, "alpha_2": 0.25}),
        ({"rule": "value_residual"}, {"lambda": 0.5}),
        ({"rule": "x0_lambda"}, {"lambda_0": 1, "lambda_1": 0}),
        ({"rule": "value_skipinit"}, {"alpha": 1, "beta": 0}),
        ({"rule": "attnres"}, {"query_1": 0, "query_2": 0}),
    ],
)
def test_a_rule_s_own_parameters_start_as_stated(x64, residual, start):
    own = started(network(residual))["blocks"]["residual"]
    assert set(own) == set(start)
    for name, number in start.items():
        np.testing.assert_array_equal(own[name], np.full_like(own[name], number))


@pytest.mark.parametrize("rule", ["rezero", pytest.param("skipinit", marks=pytest.mark.slow)])
def test_rezero_and_skipinit_start_as_the_identity_and_pass_delta_unchanged(x64, rule):
    net = network(rule)
    _, result = tapped(net, started(net), None, APART)
    np.testing.assert_array_equal(value(result.delta), value(result.delta)[-1])
    for path, leaf in jax.tree_util.tree_leaves_with_path(result.params["blocks"]):
        assert np.any(np.asarray(leaf) != 0) == (path[0].key == "residual"), path


def test_layerscale_starts_smaller_the_deeper_the_model():
    for layers, scale in ((18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)):
        net = network("layerscale", "float32", layers=layers)
        own = started(net)["blocks"]["residual"]
        np.testing.assert_array_equal(own["lambda_2"], np.full((layers, D), np.float32(scale)))


def test_matrices_that_start_smaller(x64):
    """L = 8: deepnorm's alpha = 16^(1/4) = 2 and beta = 64^(-1/4), on V, O and the MLP; gpt2_scaled's 1 / sqrt(16)."""
    beta = 1 / (2 * np.sqrt(2))
    factors = {"deepnorm": dict.fromkeys(("attn_v", "attn_o", "mlp_in", "mlp_gate", "mlp_out"), beta)}
    factors["gpt2_scaled"] = {"attn_o": 1 / 4, "mlp_out": 1 / 4}
    for rule in RULES:
        model = ModelConfig(layers=8, residual=rule)  # pyright: ignore[reportArgumentType]
        gains = {key.removeprefix("init_gain."): gain for key, gain in numbers_of(model).items() if "init_gain" in key}
        same(gains, dict.fromkeys(gains, 1.0) | factors.get(rule, {}))
    assert RULES["deepnorm"].default("alpha", ModelConfig(layers=8)) == 2
    assert structure_of(ModelConfig(residual="gpt2_scaled")) == structure_of(ModelConfig())  # pyright: ignore[reportArgumentType]


DYNAMIC = {"rule": "hyper_connections", "dynamic": True}


@pytest.mark.parametrize(
    ("residual", "own"),
    [
        pytest.param("layerscale", {"lambda_1": 1, "lambda_2": 1}, marks=pytest.mark.slow),
        ("value_residual", {"lambda": 0}),
        pytest.param("x0_lambda", {}, marks=pytest.mark.slow),
        ("mhc", {}),
        (DYNAMIC, {}),
        *(pytest.param(DYNAMIC | more, {}, marks=pytest.mark.slow) for more in ({"dynamic": False}, {"streams": 2})),
        ({"rule": "attnres", "block": 2}, {}),
        *(pytest.param({"rule": "attnres", "block": block}, {}, marks=pytest.mark.slow) for block in (None, 1, 3)),
        pytest.param("stochastic_depth", {}, marks=pytest.mark.slow),
        ({"rule": "stochastic_depth", "keep": 1.0}, {}),
    ],
)
def test_rules_that_start_as_pre_ln(x64, residual, own):
    """Each is pre_ln at these values of its own parameters, or its initial ones; at keep = 1 in training too."""
    net, usual = network(residual), network("pre_ln")
    params, key = started(net), jax.random.key(0) if isinstance(residual, dict) and "keep" in residual else None
    for name, number in own.items():
        params = changed(params, f"blocks/residual/{name}", lambda x, number=number: jnp.full_like(x, number))
    same(logits(net, params, None, key), logits(usual, parameters(usual)), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("block", [None, 2])
def test_the_gradients_of_zero_query_attnres_are_pre_ln_s(x64, block):
    net, usual = network({"rule": "attnres", "block": block}), network("pre_ln")
    actual, wanted = untapped(net, started(net), None, APART)[1], untapped(usual, parameters(usual), None, APART)[1]
    for part in ("attn", "mlp"):
        same(actual["blocks"][part], wanted["blocks"][part], rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_streams_start_as_copies_that_share_the_gradient(x64):
    """|dL/dH| is that of the one stream over sqrt(n); hyper_connections' sublayer k reads stream k mod n."""
    net, usual = network({"rule": "mhc", "streams": 2}), network("pre_ln")
    (_, two), (_, one) = tapped(net, started(net), None, APART), tapped(usual, parameters(usual), None, APART)
    assert value(two.delta)[-1] == pytest.approx(value(one.delta)[-1] / np.sqrt(2), rel=1e-9)
    own = started(network(DYNAMIC))["blocks"]["residual"]
    for index in (0, 1):
        reads = np.argmax(own[f"read_{index + 1}"], axis=1)
        np.testing.assert_array_equal(reads, [(2 * layer + index) % 4 for layer in range(L)])


def test_the_first_block_s_lambda_changes_nothing(x64):
    """Block 0 is where value_residual's V_1 comes from."""
    net = network("value_residual")
    params = parameters(net)
    moved = changed(params, "blocks/residual/lambda", lambda x: x.at[0].set(3.0))
    same(logits(net, moved), logits(net, params), atol=1e-13)


def test_value_skipinit_starts_with_attention_as_the_identity(x64):
    """At alpha = 1, beta = 0 tokens do not look at each other: equal tokens of a sequence have equal logits."""
    net = network("value_skipinit")
    repeated = np.asarray(logits(net, started(net))).reshape(B, T, V)
    for sequence, tokens in zip(repeated, TOKENS, strict=True):
        for token in set(tokens.tolist()):
            rows = sequence[tokens == token]
            same(rows, np.broadcast_to(rows[:1], rows.shape))


def test_highway_starts_mostly_open_and_a_shut_gate_passes_delta(x64):
    net = network("highway")
    params = started(net)
    for n in (1, 2):
        np.testing.assert_array_equal(params["blocks"]["residual"][f"gate_{n}"]["bias"], np.full((L, D), -1.0))
        shut = {"kernel": jnp.zeros((L, D, D)), "bias": jnp.full((L, D), -1e3)}
        params = changed(params, f"blocks/residual/gate_{n}", lambda _, shut=shut: shut)
    delta = value(tapped(net, params, None, APART)[1].delta)
    same(delta, np.full(L + 1, delta[-1]))
