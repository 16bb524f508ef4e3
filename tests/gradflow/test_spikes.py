"""Loss spikes on synthetic losses, and independence of how the steps are cut into windows."""

import json

import numpy as np
import pytest

from train.gradflow.spikes import BEFORE, FEWEST, LATEST, SHARE, SpikeDetector, follow

STEPS = 400


def quiet(seed: int = 0, noise: float = 0.1, steps: int = STEPS) -> np.ndarray:
    """Returns losses falling from 4.6 to 2.4, like those of a small character model."""
    drawn = np.random.default_rng(seed).normal(0.0, noise, steps)
    return 2.4 + 2.2 * np.exp(-np.arange(steps) / 40) + drawn


def heights(losses: np.ndarray) -> np.ndarray:
    return follow(SpikeDetector(), losses)[1]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 0.3])
def test_noise_is_no_spike(noise):
    assert not any(heights(quiet(seed, noise)).any() for seed in range(20))


def test_nor_is_noise_with_heavy_tails():
    """Noise is Student's t with 3 degrees of freedom: one step in a hundred is over 5.8, the largest over 8."""
    drawn = np.random.default_rng(0).standard_t(3, (20, STEPS))
    assert np.abs(drawn).max() > 8
    assert not any(heights(2.4 + 0.1 * row).any() for row in drawn)


@pytest.mark.parametrize(("length", "seen"), [(1, False), (LATEST // 2 - 1, False), (LATEST // 2 + 1, True)])
def test_a_spike_lasts_longer_than_a_few_bad_batches(length, seen):
    losses = quiet()
    losses[300 : 300 + length] += 3.0
    found = heights(losses)
    assert found.any() == seen
    if seen:
        assert 300 < np.flatnonzero(found)[0] <= 300 + length and not found[300 + length + LATEST :].any()
        assert 2.0 < found.max() < 3.5


def test_limits_on_both_sides():
    """The limit is a share of the initial loss without noise, and a multiple of the spread with noise."""
    base = np.full(200, 2.0)
    for factor, seen in ((0.9, False), (1.1, True)):
        assert heights(np.append(base, np.full(20, 2.0 + factor * SHARE * 2.0))).any() == seen
    noisy = quiet()
    usual = noisy[-BEFORE:]
    limit = 3 * 1.4826 * np.median(np.abs(usual - np.median(usual)))
    assert limit > 0.05 * 4.6
    for factor, seen in ((0.75, False), (1.25, True)):  # a few steps before, what is usual was a little different
        assert heights(np.append(noisy, np.full(LATEST, np.median(usual) + factor * limit))).any() == seen


def test_where_a_loss_stays_up_the_spike_stays_open_until_half_of_it_is_left():
    up = np.append(np.full(100, 2.0), np.full(500, 3.0))
    watch, found = follow(SpikeDetector(), up)
    assert found[-1] == 1.0 and watch.level == 2.0 and watch.before == (2.0,) * BEFORE
    _, still = follow(watch, np.full(50, 2.0 + 0.6 * watch.limit))
    assert still[-1] > 0
    after, back = follow(watch, np.full(50, 2.0 + 0.4 * watch.limit))
    assert back[-1] == 0 and after.level is None
    # What the spike left behind does not hide the next one.
    assert follow(after, np.full(LATEST, 3.0))[1][-1] > 0.5


def test_before_there_is_something_to_compare_with_nothing_is_said():
    usual = np.full(FEWEST, 2.0)
    assert not heights(np.append(usual, np.full(LATEST - 1, 9.0))).any()
    assert heights(np.append(usual, np.full(LATEST, 9.0)))[-1] == 7.0


def test_what_is_not_finite_is_infinitely_high():
    losses = quiet()
    losses[200:] = np.nan
    watch, found = follow(SpikeDetector(), losses)
    assert np.isposinf(found[-1]) and not np.isnan(found).any() and watch.level == pytest.approx(2.4, abs=0.1)
    assert not heights(np.full(100, np.nan)).any()  # of which nothing was ever usual


@pytest.mark.parametrize("window", [1, 7, 50])
def test_it_does_not_matter_how_the_steps_are_cut_nor_whether_a_run_was_resumed(window):
    losses = quiet()
    losses[200:260] += 2.0
    losses[310:] = np.inf
    whole_watch, whole = follow(SpikeDetector(), losses)
    watch, parts = SpikeDetector(), []
    for start in range(0, STEPS, window):
        watch = SpikeDetector.from_json(json.loads(json.dumps(watch.as_json())))
        watch, found = follow(watch, losses[start : start + window])
        parts.append(found)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert watch == whole_watch
