"""Tables, by hand."""

import json
import math

import numpy as np
import pytest

from runs import groups_of, write_run
from train.report.probe import probe_table
from train.report.read import read_run
from train.report.tables import (
    ABOVE,
    closing_table,
    final_table,
    gain,
    log10_ratio,
    markdown,
    verdict_lines,
    verdict_table,
    verdict_text,
)
from train.text import norm, number


@pytest.mark.parametrize(
    ("x", "log10", "text"),
    [
        (0.001, None, "0.001000"),
        (0.00099999, None, "0.001000"),
        (99994.0, None, "99994"),
        (99996.0, None, "1.000e+05"),
        (9.9999, None, "10.00"),
        (-0.5, None, "-0.5000"),
        (-1.5e-7, None, "-1.500e-07"),
        (5e-324, None, "4.941e-324"),
        (-0.0, None, "0"),
        (-math.inf, None, "-inf"),
        (10**6, None, "1000000"),
        (np.float32(0.25), None, "0.2500"),
        (0.0, -363.886, "1.300e-364"),
        (None, 400.30103, "2.000e+400"),
        (-1.0, -400.0, "-1.000e-400"),
        (0.0, -3 + 1e-9, "0.001000"),
        (None, 2 - 1e-9, "100.0"),
        (None, 4.30103, "20000"),
        (None, -math.inf, "0"),
        (None, math.nan, "nan"),
    ],
)
def test_number(x, log10, text):
    assert number(x, log10) == text


def test_a_norm_is_never_floored_and_zero_is_zero():
    # 9.998e-365 rounds up into the next power
    norms = [(0.0, -45.5), (1.0, 0.0), (0.0, -364.0001), (0.0, None), (None, None)]
    assert [norm(*each) for each in norms] == ["3.16e-46", "1.00e+00", "1.00e-364", "0", "-"]


SUMMARIES = [
    {
        "variant": "with",
        "steps": 2000,
        "loss_first": 4.6,
        "loss_train": 1.6,
        "loss_val": 1.75,
        "best_val": 1.74,
        "verdict": {"state": "healthy", "first_bad_layer": None, "why": "gains near 1"},
        "verdict_start": {"state": "healthy", "log10_ratio": -0.08, "per_layer_gain": 0.9776, "qk_share": 0.12},
        "verdict_end": {
            "state": "healthy",
            "log10_ratio": 1.08,
            "per_layer_gain": 1.25,
            "qk_share": 0.5,
            "qk_rounded": 1,
        },
    },
    {
        "variant": "without",
        "loss_val": None,
        "verdict": {"state": "vanishing", "ratio": 3.2e-9, "why": "δ falls"},
        "verdict_start": {"log10_ratio": -3.5},
    },
    {"variant": "killed", "verdict": None},
]


def test_closing_table():
    columns, rows = closing_table(SUMMARIES)
    pairs = [f"{name}: start → end" for name in ("|δ_0|/|δ_L|", "per-layer gain", "q,k share")]
    assert columns == ["variant", "steps", "loss/train", "loss/val", *pairs, "verdict"]
    assert rows == [
        ["with", "2000", "1.600", "1.750", "0.83 → 12", "0.978 → 1.25", "0.12 → ≤0.50", "healthy"],
        ["without", "-", "-", "-", "1/3,200 → -", "-", "-", "vanishing (gradient fades)"],
        ["killed", *"-------"],
    ]


def test_a_verdict_is_said_with_what_to_try():
    verdict = {"state": "dead_qk", "why": "δ arrives", "try": "a: b"}
    assert verdict_lines("bare", verdict) == ["bare: dead_qk (starved attention): δ arrives", "  try a: b"]
    assert verdict_lines("with", verdict | {"try": None}) == ["with: dead_qk (starved attention): δ arrives"]
    assert verdict_text(verdict) == "**dead_qk (starved attention)**: δ arrives\n\nTry a: b"
    assert verdict_text({"state": "healthy", "why": "δ arrives"}) == "**healthy**: δ arrives"


