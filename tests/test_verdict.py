"""The verdict, on hand-made profiles."""

import numpy as np
import pytest

from train.gradflow.verdict import Verdict, judge, over_run, per_layer_gain, power, qk_share

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_o")


def grads(layers: int, qk: float = 0.0, vo: float = 0.0) -> dict[str, np.ndarray]:
    """log10 norms: `qk` for Q and K, `vo` for V and O, in every layer."""
    return {name: np.full(layers, qk if name in ("attn_q", "attn_k") else vo) for name in MATRICES}


def line(layers: int, per_layer: float) -> np.ndarray:
    """log10|delta_l| that changes by `per_layer` a block on its way down to l = 0."""
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
    assert per_layer_gain(noisy) == pytest.approx(0.9, rel=1e-3)
    assert 0.9**100 == pytest.approx(2.66e-5, rel=1e-2)  # the figure that textbooks quote


def test_a_ratio_outside_a_float_is_no_zero():
    verdict = judge(line(100, -4.0), grads(100))
    assert (verdict.state, verdict.ratio, verdict.log10_ratio) == ("vanishing", None, pytest.approx(-400.0))
    assert "1.0e-400" in verdict.why


def test_an_exact_zero_is_named_with_its_depth():
    delta = line(4, -0.1)
    delta[:2] = -np.inf
    verdict = judge(delta, grads(4))
    assert (verdict.state, verdict.ratio, verdict.first_bad_layer) == ("vanishing", 0.0, 1)
    assert "exactly zero at depth 1" in verdict.why


def test_q_and_k_behind_a_shut_gate():
    """value_skipinit starts at beta = 0: the gradients of Q and K are exactly zero, those of V and O are not."""
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


def test_share_of_q_and_k_by_hand():
    logs = {"attn_q": np.log10([3.0]), "attn_k": np.log10([4.0]), "attn_v": np.log10([5.0]), "attn_o": np.log10([12.0])}
    assert qk_share(logs) == pytest.approx(np.log10([5.0 / 13.0]))
    silent = {name: np.array([-np.inf]) for name in MATRICES}
    assert np.isnan(qk_share(silent)).all()  # nothing to compare
    assert qk_share(silent | {"attn_v": np.array([0.0])})[0] == -np.inf


def _verdict(state: str) -> Verdict:
    return Verdict(state, 1.0, 0.0, 1.0, 1.0, None, f"{state} it is")


@pytest.mark.parametrize(
    ("first", "last", "state"),
    [
        ("healthy", "healthy", "healthy"),
        ("dead_qk", "healthy", "healthy"),
        ("healthy", "exploding", "exploding"),
        ("dead_qk", "vanishing", "dead_qk"),
        ("vanishing", "vanishing", "vanishing"),
    ],
)
def test_a_run_keeps_the_state_it_began_in_unless_it_got_well(first, last, state):
    verdict = over_run(_verdict(first), _verdict(last), 90)
    assert verdict.state == state
    assert (f"{first} it is" in verdict.why) == (first == last or first != "healthy")
    assert f"{last} it is" in verdict.why


def test_power_writes_what_a_float_cannot_hold():
    assert [power(x) for x in (0.0, -3.0, -3.1, 5.0, -1000.5)] == ["1", "0.001", "7.9e-04", "1.0e+05", "3.2e-1001"]
