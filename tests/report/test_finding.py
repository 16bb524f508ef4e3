"""The finding in sentences, by hand."""

import math

import pytest

from train.report.finding import finding


def summary(loss=None, start=0.0, end=0.0, state="healthy", constant=3.25, **more):
    """The parts of a summary.json that a finding reads; `start`, `end`: log10 |δ_0| / |δ_L|."""
    flows = {
        f"verdict_{at}": {"log10_ratio": None if math.isinf(log10) else log10, "ratio": 10.0**log10}
        for at, log10 in (("start", start), ("end", end))
    }
    verdict = {"state": state, "qk_share": more.pop("qk_share", 1.0), "qk_rounded": more.pop("qk_rounded", 0)}
    floors = {} if constant is None else {"floor_unigram": constant}
    return {"task": "lm", "loss_val": loss, "floors": floors, "verdict": verdict, "exit_reason": "done"} | flows | more


def starved(share, start, end, loss=None, flow=(0.0, 0.0)):
    """A summary of dead_qk; the shares of Q and K in the verdict, and in the first and the last pass."""
    result = summary(loss, flow[0], flow[1], "dead_qk", qk_share=share)
    result["verdict_start"]["qk_share"], result["verdict_end"]["qk_share"] = start, end
    return result


def test_the_quickstart():
    """`with` is no English word here, and `without_skip` begins no sentence as Without_skip."""
    results = [
        ("with", [summary(2.4219, 1.857, 1.6721)]),
        ("without_skip", [starved(3.4e-4, 3.4e-4, 2.5e-7, loss=3.2483, flow=(0.8887, -5.3613))]),
        ("bare", [summary(3.2504, -4.699, -3.699, "vanishing")]),
    ]
    assert finding(results) == [
        "'with' learns (held-out loss 2.42); 'without_skip' and 'bare' learn next to nothing (3.25; the best constant "
        "prediction has 3.25).",
        "On its way from the last block to the first the gradient is multiplied by 72 → 47 in 'with', 7.7 → 1/230,000 "
        "in 'without_skip' and 1/50,000 → 1/5,000 in 'bare' (start → end of training).",
        "Attention starves in 'without_skip': the gradient of Q and K is 1/2,900 of that of V and O at the start.",
    ]


def test_the_share_of_q_and_k_is_of_the_pass_that_was_judged():
    early, late, once = starved(1e-4, 1e-4, 1e-7), starved(1e-4, 0.1, 1e-4), starved(1e-5, 1e-5, 1e-5)
    groups = ([early], [late], [once], [late, once], [early, late])
    ends = [finding([("a", seeds)])[1].partition("V and O")[2] for seeds in groups]
    assert ends == [" at the start.", " at the end.", " at the end.", " at the end.", "."]


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ([("a", [summary(2.0)])], "'a' learns (held-out loss 2.00)."),
        ([("a", [summary(2.0, constant=None)])], "'a' ends (held-out loss 2.00)."),  # learned or not: not known
        (
            [("a", [summary(2.5)]), ("b", [summary(2.0)]), ("c", [summary(2.25)])],
            "The held-out loss ends lowest in 'b' (2.00; 2.25 in 'c', 2.50 in 'a').",
        ),
        (
            [(name, [summary(2.0 + index / 10)]) for index, name in enumerate("abcde")],
            "The held-out loss ends lowest in 'a' (2.00; 2.40 in 'e', with 3 between).",
        ),
        ([("a", [summary(2.0), summary(3.0)])], "'a' learns (mean held-out loss 2.50)."),
        ([("a", [summary(3.186)])], "'a' learns next to nothing (3.19; the best constant prediction has 3.25)."),
        ([("a", [summary(3.184)])], "'a' learns (held-out loss 3.18)."),  # 2 % below 3.25 is 3.185
        (
            [("a", [summary(3.31)]), ("b", [summary(3.2)])],  # 2 % above 3.25 is 3.315
            "'a' and 'b' learn next to nothing (3.20 to 3.31; the best constant prediction has 3.25).",
        ),
        (
            [("a", [summary(3.25)]), ("b", [summary(4.5)])],  # at its start, or from learning by heart
            "'a' learns next to nothing (3.25; the best constant prediction has 3.25); 'b' predicts worse than a "
            "constant does (4.50; the best constant prediction has 3.25).",
        ),
        # 4 % of 3.25 are 0.13: with a best possible loss of 3.15 there is nothing to learn.
        ([("a", [summary(3.2, floors={"floor": 3.15, "floor_unigram": 3.25})])], "'a' learns (held-out loss 3.20)."),
        (
            [("a", [summary(4.0, floors={"floor": 3.15, "floor_unigram": 3.25})])],
            "'a' predicts worse than a constant does (4.00; the best constant prediction has 3.25).",
        ),
        ([("a", [summary(3.26, floors={"floor": 3.15, "floor_unigram": 3.25})])], "'a' ends (held-out loss 3.26)."),
        ([("a", [summary(2.0)]), ("b", [summary()])], "'a' learns (held-out loss 2.00)."),
        ([("a", [summary(2.0), summary()])], None),  # a mean over the seeds that came to an end is none
        ([("a", [summary(2.0)]), ("b", [summary(2.0, task="regression")])], None),  # two units
    ],
)
def test_losses(results, sentence):
    first = finding(results)[0]
    assert first == sentence if sentence else first.startswith("On its way")