def test_the_best_possible_loss_and_the_accuracy_are_shown_where_they_say_something():
    lm = {"variant": "lm", "task": "lm", "accuracy_val": 0.25, "floors": {}}
    markov = lm | {"variant": "markov", "floors": {"floor": 1.5, "floor_unigram": 2.5}}
    images = lm | {"variant": "images", "task": "classification"}
    shown = {"loss/floor", "accuracy/val"}
    assert shown.isdisjoint(closing_table([lm])[0])
    columns, rows = closing_table([lm, markov])
    assert columns[4:6] == ["loss/floor", "accuracy/val"]
    assert [row[4:6] for row in rows] == [["-", "0.2500"], ["1.500", "0.2500"]]
    assert shown & set(closing_table([images])[0]) == {"accuracy/val"}


def probe(**changes):
    grad = {"layer": [3.0, 4.0], "embed": 1.0, "head": 2.0}
    grad |= {name: [0.5, 1e-7] for name in ("attn_q", "attn_k", "attn_v", "attn_o", "mlp_in", "mlp_out")}
    return {
        "delta": {"norm": [0.0, 0.25, 1.0], "log10_norm": [-364.0, math.log10(0.25), 0.0]},
        "delta_without": {"norm": [0.0, 1e-10, 1.0], "log10_norm": [None, -10.0, 0.0]},
        "gain": [0.0, 0.25],
        "act": {"rms": [1.0, 1.5, 2.0]},
        "grad": grad,
    } | changes


def test_probe_table():
    columns, rows = probe_table(probe())
    assert columns == [
        *("l", "|δ_l|", "gain", "|δ_l| no skips", "act rms", "|grad|"),
        *("q", "k", "v", "o", "mlp_in", "mlp_out"),
    ]
    assert rows == [
        ["0", "1.00e-364", "0", "0", "1.000", "3.000", *["0.5000"] * 6],
        ["1", "2.50e-01", "0.2500", "1.00e-10", "1.500", "4.000", *["1.000e-07"] * 6],
        ["2", "1.00e+00", "-", "1.00e+00", "2.000", "-", *"------"],
    ]
    assert [row[3] for row in probe_table(probe(delta_without=None))[1]] == ["-", "-", "-"]


def test_markdown():
    text = markdown(["run", "loss"], [["a|b", "1.5"], ["c\nd", "-"]])
    assert text == "| run | loss |\n| --- | ---: |\n| a\\|b | 1.5 |\n| c d | - |\n"


def test_final_figures_by_hand(sweep):
    columns, rows = final_table(groups_of(sweep))
    row = dict(zip(columns, rows[0], strict=True))
    # 2.1 + 3 e^-5 and a sample deviation of 0.1 for the training loss
    assert row["loss/train"] == f"{2.1 + 3 * np.exp(-5):.2f} ± {4.30265 * 0.1 / np.sqrt(3):.2f}" == "2.12 ± 0.25"
    assert (row["run"], row["seeds"], row["steps"], row["verdict"]) == ("with", "3", "100", "healthy")
    assert row["accuracy/val"] == "0.250 ± 0" and row["steps/s"] == "10.00"
    # At step 90 the slopes 0, 0.1, 0.2 have become 1.9 times as steep.
    start, end = (f"{x:.2f} ± {4.30265 * x / np.sqrt(3):.2f}" for x in (0.1, 0.19))
    assert row["log10 |δ_0|/|δ_L|: start → end"] == f"{start} → {end}"
    assert dict(zip(columns, rows[1], strict=True))["log10 |δ_0|/|δ_L|: start → end"] == "-4.000 ± 0 → -7.600 ± 0"


def test_differences_are_taken_seed_by_seed(sweep):
    columns, rows = final_table(groups_of(sweep))
    cells = [row[columns.index(ABOVE)] for row in rows]
    # 1, 1.1, 1.2: a deviation of 0.1, while the groups' own are 0.1 and 0.2
    assert cells == ["0", f"1.10 ± {4.30265 * 0.1 / np.sqrt(3):.2f}"]
    (sweep / "without,seed=0" / "config.yaml").write_text(
        (sweep / "without,seed=0" / "config.yaml").read_text().replace("seed: 0", "seed: 7")
    )
    columns, rows = final_table(groups_of(sweep))  # two seeds in common: 1.1 and 1.2
    assert rows[1][columns.index(ABOVE)] == f"1.15 ± {12.7062 * 0.05:.2f}"
    assert ABOVE not in final_table(groups_of(sweep / "with,seed=0", sweep / "without,seed=1"))[0]
    assert ABOVE not in final_table(groups_of(sweep)[:1])[0]


