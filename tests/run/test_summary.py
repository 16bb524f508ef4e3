"""Files of an experiment apart from its runs: the report, and means over seeds for TensorBoard."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runs import write_run
from train.cli import main
from train.log.console import Console
from train.report.comparison import compare
from train.report.read import read_run
from train.report.seeds import write_means
from train.run import summary
from train.text import command


def scalars_of(folder: Path) -> dict[str, dict[int, float]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: {event.step: event.value for event in accumulator.Scalars(tag)} for tag in accumulator.Tags()["scalars"]
    }


@pytest.fixture
def sweep(tmp_path):
    root = tmp_path / "the sweep"
    for seed in range(3):
        write_run(root, f"with,seed={seed}", seed, loss=2 + seed / 10)
    write_run(root, "alone", width=8)
    return root


def test_means_over_seeds_are_runs_of_tensorboard(sweep):
    log = sweep / "with,seed=2" / "metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"step": 30' not in line))
    assert write_means(sweep, compare([sweep]).groups) == ["with"]
    assert sorted(path.name for path in sweep.glob("*@*")) == ["with@high", "with@low", "with@mean"]
    mean, low, high = (scalars_of(sweep / f"with@{end}") for end in ("mean", "low", "high"))
    assert mean.keys() == read_run(sweep / "with,seed=0").steps.keys() == low.keys() == high.keys()
    assert list(mean["loss/train"]) == [10, 20, *range(40, 101, 10)]
    half = 4.30265 * 0.1 / np.sqrt(3)
    for scalars, shift in ((mean, 0), (low, -half), (high, half)):
        assert scalars["loss/train"][100] == pytest.approx(2.1 + 3 * np.exp(-5) + shift, rel=1e-5)
    assert low["delta/norm_log10/layer_000"] == high["delta/norm_log10/layer_000"]


def test_means_show_details_on_request_alone(sweep):
    for log in sweep.glob("with,*/metrics.jsonl"):
        log.write_text(log.read_text().replace('{"step"', '{"weight/norm/layer_000": 1.0, "step"'))
    for details in (False, True):
        for config in sweep.glob("with,*/config.yaml"):
            config.write_text(config.read_text() + "watch: {matrices: true}\n" * details)
        write_means(sweep, compare([sweep]).groups)
        assert ("weight/norm/layer_000" in scalars_of(sweep / "with@mean")) == details


def test_means_are_rewritten_and_those_of_no_group_go(sweep):
    groups = compare([sweep]).groups
    write_means(sweep, groups)
    (sweep / "mine@mean").mkdir()
    (sweep / "mine@mean" / "notes.txt").write_text("kept")
    write_means(sweep, groups)
    assert len(list((sweep / "with@mean").iterdir())) == 1
    assert len(scalars_of(sweep / "with@mean")["loss/train"]) == 10
    write_means(sweep, groups[:1])
    assert [path.name for path in sweep.glob("*@*")] == ["mine@mean"]
    assert (sweep / "mine@mean" / "notes.txt").read_text() == "kept"


def test_means_are_no_runs(sweep):
    before = [group.name for group in compare([sweep]).groups]
    write_means(sweep, compare([sweep]).groups)
    assert [group.name for group in compare([sweep]).groups] == before


def test_a_training_ends_with_a_report(trained, capsys):
    config, run = trained
    page = run.parent / "report.html"
    assert page.read_text().startswith("<!doctype html>") and (run.parent / "report.md").exists()
    page.write_text("old")
    assert main(["train", str(config)]) == 0  # finished before
    out = capsys.readouterr().out
    assert "nothing to do" in out and "without_skip" in page.read_text()
    *_, above, first, second, between, report, tensorboard = out.splitlines()
    assert above == between == "" and re.match(r"'with|The held-out loss", first)
    assert second.startswith("On its way from the last block to the first the gradient is multiplied by")
    assert report == f"report: {page.as_uri()}" and Path(url2pathname(urlsplit(report[8:]).path)).samefile(page)
    assert tensorboard == f"TensorBoard: {command('tensorboard', run.parent)}"


def test_a_run_that_cannot_be_read_is_missing_in_the_report_which_says_so(sweep, capsys, wording):
    (sweep / "alone" / "summary.json").write_text("{")
    assert summary.write_report(sweep, Console()) == sweep / "report.html"
    assert not list(sweep.glob("*@mean"))  # runs without event files, by log.tensorboard: false
    out = capsys.readouterr().out
    warning = out.splitlines()[0]
    assert f"{sweep}/alone/summary.json" in warning
    wording(warning)
    assert warning.removeprefix("warning: ") in (sweep / "report.md").read_text()


def test_a_report_that_fails_is_a_warning(sweep, capsys, wording):
    for run in sweep.iterdir():
        (run / "summary.json").write_text("{")
    assert summary.write_report(sweep, Console()) is None
    out = capsys.readouterr().out
    assert "summary.json: " in out and out.count("\n") == 1
    wording(out, "warning", volatile=r"(?<=/)[\w,=]+(?=/summary)")
    os.truncate(next(sweep.glob("*/metrics.jsonl")), 50_000_001)
    assert summary.write_report(sweep, Console()) is None
    assert f"\n  {command('compare', sweep, '--html', sweep / 'report.html')}\n" in capsys.readouterr().out
    assert not (sweep / "report.html").exists()


@pytest.mark.slow
def test_seeds_trained_through_the_command_line(corpus, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"name: s\nruns_dir: {tmp_path}/runs\nmodel: {{layers: 1, width: 8, heads: 1}}\n"
        f"data: {{path: {corpus}, context: 8, batch: 2}}\n"
        "train: {steps: 6, eval_every: 3, eval_batches: 1, unroll: 1}\nwatch: {every: 3}\nsweep: {seed: [0, 1]}\n"
    )
    assert main(["train", str(config)]) == 0
    assert "means over seeds in TensorBoard: NAME@mean, @low and @high of 'main'" in capsys.readouterr().out
    root = tmp_path / "runs" / "s"
    seeds = [read_run(root / f"main,seed={seed}").steps for seed in (0, 1)]
    mean = scalars_of(root / "main@mean")
    for tag in ("loss/train", "loss/val", "gain/layer_000"):
        expected = np.mean([steps[tag][1] for steps in seeds], axis=0)
        assert list(mean[tag]) == seeds[0][tag][0].tolist()
        np.testing.assert_allclose(list(mean[tag].values()), expected, rtol=1e-6)
