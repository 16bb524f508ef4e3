"""Checks for values that are not finite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.core.finite import all_finite, finite_by_norm, sound
from train.core.state import State
from train.gradflow.norms import frobenius


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3,), pytest.param((65, 128), marks=pytest.mark.slow), (4, 128, 128)], ids=str)
def test_one_entry_anywhere_is_seen(both_paths, shape, dtype):
    """A maximum on a CPU may lose nan (jax 0.10 to 0.12)."""
    rng = np.random.default_rng(0)
    huge = jnp.asarray(rng.normal(size=shape) * 1e37, dtype)
    ask = jax.jit(lambda tree: all_finite([jnp.ones(2), tree]))
    assert ask(huge)
    for bad in (np.nan, np.inf, -np.inf):
        for at in (0, huge.size // 2, huge.size - 1, *rng.integers(0, huge.size, 5)):
            assert not ask(huge.reshape(-1).at[at].set(bad).reshape(shape)), (bad, at)


def test_a_norm_tells_whether_its_entries_are_finite(both_paths):
    """A norm near or beyond the end of the entries' range does not decide: the entries are asked themselves."""

    @partial(jax.jit, static_argnums=1)
    def ask(x, exponent=0):
        return finite_by_norm(frobenius(x).times(exponent), lambda: {"w": x * jnp.float32(2.0**exponent)})

    assert all(ask(jnp.full((30, 30), size)) for size in (0.0, 1e-40, 1.0, 1e36, 1e37, 3e38))
    for size in (1.0, 3e38):
        for bad in (np.nan, np.inf, -np.inf):
            assert not ask(jnp.where(jnp.arange(900) == 450, bad, size))
    # 2^127.9 and 2^128.1, out of entries that are in range.
    assert ask(jnp.array([2**27.9]), 100) and ask(jnp.full(100, 2**27.9), 100)
    assert not ask(jnp.array([2**28.1]), 100) and not ask(jnp.array([0, 2**28.1]), 100)


def test_an_optimizer_whose_averages_overflow_leaves_no_good_state(tiny):
    """Adam's second moment of a gradient of 1e20 is infinite: what is trained on with it stands still for ever."""
    state = State({"w": np.ones(3, np.float32)}, {"nu": np.array([1, np.inf], np.float32)}, np.int32(0))
    assert not sound(state)
    assert sound(state._replace(optimizer={"best": np.float32(np.inf), "count": np.int32(3)}))
    assert not sound(state._replace(optimizer=(), ema={"w": np.array([np.nan], np.float32)}))
    assert all_finite({"ids": np.arange(3)}) and all_finite(()) and not all_finite([jnp.ones(2), jnp.array([jnp.inf])])
