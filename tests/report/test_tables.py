"""Tables, the console that prints them, and the reader of run files."""

import io
import json
import math

import numpy as np
import pytest

from train.errors import UserError
from train.log import console
from train.log.console import Console
from train.report.read import depth_series, read_run
from train.report.tables import closing_table, markdown, probe_table, verdict_lines, verdict_text
from train.text import norm, number


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.001, "0.001000"),
        (0.0009999, "9.999e-04"),
        (0.00099999, "0.001000"),
        (99994.0, "99994"),
        (99996.0, "1.000e+05"),
        (9.9999, "10.00"),
        (-0.5, "-0.5000"),
        (-1.5e-7, "-1.500e-07"),
        (5e-324, "4.941e-324"),
        (1e100, "1.000e+100"),
        (-0.0, "0"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (10**6, "1000000"),
        (np.float32(0.25), "0.2500"),
    ],
)
def test_number(x, text):
    assert number(x) == text


def test_number_from_its_logarithm():
    assert number(0.0, -363.886) == "1.300e-364"
    assert number(None, 400.30103) == "2.000e+400"
    assert number(-1.0, -400.0) == "-1.000e-400"
    assert number(0.0, -3 + 1e-9) == "0.001000"
    assert number(None, 2 - 1e-9) == "100.0"
    assert number(None, 4.30103) == "20000"
    assert number(None, -math.inf) == "0"
    assert number(None, math.nan) == "nan"


def test_a_norm_is_never_floored_and_zero_is_zero():
    assert norm(0.0, -45.5) == "3.16e-46"
    assert norm(1.0, 0.0) == "1.00e+00"
    assert norm(0.0, -364.0001) == "1.00e-364"  # 9.998e-365 rounds up into the next power
    assert norm(0.0, None) == "0"
    assert norm(None, None) == "-"


SUMMARIES = [
    {
        "variant": "with",
        "steps": 2000,
        "loss_first": 4.6,
        "loss_train": 1.6,
        "loss_val": 1.75,
        "best_val": 1.74,
        "verdict": {"state": "healthy", "first_bad_layer": None, "why": "gains near 1"},
        "verdict_start": {"state": "healthy", "ratio": 0.834, "per_layer_gain": 0.9776, "qk_share": 0.12},
        "verdict_end": {"state": "healthy", "ratio": 12.0, "per_layer_gain": 1.25, "qk_share": 0.5, "qk_rounded": 1},
    },
    {
        "variant": "without",
        "loss_val": None,
        "verdict": {"state": "vanishing", "ratio": 3.2e-9, "why": "δ falls"},
        "verdict_start": {"ratio": 3.2e-9},
    },
    {"variant": "killed", "verdict": None},
]


def test_closing_table():
    columns, rows = closing_table(SUMMARIES)
    assert [dict(zip(columns, row, strict=True)) for row in rows[:2]] == [
        {
            "variant": "with",
            "steps": "2000",
            "loss/train": "1.600",
            "loss/val": "1.750",
            "|δ_0|/|δ_L|: start → end": "8.3e-01 → 1.2e+01",
            "per-layer gain: start → end": "0.978 → 1.25",
            "q,k share: start → end": "0.12 → ≤0.50",
            "verdict": "healthy",
        },
        {
            "variant": "without",
            "steps": "-",
            "loss/train": "-",
            "loss/val": "-",
            "|δ_0|/|δ_L|: start → end": "3.2e-09 → -",
            "per-layer gain: start → end": "-",
            "q,k share: start → end": "-",
            "verdict": "vanishing",
        },
    ]
    assert rows[2] == ["killed", *"-------"]


def test_a_verdict_is_said_with_what_to_try():
    verdict = {"state": "vanishing", "why": "δ falls", "gain_at_100": None, "log10_gain_at_100": -400.0, "try": "a: b"}
    assert verdict_lines("bare", verdict) == ["bare: vanishing: δ falls", "  try a: b"]
    assert verdict_lines("with", verdict | {"try": None}) == ["with: vanishing: δ falls"]
    gain = "Through 100 blocks like these delta would become 1.0e-400 times as large."
    assert verdict_text(verdict) == f"**vanishing**: δ falls\n\n{gain}\n\nTry a: b"
    assert verdict_text(verdict | {"log10_gain_at_100": None, "try": None}) == "**vanishing**: δ falls"


def test_the_best_possible_loss_and_the_accuracy_are_shown_where_they_say_something():
    lm = {"variant": "lm", "task": "lm", "accuracy_val": 0.25, "floors": {}}
    markov = lm | {"variant": "markov", "floors": {"floor": 1.5, "floor_unigram": 2.5}}
    images = lm | {"variant": "images", "task": "classification"}
    shown = {"loss/floor", "accuracy/val"}
    assert shown.isdisjoint(closing_table([lm])[0])
    columns, rows = closing_table([lm, markov])
    assert columns[4:6] == ["loss/floor", "accuracy/val"] and [row[4:6] for row in rows] == [
        ["-", "0.2500"],
        ["1.500", "0.2500"],
    ]
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
        *("l", "|δ_l|", "gain", "|δ_l| without", "act rms", "|grad|"),
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


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_plain_progress_is_rare_and_ends_with_the_last(clock):
    stream = io.StringIO()
    with Console(stream) as out:
        for step in range(0, 100):
            clock[0] = 100 + step * 0.1
            out.progress("with", step, 99, 2.5, 1234.4, 9.9 - step * 0.1)
    assert stream.getvalue().splitlines() == [
        "with:  step  0/99  loss 2.500  1234 tokens/s  10s left",
        "with:  step 50/99  loss 2.500  1234 tokens/s  5s left",
        "with:  step 99/99  loss 2.500  1234 tokens/s",
    ]


