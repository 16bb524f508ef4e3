"""A run that was stopped and started again logs and learns what an unbroken one does."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from train.cli import main
from train.config.load import Experiment, load
from train.core.state import State, hparams_of, initial_state
from train.device import platform as platforms
from train.device.signals import Stop
from train.disk import write_json
from train.errors import UserError
from train.log.console import Console
from train.run import experiment as experiments
from train.run.dispatches import steps_per_call
from train.run.loop import GroupRun
from train.run.start import resumable_parts
from train.store.checkpoint import Checkpoints
from train.store.rundir import directory_of

CONFIG = """
name: tiny
model: {layers: 2, width: 16, heads: 2, dropout: 0.1}
data: {path: corpus.txt, context: 8, batch: 4}
optimizer: {lr: 1e-2, min_lr: 1e-3, warmup: 3}
train: {steps: 12, eval_every: 4, eval_batches: 2, checkpoint_every: 4, steps_per_call: 2, unroll: 1}
watch: {every: 4}
variants:
  with: {}
  without: {model.residual: none}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a config, a corpus, and an unbroken run in `whole`."""
    path = tmp_path_factory.mktemp("resume")
    (path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    (path / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["train", "tiny.yaml", "runs_dir=whole"]) == 0
    return path


def rows(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]


def final_state(experiment: Experiment, run: Path) -> list[np.ndarray]:
    config = next(v.config for v in experiment.variants if v.name == run.name)
    platform = platforms.select(config.train)
    datasets = experiments.open_all(experiment.variants)
    group = experiments.build_group(experiment.variants[:1], next(iter(datasets.values())).form, platform)
    like = jax.eval_shape(lambda hp: initial_state(group.network, config, hp), hparams_of(config))
    checkpoints = Checkpoints(run)
    return [
        np.asarray(leaf)
        for leaf in jax.tree.leaves(checkpoints.restore(checkpoints.steps()[-1], like, platform.device))
    ]


def test_each_step_has_one_row(folder):
    for variant in ("with", "without"):
        assert [row["step"] for row in rows(folder / "whole" / "tiny" / variant)] == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("kept", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_run_cut_back_to_a_checkpoint_ends_the_same(folder, monkeypatch, kept):
    """As after a crash: later checkpoints are gone, and the log holds more than the checkpoint knows."""
    monkeypatch.chdir(folder)
    cut = Path(f"cut{kept}")
    shutil.copytree("whole", cut)
    for variant in ("with", "without"):
        run = cut / "tiny" / variant
        (run / "summary.json").unlink()
        for step in Checkpoints(run).steps():
            if step > kept:
                Checkpoints(run).path(step).unlink()
        with open(run / "metrics.jsonl", "a") as file:
            file.write('{"step": 13, "loss/tr')
    assert main(["train", "tiny.yaml", f"runs_dir={cut}"]) == 0
    experiment = load("tiny.yaml")
    for variant in ("with", "without"):
        assert rows(cut / "tiny" / variant) == rows(Path("whole") / "tiny" / variant)
        whole = final_state(experiment, Path("whole") / "tiny" / variant)
        for a, b in zip(final_state(experiment, cut / "tiny" / variant), whole, strict=True):
            np.testing.assert_array_equal(a, b)
        verdicts = [
            json.loads((Path(d) / "tiny" / variant / "summary.json").read_text())["verdict"] for d in (cut, "whole")
        ]
        assert verdicts[0] == verdicts[1]


def test_a_stop_saves_where_it_is_and_the_rest_follows(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    experiment = load("tiny.yaml", ["runs_dir=stopped"])
    stop = Stop()
    log = GroupRun.log_dispatch

    def stop_after_the_first(self, start, end, results):
        log(self, start, end, results)
        stop.signal = 15

    monkeypatch.setattr(GroupRun, "log_dispatch", stop_after_the_first)
    experiments.train(experiment, Console(), stop)
    assert stop.exit_code == 143
    at = Checkpoints(Path("stopped/tiny/with")).steps()
    assert len(at) == 1 and 0 < at[0] < 12 and at[0] % 2 == 0
    monkeypatch.setattr(GroupRun, "log_dispatch", log)
    assert main(["train", "tiny.yaml", "runs_dir=stopped"]) == 0
    assert f"resuming at step {at[0]} of 12" in capsys.readouterr().out
    for variant in ("with", "without"):
        # The evaluation at the step of the stop is the same one, so every row is.
        assert rows(Path("stopped/tiny") / variant) == rows(Path("whole/tiny") / variant)


def test_a_finished_run_is_left_alone(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in Path("whole").rglob("metrics.jsonl")}
    assert main(["train", "tiny.yaml", "runs_dir=whole"]) == 0
    assert "finished before" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in Path("whole").rglob("metrics.jsonl")}


def test_another_config_is_refused_and_named(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["train", "tiny.yaml", "runs_dir=whole", "optimizer.lr=5e-3"]) == 1
    assert "optimizer.lr: 0.01 there, 0.005 here" in capsys.readouterr().err


@pytest.mark.slow
def test_host_and_device_corpora_train_alike(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DELTAFLOW_CACHE", str(folder / "cache"))
    assert main(["train", "tiny.yaml", "runs_dir=host", "data.placement=host"]) == 0
    for variant in ("with", "without"):
        a, b = rows(Path("host/tiny") / variant), rows(Path("whole/tiny") / variant)
        assert [row["step"] for row in a] == [row["step"] for row in b]
        for tag in ("loss/train", "loss/val"):
            np.testing.assert_allclose(
                [row[tag] for row in a if tag in row], [row[tag] for row in b if tag in row], rtol=1e-6
            )


def test_a_broken_promise_is_exit_code_1(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    promise = "expect={with: {loss/val: [0.0, 0.1]}}"
    assert main(["train", "tiny.yaml", "runs_dir=whole", promise]) == 1
    assert "with: loss/val: expected between 0.0 and 0.1" in "".join(capsys.readouterr())


def test_a_checkpoint_that_cannot_be_read_is_one_line(folder, tmp_path):
    shutil.copytree(folder / "whole" / "tiny" / "with", tmp_path / "with")
    os.truncate(Checkpoints(tmp_path / "with").path(12), 5000)
    with pytest.raises(UserError, match="00000012.*cannot restore") as caught:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            final_state(load("tiny.yaml"), tmp_path / "with")
    assert "\n" not in str(caught.value)


def test_a_variant_added_later_leaves_the_finished_ones_alone(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    shutil.copytree("whole", tmp_path / "runs")
    before = rows(tmp_path / "runs" / "tiny" / "with")
    assert main(["train", "tiny.yaml", f"runs_dir={tmp_path}/runs", "variants.late={optimizer.lr: 2e-2}"]) == 0
    assert "with, without: finished before; nothing to do" in capsys.readouterr().out
    assert rows(tmp_path / "runs" / "tiny" / "with") == before
    assert rows(tmp_path / "runs" / "tiny" / "late")[-1]["step"] == 12


def test_those_go_on_together_that_were_stopped_together(folder, tmp_path):
    experiment = load(folder / "tiny.yaml", [f"runs_dir={tmp_path}", "sweep={seed: [0, 1, 2, 3]}", "variants={}"])
    for variant, steps in zip(experiment.variants, ([4, 8], [4], [12, 16, 20], []), strict=True):
        for step in steps:
            Checkpoints(directory_of(variant)).save(State({"w": np.zeros(1)}, (), np.int32(step)), {})
    seeds = [[variant.config.seed for variant in part] for part in resumable_parts(experiment.variants)]
    assert seeds == [[2], [0, 1], [3]]
    done = {"variant": "main,seed=3", "steps": 12, "verdict": None, "first_nonfinite_step": None, "exit_reason": "done"}
    write_json(directory_of(experiment.variants[3]) / "summary.json", done)
    write_json(directory_of(experiment.variants[1]) / "summary.json", {"exit_reason": "signal 2"})
    seeds = [[variant.config.seed for variant in part] for part in resumable_parts(experiment.variants)]
    assert seeds == [[3], [2], [0, 1]]


def test_what_one_variant_has_saved_is_not_taken_back_for_another(folder, tmp_path):
    """One that a bad step stopped without a checkpoint, beside one that is to go on with more steps and other saves."""
    keys = [f"runs_dir={tmp_path}", "sweep={seed: [0, 1]}", "variants={}"]
    good, bad = load(folder / "tiny.yaml", keys).variants
    for variant, steps, reason in ((good, [8], "done"), (bad, [], "nonfinite")):
        for step in steps:
            Checkpoints(directory_of(variant)).save(State({"w": np.zeros(1)}, (), np.int32(step)), {})
        summary = {"variant": variant.name, "steps": 8, "verdict": None, "first_nonfinite_step": None}
        directory_of(variant).mkdir(parents=True, exist_ok=True)
        write_json(directory_of(variant) / "summary.json", summary | {"exit_reason": reason})
    longer = load(folder / "tiny.yaml", [*keys, "train.steps=80", "train.checkpoint_every=40", "train.eval_every=40"])
    parts = resumable_parts(longer.variants)
    assert [[variant.config.seed for variant in part] for part in parts] == [[0], [1]]


def test_checkpoints_of_an_earlier_version_are_not_trained_over(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    old = tmp_path / "tiny" / "with" / "ckpt" / "00000004"
    old.mkdir(parents=True)
    assert main(["train", "tiny.yaml", f"runs_dir={tmp_path}"]) == 1
    assert "has checkpoints of an earlier version" in capsys.readouterr().err and old.is_dir()


@pytest.mark.slow
def test_a_start_that_failed_makes_room_and_leaves_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    arguments = ["train", "tiny.yaml", f"runs_dir={tmp_path}/runs", "train.steps=4", "variants={}"]
    assert main([*arguments, "train.init_from=whole/tiny/nobody"]) == 1
    assert "nobody" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    # What an older version, or a crash while compiling, has left there.
    (tmp_path / "runs" / "tiny" / "main").mkdir(parents=True)
    shutil.copy("whole/tiny/with/config.yaml", tmp_path / "runs" / "tiny" / "main")
    assert main(arguments) == 0
    assert rows(tmp_path / "runs" / "tiny" / "main")[-1]["step"] == 4


@pytest.mark.slow
def test_a_run_whose_loss_is_no_number_says_so_and_keeps_no_promise(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    diverging = ["variants={}", "optimizer={name: sgd, lr: 1e30, min_lr: 1e30, warmup: 0, clip: null}"]
    promise = "expect={main: {loss/val: [0, 100], accuracy/val: [0, 1]}}"
    assert main(["train", "tiny.yaml", f"runs_dir={tmp_path}/runs", "train.steps=8", *diverging, promise]) == 1
    out = "".join(capsys.readouterr())
    assert "main: stopped by a step that is not finite, step" in out and "loss/val: expected" in out
    summary = json.loads((tmp_path / "runs" / "tiny" / "main" / "summary.json").read_text())
    assert summary["exit_reason"] == "nonfinite" and summary["loss_val"] is None
    assert 0 < summary["first_nonfinite_step"] <= 8 and summary["best_val"] > 0


def test_to_evaluate_or_to_save_never_takes_no_time(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    never = [f"train.{key}={10**9}" for key in ("eval_every", "checkpoint_every")]
    arguments = ["tiny.yaml", f"runs_dir={tmp_path}", "train.steps_per_call=auto", "watch.every=0", *never]
    config = load(arguments[0], arguments[1:]).variants[0].config
    assert steps_per_call(config, 1e-9) == 10  # the most of a hundred, and of the 12 steps, that divides a billion
