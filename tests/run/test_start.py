"""The start of a run that is there already: its own config and data, and the newest checkpoint that is whole."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from runs import TEXT, Terminal, arrays, contents, cut_back, damage, rows, same, summary
from train.cli import main
from train.config.load import load
from train.device import platform as platforms
from train.device.signals import Stop
from train.log.console import Console
from train.run import experiment
from train.run.dispatches import Throughput
from train.store.checkpoint import Checkpoints


def warning_of(out: str) -> str:
    """The only warning of a training."""
    (line,) = (line for line in out.splitlines() if line.startswith("warning: "))
    return line


# The newest whole checkpoint


def test_a_finished_run_with_a_damaged_end_gets_it_back_bit_for_bit(run, original, train, wording):
    damage(run, 12)
    code, out, err = train()
    assert (code, err) == (0, "") and "resuming at step 8 of 12" in out
    assert re.search(r"\n  memory +estimated [\d.]+ [kM]B( of .*)?\n", out)
    wording(warning_of(out), "warning: runs/tiny/main/ckpt")
    assert same(run, original)
    assert [path.name[:8] for path in sorted((run / "ckpt").iterdir())] == ["00000004", "00000008", "00000012"]
    assert "finished before; nothing to do" in train()[1]


def test_a_run_that_is_cut_back_twice_ends_bit_for_bit_the_same(run, original, train):
    cut_back(run)
    damage(run, 8)
    leftover = run / "ckpt" / ".00000012.safetensors.0123abcd.tmp"
    leftover.write_bytes(b"x")
    code, out, _ = train()
    assert code == 0 and "resuming at step 4 of 12" in out
    assert same(run, original) and not leftover.exists() and not (run / ".lock").exists()


def test_a_run_that_was_killed_before_its_first_save_says_that_it_starts_over(run, original, train):
    cut_back(run, 0)
    code, out, err = train()
    assert (code, err) == (0, "") and "stopped before the first save of all variants: starting over at step 0" in out
    assert same(run, original)
    assert "starting over" not in train("name=other")[1]


def test_a_run_is_never_started_over_when_all_is_damaged(run, train, wording):
    (run / "summary.json").unlink()
    for step in (4, 8, 12):
        damage(run, step)
    before = contents(run)
    code, _, err = train()
    assert code == 2 and err.count("\n") == 1
    wording(err, "runs/tiny/main/ckpt")
    assert before == contents(run)


def test_an_interrupt_during_set_up_stays_one_when_the_run_is_damaged(run, capsys):
    (run / "summary.json").unlink()
    for step in (4, 8, 12):
        damage(run, step)

    class Interrupted(Console):
        def block(self, title, rows) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.train(load("tiny.yaml"), Interrupted(), Stop())
    assert capsys.readouterr().out == "nothing saved: main cannot be resumed\n"


def test_a_finished_run_whose_checkpoints_were_deleted_is_finished(run, train, capsys, wording):
    shutil.rmtree(run / "ckpt")
    before = contents(run)
    assert "finished before; nothing to do" in train()[1] and contents(run) == before
    assert main(["sample", str(run)]) == 2
    wording(capsys.readouterr().err, "runs/tiny/main")
    code, _, err = train("train.steps=20")
    assert code == 2
    wording(err, "runs/tiny/main")
    assert contents(run) == before
    (run / "metrics.jsonl").unlink()
    before = contents(run)
    code, out, _ = train()
    assert code == 0 and "finished before; nothing to do" in out and contents(run) == before
    code, _, err = train("model.width=16")
    assert code == 2
    wording(err, "runs/tiny/main")


def test_the_log_of_a_run_without_a_checkpoint_starts_over(run, original, train):
    """Killed before its first save."""
    cut_back(run)
    shutil.rmtree(run / "ckpt")
    code, out, _ = train()
    assert code == 0 and "resuming" not in out
    assert same(run, original) and [*rows(run)] == [0, 4, 8, 12]


def test_checkpoints_of_an_earlier_version_are_not_trained_over(run, train, wording):
    old = Path("runs/old/main/ckpt/00000004")
    old.mkdir(parents=True)
    code, _, err = train("name=old")
    assert code == 2 and old.is_dir()
    wording(err, "runs/old")


def test_a_start_that_failed_makes_room_and_leaves_nothing(run, train, wording):
    code, _, err = train("name=failed", "train.init_from=runs/tiny/absent")
    assert code == 2 and not Path("runs/failed").exists()
    wording(err, "command line: train.init_from")
    # What an older version, or a crash while compiling, has left there.
    Path("runs/failed/main").mkdir(parents=True)
    shutil.copy(run / "config.yaml", "runs/failed/main")
    Path("runs/failed/main/data.json").write_text('{"sha256": "00", "source": "other"}')
    assert train("name=failed")[0] == 0 and [*rows(Path("runs/failed/main"))] == [0, 4, 8, 12]


@pytest.mark.slow
def test_a_start_that_does_not_fit_leaves_the_run_as_it_was(run, train, device_memory, wording):
    cut_back(run)
    before = contents(run)
    device_memory(30_000)  # enough for the states
    code, _, err = train("train.eval_batches=2")
    assert code == 1 and " 0 bytes" not in err and err.count("\n") == 1
    wording(err, volatile=r"[\d.]+(?= [kM]?B)|(?<=accumulate=)\d+")
    assert contents(run) == before


# Other data


def test_other_data_is_refused_or_allowed_and_remembered(run, original, train, wording):
    cut_back(run)
    Path("corpus.txt").write_text(TEXT[::-1] * 20)
    before = contents(run)
    code, _, err = train()
    assert code == 2 and "--allow-data-change" in err and err.count("\n") == 1
    wording(err, "runs/tiny/main")
    assert contents(run) == before
    code, out, err = train("--allow-data-change")
    assert (code, err) == (0, "")
    wording(warning_of(out), "warning: runs/tiny/main")
    now, old = (json.loads((folder / "data.json").read_text()) for folder in (run, original / run))
    assert now["before"] == [old | {"until_step": 8}] and now["sha256"] != old["sha256"]
    assert Checkpoints(run).header(12).provenance["data"] == now["sha256"]
    assert arrays(run) != arrays(original / run)  # it was trained on something else
    cut_back(run)  # back to before the change
    assert train()[0] == 0
    Path("corpus.txt").write_text(TEXT * 20)
    code, out, _ = train("--allow-data-change")  # of a finished run nothing changes any more
    assert code == 0 and "finished before" in out and len(json.loads((run / "data.json").read_text())["before"]) == 1


def test_data_whose_tokens_mean_something_else_is_always_refused(run, train, wording):
    cut_back(run)
    Path("corpus.txt").write_text(TEXT.upper() * 20)
    before = contents(run)
    code, _, err = train("--allow-data-change")
    assert code == 2 and err.count("\n") == 1
    wording(err, "runs/tiny/main")
    assert contents(run) == before


def test_a_data_json_that_was_deleted_hides_nothing(run, train, wording):
    cut_back(run)
    (run / "data.json").unlink()
    Path("corpus.txt").write_text(TEXT[::-1] * 20)
    code, _, err = train()
    assert code == 2
    wording(err, "runs/tiny/main/ckpt/00000008.safetensors")


# Groups


@pytest.mark.slow
def test_a_variant_added_later_leaves_the_finished_ones_alone(run, train):
    before = contents(run)
    code, out, _ = train("variants={main: {}, late: {optimizer.lr: 2e-2}}")
    assert code == 0 and "main: finished before; nothing to do" in out
    assert contents(run) == before and [*rows(run.parent / "late")] == [0, 4, 8, 12]


# The console and the summary


def test_the_bars_of_a_run_that_a_signal_stops_end_before_its_results(run, monkeypatch):
    monkeypatch.setenv("TERM", "linux")
    stream, stop = Terminal(), Stop()

    class Signalled(Console):
        def progress(self, *arguments, **more) -> None:
            super().progress(*arguments, **more)
            stop.signal = signal.SIGTERM

    with closing(Signalled(stream)) as console:
        experiment.train(load("tiny.yaml", ["name=signalled"]), console, stop)
    assert stream.getvalue().index("\x1b[?25h") < stream.getvalue().index("signalled: results")


@pytest.mark.slow
def test_training_goes_on_without_a_reader_of_its_output(run, wording):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    children = []
    for name, errors in (("stdout", subprocess.PIPE), ("both", subprocess.STDOUT)):
        command = [sys.executable, "-m", "train", "train", "tiny.yaml", f"name={name}"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        children.append((name, child))
    for name, child in children:
        with child:
            message = None if child.stderr is None else child.stderr.read()
        assert child.returncode == 0
        if message is not None:
            wording(message)
        assert summary(Path(f"runs/{name}/main"))["exit_reason"] == "done"


def test_a_closed_output_is_no_error(run):
    command = f'exec "{sys.executable}" -m train compare runs/tiny/main >&-'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_speed_is_that_of_one_variant_while_it_has_the_device():
    """Two are called in turn until one of them has stopped."""
    throughput = Throughput(clock=iter([0.0, 8.0, 16.0, 18.0]).__next__)
    assert [throughput.dispatch(4, calls) for calls in (2, 2, 2, 1)] == [None, 1.0, 1.0, 2.0]
    assert throughput.recent == throughput.call == 1.0


@pytest.mark.slow
def test_the_share_of_the_peak_that_a_long_training_reached(run):
    """FLOPs by hand: 6 a weight and token, 12 T D for the two products of attention."""
    assert summary(run)["mfu"] is None  # a short one measures no peak
    long = load("tiny.yaml", ["name=long", "train.eval_every=12", "train.checkpoint_every=12"])
    experiment.train(long, Console(), Stop(), clock=lambda: 1000 * time.perf_counter())
    long, peak = summary(Path("runs/long/main")), platforms.matmul_peak("float32")
    width, context, tokens, vocabulary = 8, 8, 32, len(set(TEXT))
    flops = tokens * (6 * (12 * width**2 + vocabulary * width) + 12 * context * width)
    assert long["mfu"] == pytest.approx(flops * long["steps_per_s"] / peak, rel=1e-9)
    lines = [json.loads(line) for line in Path("runs/long/main/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["perf/mfu"]) for line in lines if "perf/mfu" in line] == [(12, long["mfu"])]
