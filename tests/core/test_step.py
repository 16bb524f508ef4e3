"""The train step: the schedule by hand, and invariances of a step's result and of what is logged of it."""

import functools
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from test_optimizers import assert_equal, expected

from model.network import Network
from networks import parameters
from train.config.schema import OptimizerConfig
from train.core.batch import micro
from train.core.loss import tapped_loss
from train.core.schedule import learning_rate
from train.core.state import State, hparams_of, program_structure, stacked_hparams, state_at
from train.core.step import dropout_key, train_step
from train.core.tags import watched_scalars
from train.gradflow.norms import log10, named, value

VOCAB = 11
run_step = jax.jit(train_step, static_argnums=(0, 1, 5))  # shared, so that equal configs compile once


@pytest.fixture(scope="session")
def make(tiny):
    """Returns (network, config, hparams, state, windows) of a tiny config with these keys."""

    def build(overrides=None, dtype="float32"):
        config = tiny({"train.dtype": dtype, **(overrides or {})}).variants[0].config
        network = Network(config.model, VOCAB, config.data.context, dtype)
        hp = hparams_of(config, dtype)
        windows = np.random.default_rng(1).integers(0, VOCAB, (config.data.batch, config.data.context + 1), np.int32)
        return network, config, hp, state_at(config, hp, parameters(network, 0.3)), windows

    return build


