"""Runs are read back while they are written, and as a crash left them."""

import json
import math
from contextlib import closing

import numpy as np
import pytest

from runs import write_run
from train.errors import UserError
from train.report.comparison import as_html, as_markdown, compare
from train.report.read import depth_series, read_run

LAST = '{"step":60,"loss/train":2.5,"naïve":1.0}'


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        *(LAST.encode()[:cut] for cut in range(1, len(LAST.encode()), 7)),
        "é".encode()[:1],
        b"\0" * 512,
        b"[" * 99_999,
    ],
)
def test_a_log_that_ends_anywhere_is_read_up_to_there(tmp_path, tail):
    run = write_run(tmp_path, "with", done=False)
    before = read_run(run)
    with open(run / "metrics.jsonl", "ab") as log:
        log.write(tail)
    after = read_run(run)
    assert after.step == before.step == 50
    assert {tag: at.tolist() for tag, (at, _) in after.steps.items()} == {
        tag: at.tolist() for tag, (at, _) in before.steps.items()
    }


def test_the_summary_of_a_run_that_went_on_is_of_no_run_that_ended(tmp_path):
    run = write_run(tmp_path, "with")
    assert read_run(run).summary
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"step":140,"loss/train":2.5}\n')
    assert read_run(run).summary  # a row after the last step of the config
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("steps: 100", "steps: 200"))
    assert not read_run(run).summary and compare([run]).finding == []


def test_each_prefix_of_a_log_is_a_run_that_can_be_compared(tmp_path):
    """As a report sees runs that are still going on, one of which has not logged yet."""
    whole = (write_run(tmp_path, "a") / "metrics.jsonl").read_bytes()
    write_run(tmp_path, "b", seed=1, done=False)
    for size in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a" / "metrics.jsonl").write_bytes(whole[:size])
        comparison = compare([tmp_path])
        runs = [run.name for group in comparison.groups for run in group.runs]
        assert runs == (["a", "b"] if b"\n" in whole[:size] else ["b"]) and "unfinished" in as_markdown(comparison)
    assert as_html(comparison).rstrip().endswith("</html>")


@pytest.mark.parametrize(
    "line",
    [
        "[" * 99_999,
        '{"step":1e999}',
        '{"step":' + "9" * 30 + "}",
        '{"step":1,"x":' + "9" * 400 + "}",
        '{"step":1,"x":[]}',
        "7",
    ],
)
def test_a_line_in_the_middle_that_is_no_row_is_named(tmp_path, line, wording):
    run = write_run(tmp_path, "with")
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([rows[0], line, *rows[1:]]) + "\n")
    with wording.raises(UserError, f"{run}/metrics.jsonl:2") as caught:
        read_run(run)
    assert len(str(caught.value)) < 400 + len(str(run))


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
    assert not read_run(run_directory).summary


def test_depth_series(run_directory):
    run = read_run(run_directory)
    steps, values = depth_series(run.steps, "delta/norm_log10")
    assert steps.tolist() == [0, 10, 20]
    np.testing.assert_array_equal(values, [[-2, -np.inf, 0.5], [-np.inf, -np.inf, 0.25], [-3, -np.inf, -np.inf]])
    for metric in ("act/rms", "grad/norm_log10"):  # the second was logged by matrix only
        steps, values = depth_series(run.steps, metric)
        assert steps.shape == (0,) and values.shape == (0, 0)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("config.yaml", None, ""),
        ("metrics.jsonl", None, ""),
        ("config.yaml", "a: [1", "/config.yaml:1"),
        ("config.yaml", "[1]", "/config.yaml"),
        *(("summary.json", text, "/summary.json") for text in ("", "{", "[" * 99_999, "[]", '{"steps": "many"}')),
        ("metrics.jsonl", '{"step":0}\n{"st\n{"step":1}\n', "/metrics.jsonl:2"),
    ],
    ids=["no config", "no metrics", "config", "list", "empty", "cut", "deep", "summary", "steps", "metrics"],
)
def test_a_run_that_cannot_be_read_is_one_line(run_directory, name, content, place, wording):
    if content is None:
        (run_directory / name).unlink()
    else:
        (run_directory / name).write_text(content)
    with wording.raises(UserError, f"{run_directory}{place}") as error:
        read_run(run_directory)
    assert "\n" not in str(error.value)


def test_the_folder_above_names_its_runs(run_directory, wording):
    with wording.raises(UserError, run_directory.parent):
        read_run(run_directory.parent)


def test_what_the_tracker_writes_is_read_back(tmp_path):
    from train.log.writer import Tracker

    with closing(Tracker(tmp_path)) as tracker:
        tracker.log(0, {"delta/norm_log10/layer_000": -400.5, "delta/norm_log10/layer_001": math.nan, "x": None})
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    run = read_run(tmp_path)
    assert set(run.steps) == {"delta/norm_log10/layer_000", "delta/norm_log10/layer_001"}
    np.testing.assert_array_equal(depth_series(run.steps, "delta/norm_log10")[1], [[-400.5, math.nan]])
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["nonfinite"] == ["delta/norm_log10/layer_001"]
