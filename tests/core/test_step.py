"""The train step: the schedule by hand, and invariances of a step's result and of what is logged of it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_optimizers import assert_equal, expected

from model.network import Network
from networks import parameters
from train.core.batch import micro
from train.core.loss import tapped_loss
from train.core.state import State, hparams_of, state_at
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
    after, metrics, stats = run_step(network, config, state, hp, windows, watched)
    gradient = jax.tree.map(np.subtract, jax.device_get(state.params), jax.device_get(after.params))
    return gradient, float(metrics.loss), jax.device_get(stats)


@pytest.mark.slow
def test_watching_changes_nothing(x64, make):
    plain, plain_loss, none = _one_sgd_step(make, 1, False)
    watched, loss, stats = _one_sgd_step(make, 1, True)
    assert none is None and stats is not None
    assert loss == pytest.approx(plain_loss, rel=1e-12)
    assert_close(watched, plain, 1e-12)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(plain))


@pytest.mark.slow
def test_watching_changes_nothing_in_float32_with_dropout_and_counterfactual(make):
    network, config, hp, state, windows = make(SGD | {"model.dropout": 0.2, "watch.counterfactual": True})
    plain, metrics, _ = run_step(network, config, state, hp, windows, False)
    watched, watched_metrics, stats = run_step(network, config, state, hp, windows, True)
    assert stats is not None and stats.without is not None
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
    whole, loss, stats = _one_sgd_step(make, 1, True)
    gradient, parted_loss, parted = _one_sgd_step(make, parts, watched)
    assert parted_loss == pytest.approx(loss, rel=1e-12)
    assert_close(gradient, whole, 1e-12)
    if not watched:
        return
    np.testing.assert_allclose(value(parted.flow.delta), value(stats.flow.delta), rtol=1e-12)
    for actual, wanted in ((parted.flow.grad, stats.flow.grad), (parted.update, stats.update)):
        assert set(actual) == set(wanted)
        for tag, norm in wanted.items():
            np.testing.assert_allclose(value(actual[tag]), value(norm), rtol=1e-12, err_msg=tag)
    np.testing.assert_allclose(value(parted.grad_global), value(stats.grad_global), rtol=1e-12)
    np.testing.assert_allclose(parted.flow.stream, stats.flow.stream, rtol=1e-12)


# What is logged

ADAM = {"optimizer.clip": 1.0, "watch.counterfactual": False, "model.norm": "none"}  # one program for all of them


def test_the_logged_update_is_what_the_optimizer_added(x64, make):
    network, config, hp, state, windows = make(ADAM, "float64")
    state, _, _ = run_step(network, config, state, hp, windows, True)
    after, _, stats = run_step(network, config, state, hp, windows, True)
    before, changed = named(state.params["blocks"]), named(after.params["blocks"])
    (tags,) = watched_scalars(jax.tree.map(lambda leaf: leaf[None], jax.device_get(stats)), "float32")
    for tag, old in before.items():
        old, new = np.asarray(old), np.asarray(changed[tag])
        axes = tuple(range(1, old.ndim))
        change, size = np.sqrt(np.sum((new - old) ** 2, axis=axes)), np.sqrt(np.sum(old**2, axis=axes))
        np.testing.assert_allclose(value(stats.update[tag]), change, rtol=1e-9, err_msg=tag)
        np.testing.assert_allclose(value(stats.weight[tag]), size, rtol=1e-12, err_msg=tag)
        for layer in range(2):
            ratio = np.log10(change[layer] / size[layer])
            assert tags[f"update/ratio_log10/layer_{layer:03d}/{tag}"] == pytest.approx(ratio, rel=1e-8)
            assert tags[f"weight/norm/layer_{layer:03d}/{tag}"] == pytest.approx(size[layer], rel=1e-12)
    whole = np.sqrt(sum(value(norm) ** 2 for tag, norm in stats.update.items() if tag != "layer"))
    np.testing.assert_allclose(value(stats.update["layer"]), whole, rtol=1e-12)


def test_the_steps_of_a_dispatch_are_logged_as_each_alone(x64, make):
    network, config, hp, state, windows = make(ADAM, "float64")
    stats = []
    for _ in range(3):
        state, _, measured = run_step(network, config, state, hp, windows, True)
        stats.append(jax.device_get(measured))
    together = watched_scalars(jax.tree.map(lambda *leaves: np.stack(leaves), *stats), "float32")
    alone = [row for one in stats for row in watched_scalars(jax.tree.map(lambda leaf: leaf[None], one), "float32")]
    assert together == alone
    assert together[0]["delta/norm_log10/layer_000"] != together[1]["delta/norm_log10/layer_000"]
    for row, one in zip(together, stats, strict=True):
        assert row["delta/norm_log10/layer_001"] == log10(one.flow.delta)[1]
        assert row["grad/norm_log10/layer_000/attn_q"] == log10(one.flow.grad["attn_q"])[0]
        assert row["grad/clip_factor"] == float(one.clip_factor)


def test_blocks_whose_q_and_k_are_rounding_are_counted(x64, make):
    """Blocks are counted by the act rank of their input; the last block's output is no input."""
    network, config, hp, state, windows = make(ADAM, "float64")
    stats = jax.device_get(run_step(network, config, state, hp, windows, True)[2])
    both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), stats)
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
    free, _, stats = run_step(network, config, state, hp, windows, True)
    assert float(stats.clip_factor) == 1.0
    assert_close(free.params, bound.params, 1e-12)


def clipped_at(hp, clip: float):
    return hp._replace(optimizer=hp.optimizer | {"clip": np.float64(clip)})
