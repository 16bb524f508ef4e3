"""Loss spikes on synthetic losses, independence of how the steps are cut into windows, and what moved before one."""

import json

import numpy as np
import pytest

from train.gradflow.spikes import (
    BEFORE,
    FEWEST,
    FEWEST_COMPARED,
    LATEST,
    SHARE,
    Spike,
    SpikeDetector,
    first_moved,
    follow,
    moved_before,
    rise_of,
)

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


@pytest.mark.parametrize(("length", "expected"), [(1, False), (LATEST // 2 - 1, False), (LATEST // 2 + 1, True)])
def test_a_spike_lasts_longer_than_a_few_bad_batches(length, expected):
    losses = quiet()
    losses[300 : 300 + length] += 3.0
    result = heights(losses)
    assert result.any() == expected
    if expected:
        assert 300 < np.flatnonzero(result)[0] <= 300 + length and not result[300 + length + LATEST :].any()
        assert 2.0 < result.max() < 3.5


def test_limits_on_both_sides():
    """The limit is a share of the initial loss without noise, and a multiple of the spread with noise."""
    base = np.full(200, 2.0)
    for factor, expected in ((0.9, False), (1.1, True)):
        assert heights(np.append(base, np.full(20, 2.0 + factor * SHARE * 2.0))).any() == expected
    noisy = quiet()
    usual = noisy[-BEFORE:]
    limit = 3 * 1.4826 * np.median(np.abs(usual - np.median(usual)))
    assert limit > 0.05 * 4.6
    for factor, expected in ((0.75, False), (1.25, True)):  # a few steps before, what is usual was a little different
        assert heights(np.append(noisy, np.full(LATEST, np.median(usual) + factor * limit))).any() == expected


def test_where_a_loss_stays_up_the_spike_stays_open_until_half_of_it_is_left():
    up = np.append(np.full(100, 2.0), np.full(500, 3.0))
    watch, result = follow(SpikeDetector(), up)
    assert result[-1] == 1.0 and watch.level == 2.0 and watch.before == (2.0,) * BEFORE
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
    watch, result = follow(SpikeDetector(), losses)
    assert np.isposinf(result[-1]) and not np.isnan(result).any() and watch.level == pytest.approx(2.4, abs=0.1)
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
        watch, result = follow(watch, losses[start : start + window])
        parts.append(result)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert watch == whole_watch


# What moved first

SPIKE = Spike(150, 1.0, level=2.0, limit=0.4)
RISE = 140


def spiked(steps: int = 150, rise: int = RISE) -> np.ndarray:
    """Returns losses of 2 +- 0.1 that are 3 from `rise` on."""
    return 2.0 + 0.1 * (-1.0) ** np.arange(steps) + (np.arange(steps) >= rise)


def steady(moved: float = 0.0, since: int = 150, steps: int = 150) -> np.ndarray:
    """Returns log10 sizes of 0 +- 0.01, whose band is +- log10(2), that are `moved` higher from `since` on."""
    return 0.01 * (-1.0) ** np.arange(steps) + moved * (np.arange(steps) >= since)


def test_what_moved_is_named_in_order_of_time_with_its_factor():
    """Half of the 140 steps before the loss are the baseline: median 0, MAD 0.01, and the band is a factor of 2."""
    series = {"late": steady(1.0, 138), "head": steady(0.7, 137), "same": steady(1.0, RISE), "quiet": steady(0.2, 137)}
    series |= {"tie": steady(-2.0, 138), "earlier": steady(0.5, 120)}
    moves = moved_before(series, RISE)
    assert [(move.name, move.at) for move in moves] == [("earlier", 120), ("head", 137), ("tie", 138), ("late", 138)]
    np.testing.assert_allclose([move.log10 for move in moves], [0.51, 0.69, -1.99, 1.01], atol=1e-12)
    assert first_moved(series, spiked(), SPIKE, 201) == (
        "first moved earlier (×3.2 at step 321), head (×4.9 at step 338), tie (×1/98 at step 339) and 1 more; "
        "the loss rose at step 341"
    )


def test_the_band_is_seven_deviations_where_a_factor_of_two_is_less():
    """Values of +- 0.1: MAD 0.1, so the limit is 7 * 1.4826 * 0.1 = 1.038."""
    wide = 0.1 * (-1.0) ** np.arange(150)
    for moved, expected in ((0.9, False), (1.2, True)):
        assert bool(moved_before({"x": wide + moved * (np.arange(150) >= 130)}, RISE)) == expected
    for least, expected in ((0.28, False), (0.34, True)):
        assert bool(moved_before({"x": steady(least, 130)}, RISE)) == expected


def test_one_step_alone_counts_only_from_twice_the_limit_on():
    for moved, expected in ((0.5, False), (0.7, True)):
        assert bool(moved_before({"x": steady(moved, RISE - 1)}, RISE)) == expected
    assert moved_before({"x": steady(0.5, RISE - 2)}, RISE)[0].at == RISE - 2


def test_what_came_back_before_the_loss_rose_did_not_move_it():
    passing = steady(1.0, 100) - 1.0 * (np.arange(150) >= 110)
    assert not moved_before({"x": passing}, RISE)
    gap = steady(1.0, 130)
    gap[134] = 0.0  # one step inside
    assert moved_before({"x": gap}, RISE)[0].at == 130
    gap[135] = 0.0
    assert moved_before({"x": gap}, RISE)[0].at == 136


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_noise_and_steady_drifts_name_nothing(noise):
    """A drift by d a step has MAD d B / 4 over B steps, and is 1.5 d B from their median B steps later."""
    for seed in range(5):
        drawn = np.random.default_rng(seed).normal(0.0, noise, (200, 150))
        drawn += np.linspace(-3, 3, 200)[:, None] * np.arange(150) / 50
        assert not moved_before({str(index): row for index, row in enumerate(drawn)}, RISE)


def test_entries_that_are_not_finite():
    zero, nan, dead = steady(), steady(), np.full(150, -np.inf)
    zero[138:] = -np.inf
    nan[138:] = np.nan
    dead[130:] = 0.0  # a gate that opens: nothing to compare with
    single = steady()
    single[10] = np.inf
    half = steady()
    half[:70:2] = np.inf
    series = {"zero": zero, "nan": nan, "dead": dead, "single": single, "half": half, "never": np.full(150, np.nan)}
    assert [(move.name, move.log10) for move in moved_before(series, RISE)] == [("zero", -np.inf), ("nan", np.inf)]
    moves = first_moved(series, spiked(), SPIKE, 1)
    assert moves == "first moved zero (×0 at step 139), nan (not finite at step 139); the loss rose at step 141"


def test_the_loss_rises_after_its_last_two_steps_near_the_level():
    assert rise_of(spiked(), SPIKE) == RISE
    dip = spiked()
    dip[145] = 2.0
    assert rise_of(dip, SPIKE) == RISE
    ramp = np.append(np.full(50, 2.0), 2.0 + 0.06 * np.arange(1, 21))  # the limit is 0.4
    assert rise_of(ramp, SPIKE) == 56
    assert rise_of(np.where(np.arange(150) < RISE, 2.0, np.nan), SPIKE) == RISE
    for calm in (np.full(150, 2.0), spiked(rise=147)):  # the median of the last eight is near the level
        assert rise_of(calm, SPIKE) is None


def test_sentences_without_a_move():
    assert first_moved({"x": steady()}, spiked(), SPIKE, 1) == (
        "the loss rose at step 141, and nothing that is watched moved before it: a bad batch, or too large a step"
    )
    assert "does not rise in the replay" in first_moved({"x": steady(1.0, 130)}, np.full(150, 2.0), SPIKE, 1)
    early = spiked(2 * FEWEST_COMPARED + 7, 2 * FEWEST_COMPARED - 1)
    assert first_moved({"x": steady(1.0, 20)[: early.size]}, early, SPIKE, 1).endswith(
        "too soon after step 1, the first one replayed, to compare with"
    )