def test_plain_output_has_no_colour_and_no_wrapping():
    stream = io.StringIO()
    with Console(stream) as out:
        out.block("quickstart", [("device", "cpu"), ("why", "x" * 200)])
        out.note("[bold]as is[/bold]")
        out.warn("careful")
        out.table("results", ["variant", "loss"], [["with", "1.5"], ["without", "10.25"]])
    assert stream.getvalue() == (
        f"quickstart\n  device  cpu\n  why     {'x' * 200}\n[bold]as is[/bold]\nwarning: careful\n"
        "results\nvariant   loss\nwith       1.5\nwithout  10.25\n"
    )


def test_a_stream_that_cannot_write_greek():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    Console(stream).note("|δ_l|")
    assert raw.getvalue() == b"|?_l|\n"


def test_a_narrow_terminal_gets_the_table_in_pieces(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "linux")
    stream = Terminal()
    with Console(stream) as out:
        out.table("", ["name", "aaaaaa", "bbbbbb", "cccccc"], [["x", "1", "2", "3"]])
    lines = [line.rstrip() for line in stream.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()]
    assert lines == ["name  aaaaaa  bbbbbb", "x          1       2", "", "name  cccccc", "x          3"]


def test_a_terminal_is_redrawn_at_most_four_times_a_second(clock, monkeypatch):
    monkeypatch.setenv("TERM", "linux")
    stream = Terminal()
    drawn = []
    with Console(stream) as out:
        monkeypatch.setattr(out, "_draw", lambda: drawn.append(clock[0]))
        for step in range(0, 101):
            clock[0] = 100 + step / 32
            out.progress("with", step, 100, None, math.nan, math.inf)
    assert drawn == [100 + n / 4 for n in range(13)] + [100 + 100 / 32]


@pytest.fixture
def run_directory(tmp_path):
    directory = tmp_path / "quickstart" / "with"
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("seed: 0\noptimizer:\n  lr: 3e-4\n")
    (directory / "summary.json").write_text('{"steps": 20}')
    (directory / "metrics.jsonl").write_text(
        '{"step":0,"delta/norm_log10/layer_000":-2.0,"delta/norm_log10/layer_002":0.5,"loss/val":4.0}\n'
        '{"step":10,"delta/norm_log10/layer_000":null,"delta/norm_log10/layer_002":0.25,"loss/train":null,'
        '"nonfinite":["loss/train"]}\n'
        '{"step":20,"delta/norm_log10/layer_000":-3.0,"grad/norm_log10/layer_000/attn_q":7.0}\n'
        '{"step":30,"delta/norm_lo'
    )
    return directory


def test_read_run(run_directory):
    run = read_run(run_directory)
    assert run.name == "with"
    assert run.config == {"seed": 0, "optimizer": {"lr": 3e-4}}
    assert run.summary == {"steps": 20}
    steps, values = run.steps["delta/norm_log10/layer_000"]
    assert (steps.tolist(), values.tolist()) == ([0, 20], [-2.0, -3.0])
    steps, values = run.steps["loss/train"]
    assert steps.tolist() == [10] and np.isnan(values).tolist() == [True]
    assert run.steps["loss/val"][1].tolist() == [4.0]
    (run_directory / "summary.json").unlink()
    assert read_run(run_directory).summary is None


def test_depth_series(run_directory):
    run = read_run(run_directory)
    steps, values = depth_series(run, "delta/norm_log10")
    assert steps.tolist() == [0, 10, 20]
    nan = math.nan
    np.testing.assert_array_equal(values, [[-2.0, nan, 0.5], [nan, nan, 0.25], [-3.0, nan, nan]])
    steps, values = depth_series(run, "grad/norm_log10", "attn_q")
    assert (steps.tolist(), values.tolist()) == ([20], [[7.0]])
    for metric in ("act/rms", "grad/norm_log10"):  # the second was logged by matrix only
        steps, values = depth_series(run, metric)
        assert steps.shape == (0,) and values.shape == (0, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", None, "with: not a run directory (no config.yaml in it)"),
        ("metrics.jsonl", None, "with: not a run directory (no metrics.jsonl in it)"),
        ("config.yaml", "a: [1", "config.yaml:"),
        ("config.yaml", "[1]", "config.yaml: expected a mapping"),
        ("summary.json", "{", "summary.json: not JSON: "),
        ("summary.json", "[]", "summary.json: expected an object, got list"),
        (
            "metrics.jsonl",
            '{"step":0}\n{"st\n{"step":1}\n',
            "metrics.jsonl:2: expected an object with step and numbers",
        ),
    ],
)
def test_a_run_that_cannot_be_read_is_one_line(run_directory, name, content, message):
    if content is None:
        (run_directory / name).unlink()
    else:
        (run_directory / name).write_text(content)
    with pytest.raises(UserError) as error:
        read_run(run_directory)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_folder_above_names_its_runs(run_directory):
    with pytest.raises(UserError, match=r"quickstart: not a run directory .*; the runs in it are with\)$"):
        read_run(run_directory.parent)


def test_what_the_tracker_writes_is_read_back(tmp_path):
    from train.log.writer import Tracker

    with Tracker(tmp_path) as tracker:
        tracker.log(0, {"delta/norm_log10/layer_000": -400.5, "delta/norm_log10/layer_001": math.nan, "x": None})
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    run = read_run(tmp_path)
    assert set(run.steps) == {"delta/norm_log10/layer_000", "delta/norm_log10/layer_001"}
    np.testing.assert_array_equal(depth_series(run, "delta/norm_log10")[1], [[-400.5, math.nan]])
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["nonfinite"] == ["delta/norm_log10/layer_001"]