def assert_close(a, b, tolerance):
    """Asserts that leaves agree within `tolerance`, relative to the largest entry of each."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max()), a, b)


# The schedule


# lr 0.8, min_lr 0.2, 3 steps of warm-up, which is 0.8 * (step + 1) / 4, and 11 steps in all: the rate of each step.
BY_HAND = {
    "cosine": {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 5: 0.2 + 0.6 * (1 + math.sqrt(0.5)) / 2, 7: 0.5, 11: 0.2, 500: 0.2},
    "linear": {2: 0.6, 3: 0.8, 5: 0.65, 10: 0.275, 11: 0.2, 500: 0.2},
    "constant": {0: 0.2, 3: 0.8, 500: 0.8},
    "wsd": {2: 0.6, 3: 0.8, 5: 0.8, 8: 0.2 + 0.6 * 3 / 5.5, 11: 0.2, 500: 0.2},  # falls over the last 5.5 steps
    "rsqrt": {2: 0.6, 3: 0.8, 15: 0.5, 399: 0.26},  # sqrt(4 / 16)
    "step": {2: 0.6, 3: 0.8, 4: 0.8, 5: 0.5, 7: 0.35, 103: 0.2 + 0.6 * 2.0**-50},  # every 2 steps half of it
    # Starts at a quarter of 0.2 + 0.6 / 10; up for 2 of 8 steps, down for 2, and 4 to the end.
    "one_cycle": {0: 0.065, 3: 0.26, 4: 0.53, 5: 0.8, 7: 0.26, 9: 0.23, 11: 0.2, 500: 0.2},
}


@pytest.mark.parametrize("schedule", BY_HAND)
def test_learning_rate_by_hand(x64, schedule):
    config = OptimizerConfig(schedule=schedule, warmup=3, decay_fraction=0.5, step_every=2, step_factor=0.5)
    at = jax.jit(lambda step: learning_rate(config, jnp.float64(0.8), jnp.float64(0.2), step, 11))
    for step, rate in BY_HAND[schedule].items():
        assert float(at(np.int32(step))) == pytest.approx(rate, rel=1e-14), step
    assert set(BY_HAND) == set(get_args(OptimizerConfig.model_fields["schedule"].annotation))


def test_no_warmup_starts_at_the_peak_and_a_run_shorter_than_its_warmup_never_reaches_it(x64):
    def rates(warmup, steps):
        config = OptimizerConfig(schedule="linear", warmup=warmup)
        return [float(learning_rate(config, jnp.float64(1.0), jnp.float64(0.0), jnp.int32(t), steps)) for t in range(4)]

    assert rates(0, 4) == pytest.approx([1.0, 0.75, 0.5, 0.25], rel=1e-14)
    assert rates(9, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=1e-14)


@pytest.mark.parametrize("schedule", BY_HAND)
@pytest.mark.parametrize("warmup", [0, 7])
def test_a_schedule_stays_between_its_rates_and_reaches_the_peak_once_it_is_warm(x64, schedule, warmup):
    config = OptimizerConfig(schedule=schedule, warmup=warmup, decay_fraction=0.2, step_every=10)
    at = jax.jit(jax.vmap(lambda t: learning_rate(config, jnp.float64(1.0), jnp.float64(0.01), t, 87)))
    rates = np.asarray(at(jnp.arange(warmup, 120)))
    assert rates.min() >= 0.01 and rates.max() == pytest.approx(1.0, rel=0.05 if schedule == "one_cycle" else 1e-14)
    if schedule != "one_cycle":
        assert rates[0] == 1.0 and (np.diff(rates) <= 0).all()
    if schedule not in ("constant", "rsqrt"):
        assert rates[-1] == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("schedule", BY_HAND)
def test_the_rate_of_a_float32_run_is_float32_and_traced(schedule):
    config = OptimizerConfig(warmup=2, schedule=schedule)
    traced = jax.jit(lambda lr, low, step: learning_rate(config, lr, low, step, 10))
    rate = traced(np.float32(1e-3), np.float32(1e-4), np.int32(2))
    start = 1.9e-4 if schedule == "one_cycle" else 1e-3
    assert rate.dtype == np.float32 and float(rate) == pytest.approx(start, rel=1e-6)


# A step


@pytest.mark.slow
def test_three_steps_on_the_model_are_clipped_adam_on_its_gradient(x64, make):
    """jax.grad of the loss, a clip by hand and numpy's Adam give the parameters of train_step."""
    keys = {"model.norm": "layer", "model.bias": True, "optimizer.clip": 0.5, "optimizer.weight_decay": 0.3}
    keys |= {"optimizer.betas": [0.8, 0.95], "optimizer.eps": 1e-3}
    network, config, hp, state, windows = make(keys, "float64")
    gradient = jax.jit(jax.grad(lambda p: tapped_loss(network, windows, hp.model, None)(p, None, None)[0]))
    first, grads = state.params, []
    gains = [keys for keys, _ in jax.tree_util.tree_leaves_with_path(first) if keys[-1].key in ("gain", "bias")]
    assert len(gains) == 2 * 2 + 6 + 2  # two norms a block, six linear maps, the final norm
    for _ in range(3):
        grad = gradient(state.params)
        norm = math.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grad)))
        assert norm > 0.5  # or nothing is tested of the clip
        grads.append(jax.tree.map(lambda g, norm=norm: g * 0.5 / norm, grad))
        state, metrics, _ = run_step(network, config, state, hp, windows, False)
    assert float(metrics.lr) == pytest.approx(1e-3 * 3 / 4, rel=1e-14)
    wanted = expected("adamw", first, grads, False, rates=[1e-3 * n / 4 for n in (1, 2, 3)])
    assert_equal(state.params, wanted, rtol=1e-12, atol=1e-14)
    assert int(state.step) == 3


# What may not change the step's result

# sgd at rate 1, so that the parameters show the gradient itself.
SGD = {"optimizer.name": "sgd", "optimizer.lr": 1.0, "optimizer.warmup": 0, "watch.counterfactual": False}


@functools.cache
def _one_sgd_step(make, parts: int, watched: bool):
    """Returns (gradient, loss, measurements) of a float64 step in `parts` micro-batches."""
    keys = SGD | {"optimizer.accumulate": parts, "optimizer.weight_decay": 0.0, "optimizer.clip": None}
    network, config, hp, state, windows = make(keys, "float64")
    after, metrics, seen = run_step(network, config, state, hp, windows, watched)
    gradient = jax.tree.map(np.subtract, jax.device_get(state.params), jax.device_get(after.params))
    return gradient, float(metrics.loss), jax.device_get(seen)


