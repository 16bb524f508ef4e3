"""Whole runs through the command line: what they leave, and what a stop and a crash do not change."""

import errno
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.files import replacing
from runs import arrays, bytes_needed, contents, events_of, flip, killed_at, rows, summary, train_until
from scripts.faults.injection import Disk, injected
from train.cli import main
from train.config.load import load
from train.device.signals import Stop
from train.log.console import Console
from train.report.read import Run, read_run
from train.run.experiment import train
from train.run.summary import unmet
from train.store import tensors
from train.store.checkpoint import Checkpoints
from train.store.rundir import read_config

# What a run leaves


def test_the_run_directory(trained):
    config, run = trained
    for variant in load(config).variants:
        folder = run.parent / variant.name
        names = {path.name for path in folder.iterdir()}
        events = {name for name in names if name.startswith("events.out.tfevents.")}
        of_a_start = {"config.yaml", "tokenizer.json", "data.json", "choices.json"}
        assert names - events == of_a_start | {"metrics.jsonl", "summary.json", "ckpt"}
        assert len(events) == (2 if variant.name == "with" else 1)  # the finding has a file of its own
        assert sorted(path.name for path in (folder / "ckpt").iterdir()) == [
            "00000020.safetensors",
            "00000040.safetensors",
        ]
        assert read_config(folder) == variant.config
        assert read_run(folder).name == variant.name
    reports = ["report.html", "report.md"]
    assert sorted(path.name for path in run.parent.iterdir()) == [*reports, "with", "without_skip"]


def test_the_summary(trained):
    config, run = trained
    for variant in load(config).variants:
        folder = run.parent / variant.name
        end, logged = summary(folder), rows(folder)
        assert end.keys() >= {
            *("variant", "steps", "tokens", "loss_first", "loss_train", "loss_val", "best_val", "steps_per_s"),
            *("tokens_per_s", "compile_s", "seconds_to_first_step", "wall_s", "peak_bytes", "mfu", "platform"),
            *("versions", "verdict", "exit_reason"),
        }
        assert (end["variant"], end["steps"], end["tokens"]) == (variant.name, 40, 40 * 32)
        assert end["exit_reason"] == "done"
        assert end["loss_first"] == logged[5]["loss/train"] and end["loss_train"] == logged[40]["loss/train"]
        held_out = [logged[step]["loss/val"] for step in (0, 20, 40)]
        assert end["loss_val"] == held_out[-1] and end["best_val"] == min(held_out)
        assert held_out[-1] < held_out[0] - 0.1
        assert end["tokens_per_s"] == pytest.approx(32 * end["steps_per_s"])
        assert 0 < end["compile_s"] < end["wall_s"] and end["peak_bytes"] > 2**20
        assert end["seconds_to_first_step"] > end["compile_s"]
        assert end["verdict"]["state"] == "healthy" and {"jax", "jaxlib", "flax"} <= end["versions"].keys()
        assert "cpu" in end["platform"]


def test_the_finding_is_in_tensorboard_once_also_if_the_training_was_killed_before_it(trained, capsys):
    config, run = trained
    (written,) = run.glob("events.out.tfevents.*.finding_*")
    written.write_bytes(b"")  # killed while it was written
    for _ in range(2):
        assert main(["train", str(config)]) == 0  # finished before
    written.unlink()
    (event,) = events_of(run).Tensors("finding")
    sentences = event.tensor_proto.string_val[0].decode().split("\n\n")
    assert event.step == 40 and "\n".join(("", *sentences, "")) in capsys.readouterr().out and len(sentences) > 1
    assert "finding" not in events_of(run.parent / "without_skip").Tags()["tensors"]


@pytest.mark.slow
def test_a_finding_that_cannot_be_written_is_a_warning(trained, tmp_path, capsys, wording):
    class Full(Disk):
        def do(self, call, real, half):
            if ".finding_" in call.path:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real()

    with injected(Full(str(tmp_path))):
        assert main(["train", str(trained[0]), f"runs_dir={tmp_path}", "variants={}", "model.layers=1"]) == 0
    out = capsys.readouterr().out
    before, _, _ = out.partition("\nTensorBoard: ")
    assert before != out and os.strerror(errno.ENOSPC) in before.splitlines()[-1]
    wording(before.splitlines()[-1], "warning")


