"""The verdict on synthetic profiles."""

import numpy as np
import pytest

from train.gradflow.loss_history import LossHistory, loss_history_of, standstill
from train.gradflow.verdict import Verdict, judge, log10_gain, over_run, power, qk_share

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_o")


def grads(layers: int, qk: float = 0.0, vo: float = 0.0) -> dict[str, np.ndarray]:
    """Returns log10 norms: `qk` for Q and K, `vo` for V and O, in every layer."""
    return {name: np.full(layers, qk if name in ("attn_q", "attn_k") else vo) for name in MATRICES}


def line(layers: int, per_layer: float) -> np.ndarray:
    """Returns log10|delta_l| that changes by `per_layer` a block on its way down to l = 0."""
    return per_layer * np.arange(layers, -1, -1.0)


@pytest.mark.parametrize(
    ("per_layer", "qk", "state", "bad"),
    [
        (0.0, 0.0, "healthy", None),
        (-0.29, 0.0, "healthy", None),  # 10^-2.9 over ten blocks
        (-0.31, 0.0, "vanishing", 0),  # 10^-3.1 is passed by the lowest block only
        (-0.62, 0.0, "vanishing", 5),  # -3.1 after five blocks, counted from the loss
        (0.29, 0.0, "healthy", None),
        (0.31, 0.0, "exploding", 0),
        (0.0, -2.9, "healthy", None),
        (0.0, -3.1, "dead_qk", 9),
        (-0.31, -9.0, "vanishing", 0),  # what does not arrive cannot be compared either
    ],
)
def test_states_and_thresholds(per_layer, qk, state, bad):
    verdict = judge(line(10, per_layer), grads(10, qk))
    assert (verdict.state, verdict.first_bad_layer) == (state, bad)
    assert verdict.log10_ratio == pytest.approx(10 * per_layer, abs=1e-12)
    assert verdict.ratio == pytest.approx(10.0 ** (10 * per_layer))
    assert verdict.per_layer_gain == pytest.approx(10.0**per_layer)
    assert verdict.qk_share == pytest.approx(10.0**qk)


def test_gain_is_the_slope_of_a_fitted_line():
    noisy = line(50, np.log10(0.9)) + 1e-3 * np.sin(np.arange(51.0))
    assert 10 ** log10_gain(noisy) == pytest.approx(0.9, rel=1e-3)


@pytest.mark.parametrize(
    ("delta", "state", "ratio", "bad", "sentence"),
    [
        (line(100, -4.0), "vanishing", None, 99, "1.0e-400"),  # a ratio outside a float is no zero
        (np.append([-np.inf, -np.inf], line(2, -0.1)), "vanishing", 0.0, 1, "exactly zero at depth 1"),
        (np.append([np.nan] * 3, line(1, 0.0)), "exploding", None, 2, "not a finite number at depth 2"),
    ],
)
def test_what_a_float_does_not_hold(delta, state, ratio, bad, sentence):
    verdict = judge(delta, grads(delta.size - 1))
    assert (verdict.state, verdict.ratio, verdict.first_bad_layer) == (state, ratio, bad)
    assert sentence in verdict.why
    assert verdict.log10_ratio is None or verdict.log10_ratio == pytest.approx(-400.0)


def test_q_and_k_behind_a_shut_gate():
    """value_skipinit starts at beta = 0, where the gradients of Q and K alone are exactly zero."""
    verdict = judge(line(4, 0.0), grads(4, qk=-np.inf))
    assert (verdict.state, verdict.qk_share, verdict.first_bad_layer) == ("dead_qk", 0.0, 3)
    assert "exactly zero" in verdict.why
    # rezero at alpha = 0: nothing in the branch has a gradient, so there is nothing to compare.
    nothing = judge(line(4, 0.0), grads(4, qk=-np.inf, vo=-np.inf))
    assert (nothing.state, nothing.qk_share) == ("healthy", None)