@pytest.mark.slow
def test_watching_changes_nothing(x64, make):
    plain, plain_loss, none = _one_sgd_step(make, 1, False)
    watched, loss, seen = _one_sgd_step(make, 1, True)
    assert none is None and seen is not None
    assert loss == pytest.approx(plain_loss, rel=1e-12)
    assert_close(watched, plain, 1e-12)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(plain))


@pytest.mark.slow
def test_watching_changes_nothing_in_float32_with_dropout_and_counterfactual(make):
    network, config, hp, state, windows = make(SGD | {"model.dropout": 0.2, "watch.counterfactual": True})
    plain, metrics, _ = run_step(network, config, state, hp, windows, False)
    watched, watched_metrics, seen = run_step(network, config, state, hp, windows, True)
    assert seen is not None and seen.without is not None
    assert float(watched_metrics.loss) == pytest.approx(float(metrics.loss), rel=1e-6)
    assert_close(watched.params, plain.params, 1e-6)


def test_dropout_is_a_function_of_seed_and_step(make):
    network, config, hp, state, windows = make(SGD | {"model.dropout": 0.2})

    def loss(seed, step):
        at = State(state.params, state.optimizer, jnp.int32(step))
        return float(run_step(network, config, at, hp._replace(seed=np.uint32(seed)), windows, False)[1].loss)

    every = [(seed, step) for seed in (0, 1) for step in (0, 1, 2)]
    losses = [loss(*pair) for pair in every]
    assert losses == [loss(*pair) for pair in every]
    assert len(set(losses)) == 6


def test_twins_drop_the_same_units(tiny):
    """Dropout keys agree whatever else differs; without dropout there is no key."""

    def key(step, **keys):
        config = tiny({"model.dropout": 0.1} | keys).variants[0].config
        return jax.random.key_data(dropout_key(config, hparams_of(config), jnp.int32(step))).tolist()

    base = key(3)
    assert base == key(3, **{"model.residual": "none"}) == key(3, **{"model.norm": "none", "model.skip_scale": 0.5})
    assert base == key(3, **{"optimizer.lr": 0.5, "model.layers": 3, "data.seed": 5})
    assert base != key(4) and base != key(3, seed=1)
    config = tiny().variants[0].config
    assert dropout_key(config, hparams_of(config), jnp.int32(3)) is None


def test_micro_batches_are_every_nth_row_and_drop_different_units():
    windows = np.arange(36).reshape(4, 9)
    parts, keys = micro(2, windows, jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(parts), [windows[::2], windows[1::2]])
    assert keys is not None
    one, other = np.asarray(jax.random.key_data(keys))
    assert (one != other).any()
    assert micro(2, windows, None)[1] is None


@pytest.mark.parametrize(("parts", "watched"), [(2, True), pytest.param(4, False, marks=pytest.mark.slow)])
def test_micro_batches_are_the_large_batch(x64, make, parts, watched):
    whole, loss, seen = _one_sgd_step(make, 1, True)
    gradient, parted_loss, parted = _one_sgd_step(make, parts, watched)
    assert parted_loss == pytest.approx(loss, rel=1e-12)
    assert_close(gradient, whole, 1e-12)
    if not watched:
        return
    np.testing.assert_allclose(value(parted.flow.delta), value(seen.flow.delta), rtol=1e-12)
    for found, wanted in ((parted.flow.grad, seen.flow.grad), (parted.update, seen.update)):
        assert set(found) == set(wanted)
        for tag, norm in wanted.items():
            np.testing.assert_allclose(value(found[tag]), value(norm), rtol=1e-12, err_msg=tag)
    np.testing.assert_allclose(value(parted.grad_global), value(seen.grad_global), rtol=1e-12)
    np.testing.assert_allclose(parted.flow.stream, seen.flow.stream, rtol=1e-12)


# What is logged

ADAM = {"optimizer.clip": 1.0, "watch.counterfactual": False, "model.norm": "none"}  # one program for all of them


