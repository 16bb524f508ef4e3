"""The place where a step that is not finite began."""

import jax
import numpy as np
import pytest

from data.source import DataSpec
from train.core.dispatch import run_dispatch
from train.core.nonfinite_cause import cause_of, examine
from train.core.state import State, hparams_of, initial_state, network_of


@pytest.fixture(scope="module")
def bench(tiny):
    """(network, config, state, hyperparameters, batches [1, B, T+1]); plain numpy, to be spoilt."""
    config = tiny({"optimizer.clip": 1.0, "model.norm": "none", "watch.counterfactual": False}).variants[0].config
    network = network_of(config, DataSpec("lm", 8, 11, 11), "float32")
    hp = hparams_of(config)
    state = jax.device_get(jax.jit(lambda: initial_state(network, config, hp))())
    return network, config, state, hp, np.arange(36, dtype=np.int32).reshape(1, 4, 9) % 11


@pytest.fixture(scope="module")
def steps(bench):
    """(state, watched) -> (state, metrics, measurements) of a step by the dispatch of training; and its cause."""
    network, config, _, hp, batches = bench
    run = jax.jit(lambda state, every: run_dispatch(network, config, every, state, hp, None, batches), static_argnums=1)
    examined = jax.jit(lambda state: examine(network, config, state, hp, batches[0]))
    return (lambda state, watched: run(state, int(watched))), (lambda state: cause_of(examined(state), "float32"))


def spoilt(state: State, **factors: float) -> State:
    """The state with matrices of block 1, by their tags, or the whole embedding multiplied."""
    params = jax.tree.map(np.array, state.params)
    with np.errstate(over="ignore"):
        for tag, factor in factors.items():
            if tag == "embed":
                params["embed"] *= np.float32(factor)
            else:
                part, name = tag.split("_")
                matrices = params["blocks"][part]
                matrices[name if name in matrices else f"{name}_"]["kernel"][1] *= np.float32(factor)
    return state._replace(params=params)


def test_a_good_step_is_finite_and_has_no_cause(bench, steps):
    one, cause = steps
    for watched in (False, True):
        assert one(bench[2], watched)[1].finite.tolist() == [True]
    assert cause(bench[2]).phase == "none"


@pytest.mark.parametrize(
    ("factors", "phase", "block", "what"),
    [
        ({"attn_q": np.nan}, "weights", None, "layer_001/attn_q"),
        ({"embed": np.inf}, "weights", None, "embed"),
        ({"embed": 1e22}, "forward", 0, "attention's scores"),
        ({"attn_q": 1e20, "attn_k": 1e22}, "forward", 1, "attention's scores"),
        ({"attn_o": 1e20, "mlp_in": 1e22}, "forward", 1, "the MLP's hidden units"),
        ({"mlp_in": 1e22, "mlp_out": 1e22}, "forward", 1, "its output"),
        ({"attn_q": 1e-30, "attn_k": 1e30, "attn_o": 1e14}, "backward", 1, "attn_q"),
    ],
)
def test_where_it_began(bench, steps, factors, phase, block, what):
    one, cause = steps
    state = spoilt(bench[2], **factors)
    began = cause(state)
    assert (began.phase, began.block) == (phase, block) and what in began.what, str(began)
    for watched in (False, True):
        assert one(state, watched)[1].finite.tolist() == [False]


def test_an_infinite_gradient_is_seen_before_clipping_and_a_huge_one_is_not_called_one(bench, steps):
    large = spoilt(bench[2], mlp_out=1e8)
    for watched in (False, True):
        _, metrics, stats = steps[0](large, watched)
        assert metrics.finite
    assert stats.clip_factor < 1e-3  # and it is clipped