# Promises, and a run that is there already


@pytest.mark.parametrize(
    ("promise", "code", "broken"),
    [
        ("{}", 0, None),
        ("{with: {loss/val: [0, 10], verdict: healthy}, without_skip: {ratio: [0.01, 100]}}", 0, None),
        ("{with: {loss/val: [0, 0.5]}}", 1, "with: loss/val"),
        ("{without_skip: {verdict: vanishing}}", 1, "without_skip: verdict"),
    ],
    ids=["none", "kept", "loss", "verdict"],
)
def test_a_finished_run_trains_nothing_and_keeps_its_promises(trained, capsys, promise, code, broken, wording):
    config, run = trained
    before = contents(run.parent)
    assert main(["train", str(config), f"expect={promise}"]) == code
    out, err = capsys.readouterr()
    assert "with, without_skip: finished before; nothing to do" in out and err == ""
    warnings = [line for line in out.splitlines() if "expect" in line]
    assert len(warnings) == code
    for line in warnings:
        wording(line, f"warning: expect: {broken}", volatile=r"(?<=got 2\.)\d+")
    assert contents(run.parent) == before


def test_a_promise_may_be_about_any_logged_tag():
    series = {tag: (np.array([8]), np.array([x])) for tag, x in (("perplexity/val", 7.4), ("delta/norm_log10/a", -2.0))}
    logged = {"a": Run("a", Path("a"), {}, {}, series)}
    promises = {"perplexity/val": [7, 8], "delta/norm_log10/a": [-1, 0], "loss/vall": [1, 3], "loss/val": [1, 3]}
    done = {"variant": "a", "loss_val": 2.0, "verdict": {"state": "healthy"}}
    assert unmet({"a": promises}, [done], logged) == [
        "a: delta/norm_log10/a: expected between -1 and 0, got -2.0",
        "a: loss/vall: was never logged; did you mean loss/val?",
    ]
    assert unmet({"b": {"loss/val": [0, 1]}}, [done], logged) == []
    # The last figures of a run that a bad step has stopped are not those of its end.
    stopped = {"variant": "a", "loss_val": None, "verdict": None, "exit_reason": "nonfinite"}
    assert unmet({"a": {"perplexity/val": [7, 8], "loss/val": [0, 9]}}, [stopped], logged) == [
        "a: perplexity/val: expected between 7 and 8, got None",
        "a: loss/val: expected between 0 and 9, got None",
    ]


# Stops and crashes


@pytest.fixture(scope="module")
def interrupted(trained, tmp_path_factory, shared_programs):
    """The run of `trained` in another folder: stopped by a signal, resumed, killed, resumed, and finished.

    Returns (its folder, the steps of the checkpoints after each start).
    """
    root, saved = tmp_path_factory.mktemp("interrupted"), []
    begin = (trained[0], f"runs_dir={root}")

    def stop_it(stop: Stop) -> None:
        assert [*rows(root / "tiny" / "with")] == [
            0
        ]  # the log of a dispatch is in the file when the next one has ended
        stop.signal = signal.SIGTERM

    def stopped() -> None:
        outcome = train_until(10, *begin, action=stop_it)
        assert {end["exit_reason"] for end in outcome.summaries} == {f"signal {signal.SIGTERM}"}

    for trial in (stopped, lambda: killed_at(30, *begin), lambda: main(["train", *map(str, begin)])):
        trial()
        saved.append(Checkpoints(root / "tiny" / "with").steps())
    return root / "tiny", saved


@pytest.mark.slow
def test_a_signal_stops_after_the_dispatch(interrupted):
    _, saved = interrupted
    (stopped_at,) = saved[0]
    assert 10 <= stopped_at < 20 and stopped_at % 5 == 0
    assert saved[1] == [stopped_at, 20] and saved[2] == [stopped_at, 20, 40]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["with", "without_skip"])
