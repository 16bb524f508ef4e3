"""Every residual rule trains: it learns to copy, which one token at a time cannot do."""

import jax
import numpy as np
import pytest

from data.source import open_source
from model.network import Network
from model.residual import RULES
from train.core.dispatch import run_dispatch
from train.core.state import hparams_of, initial_state

STEPS = 250


@pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=[] if rule in ("pre_ln", "none", "attnres") else pytest.mark.slow) for rule in RULES],
)
def test_it_learns_to_copy(tiny, rule):
    """Knowing the task but not the question costs ln 4 = 1.386 nats a symbol; looking it up costs nothing."""
    config = (
        tiny(
            {
                "model.residual": rule,
                "model.positions": "rope",
                "model.init_std": 0.3,
                **({"model.init": "orthogonal"} if rule == "value_skipinit" else {}),
                "data.path": None,
                "data.kind": "copy",
                "data.symbols": 4,
                "data.batch": 16,
                "optimizer.lr": 1e-2,
                "optimizer.min_lr": 1e-3,
                "optimizer.warmup": 40,
                "train.steps": STEPS,
                "watch.every": 0,
            }
        )
        .variants[0]
        .config
    )
    source = open_source(config.data)
    network = Network(config.model, source.form.vocab_size, config.data.context)
    hp = hparams_of(config)
    state = jax.jit(initial_state, static_argnums=(0, 1))(network, config, hp)
    trained = jax.jit(run_dispatch, static_argnums=(0, 1, 2))
    _, metrics, _ = trained(network, config, 0, state, hp, None, source.train_batches(16, 0, 0, STEPS))
    # The median: now and then stochastic_depth drops the very block that looks things up.
    assert np.median(metrics.loss[-40:]) < 0.5 * np.log(4)
