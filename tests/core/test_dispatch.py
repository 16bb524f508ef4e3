"""Dispatches of K steps against K single steps, for any watched steps and any source of tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.batches import gather, window_starts
from model.network import Network
from train.core.batch import batch_of
from train.core.dispatch import run_dispatch
from train.core.state import hparams_of, initial_state
from train.core.step import train_step
from train.gradflow.norms import Norm, value

VOCAB, K = 11, 7
run = jax.jit(run_dispatch, static_argnums=(0, 1, 2))


@pytest.fixture(scope="module")
def setting(tiny):
    """Returns (network, config, hparams, initial state, tokens, starts [K, B]); sgd without norms compiles fast."""
    keys = {"optimizer.name": "sgd", "optimizer.lr": 0.1, "model.norm": "none", "watch.counterfactual": False}
    config = tiny(keys | {"model.init_std": 0.5}).variants[0].config
    network = Network(config.model, VOCAB, config.data.context)
    hp = hparams_of(config)
    state = jax.jit(initial_state, static_argnums=(0, 1))(network, config, hp)
    tokens = np.random.default_rng(2).integers(0, VOCAB, 500).astype(np.uint8)
    starts = window_starts(len(tokens), config.data.context, config.data.batch, 0, 0, K)
    return network, config, hp, state, tokens, starts


@pytest.fixture(scope="module")
def single(setting):
    """Returns (final state, losses [K], rates [K], measurements [K]) of K calls of one compiled watched step."""
    network, config, hp, state, tokens, starts = setting
    step = jax.jit(train_step, static_argnums=(0, 1, 5))
    windows = gather(tokens, starts, config.data.context)
    metrics, watched = [], []
    for index in range(K):
        state, one, stats = step(network, config, state, hp, windows[index], True)
        metrics.append(jax.device_get(one))
        watched.append(jax.device_get(stats))
    return jax.device_get(state), [m.loss for m in metrics], [m.lr for m in metrics], watched


def assert_same_run(state, metrics, single, tolerance=1e-6):
    expected, losses, rates, _ = single
    assert int(state.step) == K
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), state.params, expected.params)
    np.testing.assert_allclose(metrics.loss, losses, rtol=tolerance)
    np.testing.assert_allclose(metrics.lr, rates, rtol=tolerance)


def figures(watched) -> dict[str, np.ndarray]:
    """Returns values by path. A norm is one value, since rounding may move its mantissa across a power of two."""
    paths = jax.tree_util.tree_leaves_with_path(watched, is_leaf=lambda x: isinstance(x, Norm))
    return {
        jax.tree_util.keystr(path): value(leaf) if isinstance(leaf, Norm) else np.asarray(leaf) for path, leaf in paths
    }


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (3, (0, 3, 6)),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in ((0, None), (1, range(7)), (7, (0,)), (20, (0,)))),
    ],
    ids=lambda x: str(x),
)
def test_a_dispatch_is_its_steps_one_by_one(setting, single, every, steps):
    network, config, hp, state, tokens, starts = setting
    state, metrics, watched = run(network, config, every, state, hp, jnp.asarray(tokens), starts)
    assert_same_run(state, metrics, single)
    if steps is None:
        assert watched is None
        return
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *[single[3][step] for step in steps])
    wanted, got = figures(expected), figures(watched)
    # Each figure is another at every step, so that one of a neighbour would be found out.
    deltas = wanted[".flow.delta"]
    assert len(np.unique(deltas[:, 0])) == len(steps)
    assert np.ptp(deltas[:, 0]) > 1e-3 * deltas.max() or len(steps) == 1
    assert got.keys() == wanted.keys()
    for path, figure in wanted.items():
        np.testing.assert_allclose(got[path], figure, rtol=2e-5, err_msg=path)


@pytest.mark.slow
def test_windows_from_the_host_are_those_gathered_on_the_device(setting, single):
    network, config, hp, state, tokens, starts = setting
    host = gather(tokens, starts, config.data.context)
    assert host.dtype == np.uint8
    after, metrics, _ = run(network, config, 0, state, hp, None, host)
    assert_same_run(after, metrics, single)
    resident, resident_metrics, _ = run(network, config, 0, state, hp, jnp.asarray(tokens), starts)
    # Two programs: they may round in another way, but see the same tokens.
    np.testing.assert_allclose(metrics.loss, resident_metrics.loss, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), after.params, resident.params)


def test_the_device_gathers_what_the_host_does(setting):
    _, config, _, _, tokens, starts = setting
    last = np.int32(len(tokens) - config.data.context - 1)
    batch = np.concatenate([starts[0], [0, last]]).astype(np.int32)
    gathered, host = (
        batch_of(batch, jnp.asarray(tokens), config.data.context),
        gather(tokens, batch, config.data.context),
    )
    np.testing.assert_array_equal(gathered.inputs, host[:, :-1])
    np.testing.assert_array_equal(gathered.targets, host[:, 1:])