@pytest.mark.parametrize(
    ("flows", "sentence"),
    [
        ({"a": [(1.0, 2.0)]}, "10 → 100 in 'a'"),
        ({"a": [(1.0, -1.0), (3.0, -2.0)]}, "100 → 1/32 in 'a'"),  # geometric means: 2 and -1.5
        ({"a": [(0.0, -math.inf)]}, "1.0 → 0 in 'a'"),
        (
            {name: [(0.0, float(end))] for name, end in zip("abcde", (3, -2, 1, 5, 2), strict=True)},
            "1.0 → 1/100 in 'b' and 1.0 → 100,000 in 'd', with 3 between",
        ),
    ],
)
def test_gradients(flows, sentence):
    results = [(name, [summary(None, *seed) for seed in seeds]) for name, seeds in flows.items()]
    about = "On its way from the last block to the first the gradient is multiplied by"
    assert finding(results) == [f"{about} {sentence} (start → end of training)."]


def test_a_gradient_that_is_not_finite_and_one_that_is_not_known():
    lost = summary(verdict_end={"log10_ratio": None, "ratio": None})
    assert "by 1.0 → not finite in 'a' (" in finding([("a", [lost])])[0]
    assert finding([("a", [summary(verdict_start=None)]), ("b", [{}]), ("c", [])]) == []


@pytest.mark.parametrize(
    ("seeds", "sentence"),
    [
        ([summary(state="collapsed")], "The tokens become alike in 'a'."),
        ([summary(state="unstable")], "The loss is unstable in 'a'."),
        ([summary(state="not_learning")], "Although the gradient arrives in 'a', the loss stands still."),
        ([summary(state="dead_qk", qk_share=0.0)], "exactly zero, unlike that of V and O."),
        ([summary(state="dead_qk", qk_share=None)], "Attention starves in 'a'."),  # no float holds it
        ([summary(state="dead_qk", qk_share=1e-4, qk_rounded=2)], "is at most 1/10,000 of that of V and O."),
        ([summary(state="dead_qk", qk_share=share) for share in (1e-5, 1e-4)], "is at most 1/10,000 of that"),
        ([summary(exit_reason="nonfinite", steps=30)], "'a' stopped at step 30, which was not finite."),
        ([summary(state="vanishing")], None),  # the second sentence shows it
    ],
)
def test_reasons(seeds, sentence):
    sentences = finding([("a", seeds)])
    assert sentence in sentences[1] if sentence else len(sentences) == 1


def test_many_names_are_counted():
    sentences = finding([(name, [summary(state="unstable")]) for name in "abcdef"])
    assert sentences[1] == "The loss is unstable in 'a', 'b', 'c' and 3 more."