def test_the_logged_update_is_what_the_optimizer_added(x64, make):
    network, config, hp, state, windows = make(ADAM, "float64")
    state, _, _ = run_step(network, config, state, hp, windows, True)
    after, _, seen = run_step(network, config, state, hp, windows, True)
    before, changed = named(state.params["blocks"]), named(after.params["blocks"])
    (tags,) = watched_scalars(jax.tree.map(lambda leaf: leaf[None], jax.device_get(seen)), "float32")
    for tag, old in before.items():
        old, new = np.asarray(old), np.asarray(changed[tag])
        axes = tuple(range(1, old.ndim))
        change, size = np.sqrt(np.sum((new - old) ** 2, axis=axes)), np.sqrt(np.sum(old**2, axis=axes))
        np.testing.assert_allclose(value(seen.update[tag]), change, rtol=1e-9, err_msg=tag)
        np.testing.assert_allclose(value(seen.weight[tag]), size, rtol=1e-12, err_msg=tag)
        for layer in range(2):
            ratio = np.log10(change[layer] / size[layer])
            assert tags[f"update/ratio_log10/layer_{layer:03d}/{tag}"] == pytest.approx(ratio, rel=1e-8)
            assert tags[f"weight/norm/layer_{layer:03d}/{tag}"] == pytest.approx(size[layer], rel=1e-12)
    whole = np.sqrt(sum(value(norm) ** 2 for tag, norm in seen.update.items() if tag != "layer"))
    np.testing.assert_allclose(value(seen.update["layer"]), whole, rtol=1e-12)


def test_the_steps_of_a_dispatch_are_logged_as_each_alone(x64, make):
    network, config, hp, state, windows = make(ADAM, "float64")
    seen = []
    for _ in range(3):
        state, _, measured = run_step(network, config, state, hp, windows, True)
        seen.append(jax.device_get(measured))
    together = watched_scalars(jax.tree.map(lambda *leaves: np.stack(leaves), *seen), "float32")
    alone = [row for one in seen for row in watched_scalars(jax.tree.map(lambda leaf: leaf[None], one), "float32")]
    assert together == alone
    assert together[0]["delta/norm_log10/layer_000"] != together[1]["delta/norm_log10/layer_000"]
    for row, one in zip(together, seen, strict=True):
        assert row["delta/norm_log10/layer_001"] == log10(one.flow.delta)[1]
        assert row["grad/norm_log10/layer_000/attn_q"] == log10(one.flow.grad["attn_q"])[0]
        assert row["grad/clip_factor"] == float(one.clip_factor)


def test_blocks_whose_q_and_k_are_rounding_are_counted(x64, make):
    """Blocks are counted by the act rank of their input; the last block's output is no input."""
    network, config, hp, state, windows = make(ADAM, "float64")
    seen = jax.device_get(run_step(network, config, state, hp, windows, True)[2])
    both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), seen)
    rank = np.array([[1e-2, 1e-4, 1e-9], [1e-2, 1e-2, 1e-9]])
    both = both._replace(flow=both.flow._replace(stream=both.flow.stream._replace(rank=rank)))
    for dtype, blocks in (("float64", [0, 0]), ("float32", [1, 0]), ("bfloat16", [2, 2])):
        assert [row["grad/qk_rounded"] for row in watched_scalars(both, dtype)] == blocks


def test_gradients_are_logged_before_clipping(x64, make):
    network, config, hp, state, windows = make(ADAM, "float64")
    after, _, free = run_step(network, config, state, clipped_at(hp, 1e6), windows, True)
    clipped_after, _, clipped = run_step(network, config, state, clipped_at(hp, 1e-6), windows, True)
    np.testing.assert_array_equal(value(clipped.grad_global), value(free.grad_global))
    for tag, norm in free.flow.grad.items():
        np.testing.assert_array_equal(value(clipped.flow.grad[tag]), value(norm), err_msg=tag)
    assert float(free.clip_factor) == 1.0
    assert float(clipped.clip_factor) * value(free.grad_global) == pytest.approx(1e-6, rel=1e-5)
    first = clipped_after.optimizer[0].mu["embed"]  # Adam's first moment after a step from zero: 0.1 * gradient
    np.testing.assert_allclose(first, after.optimizer[0].mu["embed"] * np.float64(clipped.clip_factor), rtol=1e-12)