def test_what_is_not_finite_explodes():
    delta = line(4, 0.0)
    delta[:3] = np.nan
    verdict = judge(delta, grads(4))
    assert (verdict.state, verdict.ratio, verdict.first_bad_layer) == ("exploding", None, 2)


def ranks(layers: int, upper: float, lower: float = 1.0) -> np.ndarray:
    """Returns act rank [L+1]: `upper` at l > L/2, 0.9 at the embedding's output, `lower` between."""
    rank = np.full(layers + 1, lower)
    rank[layers // 2 + 1 :] = upper
    rank[0] = 0.9
    return rank


@pytest.mark.parametrize(
    ("rank", "state", "bad"),
    [
        (ranks(10, 0.9 * 1.1e-3), "healthy", None),
        (ranks(10, 0.9 * 0.9e-3), "collapsed", 5),
        (ranks(10, 0.0), "collapsed", 5),
        (ranks(10, 1e-5, lower=1e-5), "collapsed", 0),  # the lowest, since this trouble comes from below
        (np.append(ranks(9, 1.0), 1e-6), "healthy", None),  # one depth is not the upper half
        (np.append(9e-3, np.full(10, 1e-7)), "healthy", None),  # the embeddings are alike themselves
        (np.append(1.1e-2, np.full(10, 1e-7)), "collapsed", 0),
        (np.full(11, np.nan), "healthy", None),
        (ranks(1, 1e-5), "collapsed", 0),
    ],
)
def test_collapsed_tokens(rank, state, bad):
    layers = rank.size - 1
    verdict = judge(line(layers, 0.0), grads(layers), rank=rank)
    assert (verdict.state, verdict.first_bad_layer) == (state, bad)
    if state == "collapsed":
        assert verdict.rank_left == pytest.approx(rank[-1] / rank[0]) and "the tokens have become alike" in verdict.why


def test_collapse_is_named_last_and_as_the_reason_why_q_and_k_starve():
    alike = ranks(10, 1e-6)
    assert judge(line(10, -0.5), grads(10), rank=alike).state == "vanishing"
    starving = judge(line(10, 0.0), grads(10, -4.0), rank=alike)
    assert starving.state == "dead_qk" and "become alike (act rank 1.1e-06 of the input's)" in starving.why
    assert "alike" not in judge(line(10, 0.0), grads(10, -4.0), rank=ranks(10, 0.5)).why


def test_a_gain_at_depth_100_neither_overflows_nor_becomes_zero():
    """0.9^100 = 2.66e-5, the textbook figure."""
    fields = judge(line(10, np.log10(0.9)), grads(10)).as_json()
    assert fields["gain_at_100"] == pytest.approx(2.656e-5, rel=1e-3)
    assert fields["log10_gain_at_100"] == pytest.approx(100 * np.log10(0.9))
    for per_layer in (-4.0, 4.0):
        fields = judge(line(10, per_layer), grads(10)).as_json()
        assert fields["gain_at_100"] is None and fields["log10_gain_at_100"] == pytest.approx(100 * per_layer)
        assert fields["per_layer_gain"] == pytest.approx(10**per_layer)
    for rounding in (0.0, -4e-13, 4e-13):  # of the fit, which differs between machines
        deep = judge(line(3, -400.0 + rounding), grads(3))
        assert deep.per_layer_gain is None and deep.log10_gain == pytest.approx(-400) and "1.0e-400 a layer" in deep.why
    zero = judge(np.array([-np.inf, 0.0]), grads(1)).as_json()
    assert zero["gain_at_100"] is None and zero["log10_gain_at_100"] is None


def test_a_hundred_blocks_are_mentioned_of_the_pass_that_is_not_healthy_alone():
    healthy, vanishing = judge(line(10, 0.1), grads(10)), judge(line(10, -0.5), grads(10))
    assert healthy.why.endswith("at the first block is 10 times that at the last, 1.26 a layer")
    assert vanishing.why.endswith("is 1.0e-05 times that at the last, 0.316 a layer (1.0e-50 in a hundred)")
    starved = judge(line(10, 0.1), grads(10, -4.0))
    assert "hundred" not in starved.why
    why = over_run(starved, vanishing, 90).why  # each figure follows the sentence of its own pass
    assert why == f"from the start {starved.why}; by step 90 it is vanishing: {vanishing.why}"


def test_the_stream_is_shown_with_a_delta_that_does_not_arrive():
    rms = np.array([1.0, 2.0, 1e-4])
    assert "the stream's rms goes from 1 to 0.0001" in judge(line(2, -2.0), grads(2), rms=rms).why
    assert "rms" not in judge(line(2, 0.0), grads(2), rms=rms).why


def test_share_of_q_and_k_by_hand():
    logs = {"attn_q": np.log10([3.0]), "attn_k": np.log10([4.0]), "attn_v": np.log10([5.0]), "attn_o": np.log10([12.0])}
    assert qk_share(logs) == pytest.approx(np.log10([5.0 / 13.0]))
    silent = {name: np.array([-np.inf]) for name in MATRICES}
    assert np.isnan(qk_share(silent)).all()  # nothing to compare
    assert qk_share(silent | {"attn_v": np.array([0.0])})[0] == -np.inf
    assert judge(line(3, 0.0), {"attn_q": np.full(3, -9.0)}).state == "healthy"  # V and O are not there


def _verdict(state: str) -> Verdict:
    return Verdict(state, 1.0, 0.0, 1.0, 1.0, None, f"{state} it is")


@pytest.mark.parametrize(
    ("first", "last", "state"),
    [
        ("healthy", "healthy", "healthy"),
        ("dead_qk", "healthy", "healthy"),
        ("healthy", "exploding", "exploding"),
        ("healthy", "collapsed", "collapsed"),
        ("dead_qk", "vanishing", "dead_qk"),
        ("vanishing", "vanishing", "vanishing"),
    ],
)
def test_a_run_keeps_the_state_it_began_in_unless_it_got_well(first, last, state):
    verdict = over_run(_verdict(first), _verdict(last), 90)
    assert verdict.state == state
    assert (f"{first} it is" in verdict.why) == (first == last or first != "healthy")
    assert f"{last} it is" in verdict.why


# Losses: of a run that spikes twice, one that spiked once, and one at the loss of the best constant prediction.
TWICE = LossHistory(500, spikes=((100, 0.5), (300, 0.7)))
ONCE = LossHistory(500, spikes=((100, 0.5),))
STUCK = LossHistory(500, train=3.25, val=3.24, constant=3.25, update=-4.0)


@pytest.mark.parametrize(
    ("first", "last", "history", "state", "sentence"),
    [
        # A design that does not let the gradient through comes first, and spikes are mentioned.
        ("vanishing", "dead_qk", TWICE, "vanishing", "2 loss spikes, the first by step 100, the highest of 0.7"),
        ("dead_qk", "dead_qk", STUCK, "dead_qk", "dead_qk it is"),
        # Then spikes, whatever they leave behind.
        ("healthy", "dead_qk", TWICE, "unstable", "by step 90 it is dead_qk"),
        ("healthy", "exploding", LossHistory(500, nonfinite=60), "unstable", "not a finite number at step 60"),
        ("dead_qk", "healthy", TWICE, "unstable", "2 loss spikes"),
        ("healthy", "healthy", ONCE._replace(in_spike=True), "unstable", "rose by 0.5 by step 100 and stayed up"),
        ("healthy", "healthy", TWICE._replace(in_spike=True), "unstable", "stayed up, after 1 loss spike that passed"),
        ("healthy", "healthy", ONCE, "healthy", "a loss spike of 0.5 by step 100 has passed"),
        # Then a flow that broke, and last of all a loss that does not move although it could.
        ("healthy", "collapsed", STUCK, "collapsed", "by step 90 it is collapsed: collapsed it is"),
        ("healthy", "healthy", STUCK, "not_learning", "a step moves the weights by 1.0e-04 of their size"),
        ("dead_qk", "healthy", STUCK, "not_learning", "not 2% below 3.25"),
        ("healthy", "healthy", LossHistory(500), "healthy", "healthy it is"),
    ],
)
def test_the_cause_goes_before_what_it_leads_to(first, last, history, state, sentence):
    verdict = over_run(_verdict(first), _verdict(last), 90, history)
    assert verdict.state == state and sentence in verdict.why


@pytest.mark.parametrize(
    ("change", "learns"),
    [
        ({}, False),
        ({"val": 3.25 * 0.981}, False),
        ({"val": 3.25 * 0.979}, True),
        ({"val": 9.0}, False),  # worse than knowing nothing
        ({"val": 9.0, "train": 0.1}, True),  # learned by heart
        ({"train": None}, False),
        ({"val": None}, True),  # no evaluation at the last step: unknown
        ({"constant": None}, True),  # unknown
        ({"best": 1.0}, False),
        ({"best": 3.2}, True),  # there is nothing to learn
        ({"steps": 99}, True),  # too early
        ({"steps": 100}, False),
    ],
)
def test_when_a_run_is_said_not_to_learn(change, learns):
    assert (standstill(STUCK._replace(**change), 50) is None) == learns


def test_a_warm_up_is_waited_for_twice():
    assert standstill(STUCK, 250) and standstill(STUCK, 251) is None
    assert standstill(STUCK._replace(steps=100), 0) and standstill(STUCK._replace(steps=99), 0) is None


def test_the_loss_history_of_a_run_from_its_log():
    steps = np.arange(10, 101, 10)
    series = {
        "loss/train": (steps, np.array([5.0, 4.0, 3.0, np.nan, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0])),
        "loss/spike": (steps, np.array([0.0, 0.0, 1.0, np.nan, 0.0, 0.0, 0.5, 0.6, 0.0, 0.1])),
        "loss/val": (np.array([0, 100]), np.array([5.0, 1.5])),
        "loss/floor": (np.array([0, 100]), np.array([0.5, 0.5])),
        "loss/floor_unigram": (np.array([0, 100]), np.array([3.0, 3.0])),
        "loss/floor_easy": (np.array([0, 100]), np.array([0.1, 0.1])),  # a name that says nothing here
        "update/ratio_log10/layer_000": (np.array([0, 90]), np.array([-1.0, -3.0])),
        "update/ratio_log10/layer_001": (np.array([0, 90]), np.array([-1.0, -5.0])),
        "update/ratio_log10/layer_001/attn_q": (np.array([0, 90]), np.array([-1.0, 9.0])),
    }
    history = loss_history_of(series)
    assert history == LossHistory(
        steps=100,
        train=pytest.approx((2.0 * 5 + 1.0) / 6),  # rows of 40 < step, the NaN left out
        val=1.5,
        constant=3.0,
        best=0.5,
        spikes=((30, np.inf), (70, 0.6), (100, 0.1)),
        in_spike=True,
        nonfinite=40,
        update=-4.0,
    )
    late = loss_history_of(series | {"loss/train": (np.append(steps, 200), np.append(np.full(10, 2.0), 1.0))})
    assert late.val is None and late.train == 1.0  # a row of 100 steps; evaluated before it
    uneven = loss_history_of({"loss/train": (np.array([90, 100, 150, 160]), np.array([9.0, 3.0, 2.0, 7.0]))})
    assert uneven.train == pytest.approx((10 * 3.0 + 50 * 2.0 + 10 * 7.0) / 70)
    assert loss_history_of({}) == LossHistory(0)


def test_power_writes_what_a_float_cannot_hold():
    assert [power(x) for x in (0.0, -3.0, -3.1, 5.0, -1000.5)] == ["1", "0.001", "7.9e-04", "1.0e+05", "3.2e-1001"]