def test_an_interrupted_run_is_what_an_unbroken_one_is(trained, interrupted, variant):
    """Its log byte by byte, but for perf/*: no step is missing, none is there twice, no figure differs. Its weights."""

    def text(folder: Path) -> str:
        raw = (folder / variant / "metrics.jsonl").read_text(encoding="utf-8")
        return re.sub(r',"perf/\w+":[^,}]+', "", raw)

    roots = (trained[1].parent, interrupted[0])
    assert text(roots[0]) == text(roots[1]) and '"perf/' not in text(roots[0])
    assert len(arrays(roots[0] / variant, 40)) > 20
    assert arrays(roots[0] / variant, 40) == arrays(roots[1] / variant, 40)
    one, other = (summary(root / variant) for root in roots)
    for key in ("steps", "tokens", "loss_first", "loss_train", "loss_val", "best_val", "verdict", "exit_reason"):
        assert one[key] == other[key], key


@pytest.mark.slow
def test_the_seconds_of_earlier_processes_count(trained, interrupted, tmp_path):
    config, name = trained[0], "with"
    shutil.copytree(interrupted[0] / name, tmp_path / "tiny" / name)
    checkpoints = Checkpoints(tmp_path / "tiny" / name)
    checkpoints.path(40).unlink()
    (tmp_path / "tiny" / name / "summary.json").unlink()
    header = checkpoints.header(20)
    before = 1000.0 + header.meta["wall_s"]

    header = replace(header, meta=header.meta | {"wall_s": before})
    with replacing(checkpoints.path(20)) as file:
        tensors.write(file, checkpoints.arrays(20), header.as_text())
    assert main(["train", str(config), f"runs_dir={tmp_path}", f"variants={{{name}: {{}}}}"]) == 0
    assert before < checkpoints.header(40).meta["wall_s"] < summary(tmp_path / "tiny" / name)["wall_s"] < before + 500


# Other ways to compute the same


@pytest.mark.slow
def test_a_corpus_on_the_host_gives_the_same_losses(trained, tmp_path, monkeypatch, capsys):
    config, run = trained
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "cache"))
    assert main(["train", str(config), f"runs_dir={tmp_path}", "data.placement=host", "variants={with: {}}"]) == 0
    assert "on the host" in capsys.readouterr().out
    device, host = rows(run), rows(tmp_path / "tiny" / "with")
    assert host.keys() == device.keys()
    for step, row in host.items():
        # Two programs, which a compiler may round differently; training makes that grow, with some processors to 2e-5.
        tolerance = 1e-5 if step <= 10 else 1e-4
        for tag, value in row.items():
            assert value == pytest.approx(device[step][tag], rel=tolerance, abs=tolerance), (step, tag)


@pytest.mark.slow
def test_a_vmapped_sweep_is_stopped_resumed_and_equal_to_its_variants_alone(trained, tmp_path):
    config, run = trained
    keys = [f"runs_dir={tmp_path}", "train.group=vmap", "sweep={seed: [0, 7]}"]
    train_until(10, config, *keys, action=lambda stop: setattr(stop, "signal", signal.SIGINT))
    names = ["with,seed=0", "with,seed=7", "without_skip,seed=0", "without_skip,seed=7"]
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == names
    for name in names:
        stopped = summary(tmp_path / "tiny" / name)
        saved = max(Checkpoints(tmp_path / "tiny" / name).steps())
        assert (stopped["steps"], stopped["exit_reason"]) == (saved, f"signal {signal.SIGINT}")
    assert main(["train", str(config), *keys]) == 0
    for name in names:
        logged, alone = rows(tmp_path / "tiny" / name), rows(run.parent / name.split(",")[0])
        assert logged.keys() == alone.keys()
        losses = [[row["loss/train"] for step, row in x.items() if step] for x in (logged, alone)]
        if name.endswith("=0"):
            np.testing.assert_allclose(losses[0], losses[1], rtol=2e-6)
        else:
            assert np.abs(np.subtract(losses[0], losses[1])).max() > 1e-2
        assert read_config(tmp_path / "tiny" / name).data.seed == int(name[-1])


