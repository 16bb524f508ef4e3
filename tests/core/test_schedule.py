"""Schedules of the learning rate by hand, their range and dtype."""

import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.config.schema import OptimizerConfig
from train.core.schedule import learning_rate

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
