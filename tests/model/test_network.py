"""The network's config, and text generation from its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from model.config import ModelConfig, problems
from model.network import draw, filtered, next_token_logits
from networks import SIGMAS, TOKENS, T, parameters
from networks import float32_network as network
from train.chain.reference import Reference, softmax


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
    actual = problems(ModelConfig(**yaml.safe_load(model)))
    assert [f"{key}: {message}" for key, message in actual] == wanted


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