@pytest.mark.slow
def test_a_grid_in_waves_is_equal_to_one_group_and_goes_on_on_a_day_with_more_memory(
    trained, tmp_path, device_memory, monkeypatch, capsys
):
    config, _ = trained
    keys = ["train.group=vmap", "sweep={seed: [0, 7]}"]
    capsys.readouterr()
    assert main(["train", str(config), f"runs_dir={tmp_path}/one", *keys]) == 0
    free = int(0.8 * bytes_needed(capsys.readouterr().out))
    device_memory(free)
    assert main(["train", str(config), f"runs_dir={tmp_path}/waves", *keys]) == 0
    line = "4 variants do not fit in memory; they train in 2 waves of 2\n"
    assert line in capsys.readouterr().out
    keys.append(f"runs_dir={tmp_path}/resumed")
    train_until(10, config, *keys, action=lambda stop: setattr(stop, "signal", signal.SIGINT))
    names = ["with,seed=0", "with,seed=7", "without_skip,seed=0", "without_skip,seed=7"]
    assert [(tmp_path / "resumed" / "tiny" / name).exists() for name in names] == [True, True, False, False]
    monkeypatch.undo()
    assert main(["train", str(config), *keys]) == 0
    out = capsys.readouterr().out
    assert out.count(line) == 1 and "resuming at step 15 of 40" in out
    for name in names:
        one, *others = (rows(tmp_path / folder / "tiny" / name) for folder in ("one", "waves", "resumed"))
        for logged in others:
            assert logged.keys() == one.keys()
            for step, row in one.items():
                assert row.keys() == logged[step].keys()
                assert logged[step].get("loss/train", 0) == pytest.approx(row.get("loss/train", 0), rel=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["turn", "vmap"])
def test_the_time_left_is_that_of_all_groups(tiny, tmp_path, group):
    """At 2 s a call: the rest of this group, and the compilation and all steps of the one after it, half as large."""
    estimates: list[tuple[str, int, float]] = []

    class Told(Console):
        now = 0.0

        def progress(self, variant, step, steps, loss, tokens_per_s=None, left_s=None, delta_log10=None) -> None:
            assert delta_log10 is not None and delta_log10.shape == (3,)
            if left_s is not None:
                estimates.append((variant, step, left_s))
            self.now += {"a": calls, "b": 0, "c": 1}[variant] * 5 * 2.0

        def compiling(self, variants) -> None:
            self.now += 7.0

    console, calls = Told(), 1 if group == "vmap" else 2
    variants = {"a": {}, "b": {"seed": 1}, "c": {"model.norm": "layer"}}
    keys = {"runs_dir": str(tmp_path), "train.group": group, "train.steps_per_call": 5}
    experiment = tiny(keys | {"variants": variants})
    train(experiment, console, Stop(), clock=lambda: console.now)
    assert {name for name, _, _ in estimates} == set(variants)
    for name, step, left in estimates:
        rest = 2.0 * (30 - step)
        assert left == pytest.approx(rest if name == "c" else calls * rest + 7.0 + calls * 2.0 * 30 / 2)


# Damage


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """The finished run of two variants, in a folder of this test."""
    return Path(shutil.copytree(trained[1].parent, tmp_path / "runs" / "tiny"))


def test_readers_of_a_run_go_back_and_say_so(trained, copied, capsys, wording):
    flip(Checkpoints(copied / "with").path(40), 700)
    assert main(["sample", str(copied / "with"), "--top", "3"]) == 0
    out = capsys.readouterr()
    assert out.err.count("\n") == 1
    wording(out.err, f"warning: {copied}/with/ckpt")
    flip(Checkpoints(copied / "with").path(20), 700)
    # The other variant is not touched, and nothing is begun before all is looked at.
    for key, *arguments in (
        ("", "sample", str(copied / "with")),
        ("", "probe", str(trained[0]), "--checkpoint", str(copied / "with"), "variants={with: {}}"),
        (
            "command line: train.init_from: ",
            *("train", str(trained[0]), f"runs_dir={copied.parents[0]}", "name=new"),
            f"train.init_from={copied / 'with'}",
        ),
        ("", "train", str(trained[0]), f"runs_dir={copied.parents[0]}"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        wording(err, f"{key}{copied}/with/ckpt")
    assert not (copied.parents[0] / "new").exists()