def test_one_seed_has_no_interval_and_no_column_of_counts(tmp_path):
    write_run(tmp_path / "a", "x", slope=-1.0)
    columns, rows = final_table(groups_of(tmp_path / "a"))
    assert rows[0][columns.index("|δ_0|/|δ_L|: start → end")] == "1/10 → 1/79"  # 10 ** -1.9 at step 90
    assert "seeds" not in columns and not any("±" in cell for cell in rows[0])


def test_unfinished_runs_are_shown_as_such_and_do_not_count_among_finished_ones(sweep):
    write_run(sweep, "with,seed=3", 3, loss=9.0, residual="pre_ln", done=False)
    write_run(sweep, "alone", 0, loss=9.0, residual="rezero", done=False)
    columns, rows = final_table(groups_of(sweep))
    alone, with_, _ = [dict(zip(columns, row, strict=True)) for row in rows]
    assert alone["steps"] == "50 of 100, unfinished" and alone["loss/train"] == "9.246" and alone["verdict"] == "-"
    assert (
        with_["steps"] == "100 (1 more unfinished)" and with_["seeds"] == "3" and with_["loss/train"].startswith("2.")
    )


def test_what_to_try_is_shown_where_a_verdict_says_it(sweep):
    assert verdict_table(groups_of(sweep))[0] == ["run", "verdict", "why"]
    summary = sweep / "without,seed=1" / "summary.json"
    summary.write_text(summary.read_text().replace('"why"', '"try": "model.residual: pre_ln", "why"'))
    columns, rows = verdict_table(groups_of(sweep))
    assert columns[3] == "what to try" and [row[3] for row in rows] == [*"----", "model.residual: pre_ln", "-"]


def test_what_is_not_finite_is_said(sweep):
    log = sweep / "with,seed=1" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 101, "loss/train": null, "nonfinite": ["loss/train"]}\n')
    columns, rows = final_table(groups_of(sweep))
    assert rows[0][columns.index("loss/train")] == "not finite in 1 of 3"
    columns, rows = final_table(groups_of(sweep / "with,seed=1"))
    assert rows[0][columns.index("loss/train")] == "nan"


def test_a_step_that_was_not_finite_is_told_with_what_followed(sweep):
    def told(name, **changed):
        path = sweep / name / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
        groups = groups_of(sweep / name)
        return final_table(groups)[1][0][1:3], verdict_table(groups)[1][0][2]

    bad = {"first_nonfinite_step": 30, "nonfinite": "the loss went bad first", "exit_reason": "nonfinite"}
    steps, why = told("with,seed=0", **bad)
    assert "100 of 100, stopped, not finite" in steps
    assert why.endswith("; step 30 was not finite: the loss went bad first; the run stopped at step 100")
    _, why = told("with,seed=1", **{**bad, "exit_reason": "done", "skipped_steps": 2})
    assert why.endswith("went bad first; 2 updates left out")
    assert "not finite" not in told("without,seed=0")[1]


def test_an_exact_zero_is_not_left_out(tmp_path):
    run = write_run(tmp_path / "a", "x")
    log = run / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step":101,"delta/norm_log10/layer_000":null,"delta/norm_log10/layer_004":1}\n')
    assert log10_ratio(read_run(run)) == -np.inf


@pytest.mark.parametrize("which", [0, -1])
def test_a_gradient_of_zero_at_every_depth_counts_as_watched(tmp_path, which):
    run = write_run(tmp_path / "a", "x")
    log = run / "metrics.jsonl"
    rows = [{**json.loads(line), "act/rms/layer_000": 1.0} for line in log.read_text().splitlines()]
    watched = [row for row in rows if "delta/norm_log10/layer_000" in row]
    watched[which].update({tag: None for tag in watched[which] if tag.startswith("delta/norm_log10/")})
    log.write_text("".join(json.dumps(row) + "\n" for row in rows if row in watched))
    assert log10_ratio(read_run(run), which) == -np.inf and gain(read_run(run), which) is None
    assert log10_ratio(read_run(run), -1 - which) == 0.0