@pytest.mark.slow
def test_no_clip_is_a_clip_that_never_binds(x64, make):
    network, config, hp, state, windows = make(ADAM, "float64")
    bound, _, _ = run_step(network, config, state, clipped_at(hp, 1e6), windows, True)
    network, config, hp, state, windows = make(ADAM | {"optimizer.clip": None}, "float64")
    assert "clip" not in hp.optimizer
    free, _, seen = run_step(network, config, state, hp, windows, True)
    assert float(seen.clip_factor) == 1.0
    assert_close(free.params, bound.params, 1e-12)


def clipped_at(hp, clip: float):
    return hp._replace(optimizer=hp.optimizer | {"clip": np.float64(clip)})


# Structure and numbers


SHARED = (
    "seed: 7; data.seed: 7; name: other; model.skip_scale: 0.5; model.residual: none; model.residual: gpt2_scaled; "
    "model.init_std: 0.3; model.norm_eps: 0.001; model.init_gain.attn_q: 2.0; optimizer.lr: 0.5; "
    "optimizer.min_lr: 0.00001; optimizer.weight_decay: 0.0; optimizer.betas: [0.5, 0.6]; optimizer.clip: 0.1; "
    "optimizer.eps: 0.000001"
)
OWN = (
    "optimizer.clip: null; optimizer.name: sgd; optimizer.schedule: linear; optimizer.warmup: 5; "
    "optimizer.accumulate: 2; model.residual: rezero; model.residual: post_ln; model.norm: none; model.norm: layer; "
    "model.layers: 3; model.init: normal; model.dropout: 0.1; data.batch: 8; data.context: 7; data.tokenizer: byte; "
    "train.steps: 40; train.dtype: bfloat16; watch.every: 10; watch.counterfactual: false"
)


@pytest.mark.parametrize("keys", f"{SHARED}; {OWN}".split("; "))
def test_what_shares_a_program(tiny, keys):
    base, other = tiny().variants[0].config, tiny(yaml.safe_load(keys)).variants[0].config
    assert (program_structure(base) == program_structure(other)) is (keys in SHARED.split("; "))
    assert base != other


def test_a_number_that_is_traced_is_in_hparams_and_nowhere_else(tiny):
    keys = {"seed": 7, "model.skip_scale": 0.5, "model.init_std": 0.3, "optimizer.lr": 0.25, "optimizer.min_lr": 0.125}
    keys |= {"optimizer.weight_decay": 0.75, "optimizer.betas": [0.5, 0.625], "optimizer.clip": 0.0625}
    config = tiny(keys).variants[0].config
    hp = hparams_of(config)
    assert (int(hp.seed), hp.seed.dtype) == (7, np.uint32)
    assert hp.model["skip_scale"] == 0.5 and hp.model["init_std"] == np.float32(0.3)
    wanted = {"lr": 0.25, "min_lr": 0.125, "weight_decay": 0.75, "betas": (0.5, 0.625), "clip": 0.0625}
    assert hp.optimizer == wanted | {"eps": np.float32(1e-8), "momentum": np.float32(0.9)}
    assert all(number.dtype == np.float32 for number in jax.tree.leaves((hp.model, hp.optimizer)))
    assert hparams_of(config, "float64").optimizer["lr"].dtype == np.float64
    shared = program_structure(config).model_dump_json()
    assert not any(text in shared for text in ("0.5", "0.3", "0.25", "0.125", "0.75", "0.625", "0.0625"))


def test_residual_none_is_skip_scale_zero(tiny):
    none = hparams_of(tiny({"model.residual": "none"}).variants[0].config)
    assert none == hparams_of(tiny({"model.skip_scale": 0.0}).variants[0].config)


def test_stacked_hparams_have_a_variant_axis(tiny):
    hps = [hparams_of(tiny({"optimizer.lr": lr}).variants[0].config) for lr in (0.1, 0.2, 0.3)]
    stacked = stacked_hparams(hps)
    np.testing.assert_array_equal(stacked.optimizer["lr"], np.float32([0.1, 0.2, 0.3]))
    assert stacked.seed.shape == (3,) and stacked.seed.dtype == np.uint32
