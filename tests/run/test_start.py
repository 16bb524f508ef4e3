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

import numpy as np
import pytest

from runs import Terminal, arrays, contents, flip, rows, summary
from train.cli import main
from train.config.load import load
from train.core.state import State
from train.device import memory
from train.device import platform as platforms
from train.device.signals import Stop
from train.disk import write_json
from train.log.console import Console
from train.run import experiment
from train.run.dispatches import Throughput
from train.run.start import finished_run, resumable_parts
from train.store import tensors
from train.store.checkpoint import Checkpoints
from train.store.rundir import directory_of

pytestmark = pytest.mark.usefixtures("shared_programs")
TEXT = "the quick brown fox jumps over the lazy dog. "
CONFIG = """
name: tiny
model: {layers: 1, width: 8, heads: 1, dropout: 0.1}
data: {path: corpus.txt, context: 8, batch: 4}
optimizer: {lr: 1e-2, min_lr: 1e-3, warmup: 2}
train: {steps: 12, eval_every: 4, eval_batches: 1, checkpoint_every: 4, steps_per_call: 4, unroll: 1}
watch: {every: 4, counterfactual: false}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_programs) -> Path:
    """A folder with tiny.yaml, corpus.txt, and its finished run in runs/. Copied, never changed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "corpus.txt").write_text(TEXT * 20)
    (folder / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def run(whole, tmp_path, monkeypatch) -> Path:
    """The run directory in a copy of that folder, which is the current one."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/tiny/main")


@pytest.fixture
def train(run, capsys):
    """Runs a command line; returns exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["train", "tiny.yaml", *arguments])
        return code, *capsys.readouterr()

    return call


def cut_back(run: Path, step: int = 8) -> None:
    """As after a kill behind `step`: the log holds more than the checkpoint knows."""
    (run / "summary.json").unlink()
    for newer in [there for there in Checkpoints(run).steps() if there > step]:
        Checkpoints(run).path(newer).unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "loss/tr')


def damage(run: Path, step: int) -> None:
    flip(Checkpoints(run).path(step), 4 * Checkpoints(run).path(step).stat().st_size)


def same(run: Path, whole: Path) -> bool:
    ends = [{key: summary(each)[key] for key in ("steps", "loss_val", "verdict")} for each in (run, whole / run)]
    return ends[0] == ends[1] and arrays(run) == arrays(whole / run) and rows(run) == rows(whole / run)


# The newest whole checkpoint


def test_a_finished_run_with_a_damaged_end_gets_it_back_bit_for_bit(run, whole, train):
    damage(run, 12)
    code, out, err = train()
    assert (code, err) == (0, "") and "resuming at step 8 of 12" in out
    assert re.search(r"\n  memory +estimated [\d.]+ [kM]B( of .*)?\n", out)
    assert out.count("\nwarning: runs/tiny/main/ckpt: resuming from step 8; skipped step 12: ") == 1
    assert same(run, whole)
    assert [path.name[:8] for path in sorted((run / "ckpt").iterdir())] == ["00000004", "00000008", "00000012"]
    assert "finished before; nothing to do" in train()[1]


def test_a_run_that_is_cut_back_twice_ends_bit_for_bit_the_same(run, whole, train):
    cut_back(run)
    damage(run, 8)
    leftover = run / "ckpt" / ".00000012.safetensors.0123abcd.tmp"
    leftover.write_bytes(b"x")
    code, out, _ = train()
    assert code == 0 and "resuming at step 4 of 12" in out
    assert same(run, whole) and not leftover.exists() and not (run / ".lock").exists()


def test_a_run_that_was_killed_before_its_first_save_says_that_it_starts_over(run, whole, train):
    cut_back(run, 0)
    code, out, err = train()
    assert (code, err) == (0, "") and "stopped before the first save of all variants: starting over at step 0" in out
    assert same(run, whole)
    assert "starting over" not in train("name=other")[1]


def test_a_run_is_never_started_over_when_all_is_damaged(run, train):
    (run / "summary.json").unlink()
    for step in (4, 8, 12):
        damage(run, step)
    before = contents(run)
    code, _, err = train()
    assert code == 2 and err.startswith("deltaflow: runs/tiny/main/ckpt: no checkpoint can be used (step 12: ")
    assert err.count("\n") == 1 and "delete what is there to start the run over" in err
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


def test_a_finished_run_whose_checkpoints_were_deleted_is_finished(run, train, capsys):
    shutil.rmtree(run / "ckpt")
    before = contents(run)
    assert "finished before; nothing to do" in train()[1] and contents(run) == before
    assert main(["sample", str(run)]) == 2
    assert capsys.readouterr().err.startswith("deltaflow: runs/tiny/main: no checkpoint in ")
    code, _, err = train("train.steps=20")
    assert code == 2 and "was finished at step 12, and has no checkpoint to go on from" in err
    assert contents(run) == before
    (run / "metrics.jsonl").unlink()
    before = contents(run)
    code, out, _ = train()
    assert code == 0 and "finished before; nothing to do" in out and contents(run) == before
    code, _, err = train("model.width=16")
    assert code == 2 and "holds a run of another config (model.width: 8 there, 16 here)" in err


def test_the_log_of_a_run_without_a_checkpoint_starts_over(run, whole, train):
    """Killed before its first save."""
    cut_back(run)
    shutil.rmtree(run / "ckpt")
    code, out, _ = train()
    assert code == 0 and "resuming" not in out
    assert same(run, whole) and [*rows(run)] == [0, 4, 8, 12]


def test_checkpoints_of_an_earlier_version_are_not_trained_over(run, train):
    old = Path("runs/old/main/ckpt/00000004")
    old.mkdir(parents=True)
    code, _, err = train("name=old")
    assert code == 2 and "has checkpoints of an earlier version" in err and old.is_dir()


def test_a_start_that_failed_makes_room_and_leaves_nothing(run, train):
    code, _, err = train("name=failed", "train.init_from=runs/tiny/absent")
    assert code == 2 and "absent" in err and not Path("runs/failed").exists()
    # What an older version, or a crash while compiling, has left there.
    Path("runs/failed/main").mkdir(parents=True)
    shutil.copy(run / "config.yaml", "runs/failed/main")
    Path("runs/failed/main/data.json").write_text('{"sha256": "00", "source": "other"}')
    assert train("name=failed")[0] == 0 and [*rows(Path("runs/failed/main"))] == [0, 4, 8, 12]


@pytest.mark.slow
def test_a_start_that_does_not_fit_leaves_the_run_as_it_was(run, train, monkeypatch):
    cut_back(run)
    before = contents(run)
    monkeypatch.setattr(memory, "available_memory", lambda platform: 30_000)  # enough for the states
    code, _, err = train("train.eval_batches=2")
    assert code == 1 and "not enough memory" in err and "0 bytes for a step" not in err and err.count("\n") == 1
    assert contents(run) == before


# Other data


def test_other_data_is_refused_or_allowed_and_remembered(run, whole, train):
    cut_back(run)
    Path("corpus.txt").write_text(TEXT[::-1] * 20)
    before = contents(run)
    code, _, err = train()
    assert code == 2 and "was trained on other data" in err and "--allow-data-change" in err and err.count("\n") == 1
    assert contents(run) == before
    code, out, err = train("--allow-data-change")
    assert (code, err) == (0, "") and "warning: runs/tiny/main: goes on from step 8 on other data (corpus.txt" in out
    now, old = (json.loads((folder / "data.json").read_text()) for folder in (run, whole / run))
    assert now["before"] == [old | {"until_step": 8}] and now["sha256"] != old["sha256"]
    assert Checkpoints(run).header(12).provenance["data"] == now["sha256"]
    assert arrays(run) != arrays(whole / run)  # it was trained on something else
    cut_back(run)  # back to before the change
    assert train()[0] == 0
    Path("corpus.txt").write_text(TEXT * 20)
    code, out, _ = train("--allow-data-change")  # of a finished run nothing changes any more
    assert code == 0 and "finished before" in out and len(json.loads((run / "data.json").read_text())["before"]) == 1


def test_data_whose_tokens_mean_something_else_is_always_refused(run, train):
    cut_back(run)
    Path("corpus.txt").write_text(TEXT.upper() * 20)
    before = contents(run)
    code, _, err = train("--allow-data-change")
    assert code == 2 and "--allow-data-change needs data with the same tokenizer" in err and err.count("\n") == 1
    assert contents(run) == before


def test_a_data_json_that_was_deleted_hides_nothing(run, train):
    cut_back(run)
    (run / "data.json").unlink()
    Path("corpus.txt").write_text(TEXT[::-1] * 20)
    code, _, err = train()
    assert code == 2 and "ckpt/00000008.safetensors: was saved by a run on other data (sha256 " in err


# Another config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["model.width=16"], "model.width: 8 there, 16 here"),
        (
            ["optimizer.lr=2e-2", "seed=1"],
            "seed: 0 there, 1 here; data.seed: 0 there, 1 here; optimizer.lr: 0.01 there",
        ),
    ],
)
def test_another_config_is_refused_by_its_keys(run, train, keys, message):
    before = contents(run)
    code, _, err = train(*keys)
    assert code == 2 and err.startswith("deltaflow: runs/tiny/main: holds a run of another config (")
    assert message in err and err.count("\n") == 1 and contents(run) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "finished"),
    [("constant", True), ("rsqrt", True), ("wsd", False)],
)
def test_more_steps_are_what_a_longer_run_would_have_done(run, train, schedule, finished):
    """If nothing so far depended on the number of steps: wsd has not begun to fall by step 8."""
    keys = [f"optimizer.schedule={schedule}", "optimizer.decay_fraction=0.3"]
    assert train("name=longer", "train.steps=20", *keys)[0] == 0
    assert train("name=short", *keys)[0] == 0
    short, longer = Path("runs/short/main"), Path("runs/longer/main")
    if not finished:
        cut_back(short)
    code, out, err = train("name=short", "train.steps=20", *keys)
    step = 12 if finished else 8
    assert (code, err) == (0, "") and out.count(f"continues at step {step} with train.steps 12 -> 20\n") == 1
    assert arrays(short, 20) == arrays(longer, 20)
    assert rows(short) == rows(longer) and [*rows(short)] == [0, 4, 8, 12, 16, 20]
    assert "steps: 20" in (short / "config.yaml").read_text() and summary(short)["steps"] == 20
    assert "finished before; nothing to do" in train("name=short", "train.steps=20", *keys)[1]


@pytest.mark.slow
def test_a_schedule_over_all_steps_is_re_drawn_and_said_so(run, train):
    code, out, _ = train("train.steps=24")
    (line,) = (line for line in out.splitlines() if "continues" in line)
    match = re.fullmatch(
        "continues at step 12 with train.steps 12 -> 24; the cosine schedule is re-drawn from here, "
        r"with a learning rate of ([\d.e-]+) after ([\d.e-]+)",
        line,
    )
    rates = {step: row["optim/lr"] for step, row in rows(run).items() if "optim/lr" in row}
    assert code == 0 and match
    assert float(match[2]) == pytest.approx(rates[12], rel=0.01)  # of the 12th step, as it was logged
    assert rates[16] < float(match[1]) and float(match[1]) > 2 * float(match[2])  # half of the way down, not at its end
    assert [*rows(run)] == [0, 4, 8, 12, 16, 20, 24]


@pytest.mark.slow
def test_what_is_watched_saved_and_evaluated_may_change_on_the_way(run, train):
    cut_back(run)
    changes = {
        "train.eval_every": (4, 2),
        "train.eval_batches": (1, 2),
        "train.checkpoint_every": (4, 6),
        "train.steps_per_call": (4, 2),
        "watch.every": (4, 2),
        "watch.counterfactual": ("false", "true"),
        "watch.instruments.attention": (0, 2),
    }
    code, out, err = train(*(f"{key}={new}" for key, (_, new) in changes.items()))
    (line,) = (line for line in out.splitlines() if "continues" in line)
    assert (code, err) == (0, "") and line.startswith("continues at step 8 with ") and "re-drawn" not in line
    assert all(f"{key} {old} -> {new}" in line for key, (old, new) in changes.items())
    logged = rows(run)
    assert [*logged] == [0, 4, 8, 10, 12] and "loss/val" in logged[10] and "attn/entropy/layer_000" in logged[10]
    assert json.loads((run / "choices.json").read_text())["steps_per_call"] == 2
    assert Checkpoints(run).steps() == [4, 8, 12]


def test_the_parameters_do_not_depend_on_what_is_saved_and_evaluated(run, whole, train):
    cut_back(run)
    assert train("train.eval_every=12", "train.checkpoint_every=12")[0] == 0
    assert arrays(run) == arrays(whole / run)


@pytest.mark.parametrize("trained", [12, 8])
def test_fewer_steps_than_were_trained_are_refused(run, train, trained):
    if trained == 8:
        cut_back(run)
    before = contents(run)
    code, _, err = train("train.steps=4")
    assert code == 2
    assert err == f"deltaflow: runs/tiny/main: has trained {trained} steps already, and train.steps is 4\n"
    assert before == contents(run)


@pytest.mark.slow
def test_the_recorded_steps_of_a_dispatch_are_kept_as_long_as_they_fit(run, train):
    choices = Path("runs/auto/main/choices.json")
    for keys, expected in (
        ([], 4),
        (["train.steps=16"], 4),
        (["train.steps=20", "train.eval_every=2"], 2),
    ):
        assert train("name=auto", "train.steps_per_call=auto", *keys)[0] == 0
        assert json.loads(choices.read_text()) == {"steps_per_call": expected}
    assert [*rows(Path("runs/auto/main"))] == [0, 4, 8, 12, 16, 18, 20]


@pytest.mark.slow
def test_a_variant_that_goes_on_without_its_group_keeps_the_steps_of_a_dispatch(run, train):
    keys = ["name=pair", "sweep={seed: [0, 1]}"]
    assert train(*keys)[0] == 0
    cut_back(Path("runs/pair/main,seed=1"))
    intervals = ["train.eval_every=12", "train.checkpoint_every=12", "watch.every=12"]
    assert train(*keys, "train.steps_per_call=auto", *intervals)[0] == 0
    assert [json.loads((path / "choices.json").read_text()) for path in Path("runs/pair").glob("main,seed=*")] == [
        {"steps_per_call": 4}
    ] * 2


@pytest.mark.slow
def test_no_watched_step_is_missed_where_a_run_goes_on_with_other_dispatches(run, train):
    keys = ["name=rewatched", "watch.every=2", "train.eval_every=8", "train.checkpoint_every=8"]
    assert train(*keys, "train.steps=1", "train.steps_per_call=1")[0] == 0
    assert train(*keys, "train.steps=8", "train.steps_per_call=4")[0] == 0
    logged = rows(Path("runs/rewatched/main"))
    assert [step for step, row in logged.items() if "delta/norm_log10/layer_000" in row] == [0, 2, 4, 6]


def test_a_config_that_was_edited_is_seen_by_the_checkpoint(run, train, capsys):
    cut_back(run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("warmup: 2", "warmup: 3"))
    message = "ckpt/00000008.safetensors: was saved under another config (optimizer.warmup: 2 there, 3 here)"
    code, _, err = train("optimizer.warmup=3")
    assert code == 2 and message in err
    assert main(["sample", str(run), "--top", "1"]) == 2  # heads, say, change what arrays of the same shapes compute
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_a_config_that_was_lost_is_known_by_the_checkpoint(run, whole, train, finished):
    if not finished:
        cut_back(run)
    (run / "config.yaml").unlink()
    code, _, err = train("model.layers=2")
    assert code == 2 and "was saved under another config (model.layers: 1 there, 2 here)" in err
    assert not (run / "config.yaml").exists()
    assert train()[0] == 0
    assert (run / "config.yaml").read_text() == (whole / run / "config.yaml").read_text() and same(run, whole)


def test_other_names_are_no_other_config(run, whole, train):
    cut_back(run)
    shutil.move("runs", "moved")
    shutil.move("moved/tiny", "moved/renamed")
    assert train("runs_dir=moved", "name=renamed")[0] == 0
    assert arrays(Path("moved/renamed/main")) == arrays(whole / run)


def test_other_versions_and_devices_are_told_in_one_line(run, whole, train):
    cut_back(run)
    path = Checkpoints(run).path(8)
    metadata, saved = tensors.read(path)
    provenance = json.loads(metadata["provenance"])
    provenance["versions"]["jax"], provenance["device"]["count"] = "0.0.1", 4
    with open(path, "wb") as file:
        tensors.write(file, saved, metadata | {"provenance": json.dumps(provenance)})
    code, out, err = train()
    (line,) = (line for line in out.splitlines() if "bitwise" in line)
    now = Checkpoints(whole / run).header(12).provenance["versions"]["jax"]
    assert (code, err) == (0, "") and line == (
        f"warning: saved with jax 0.0.1 then, {now} now; device count 4 then, 1 now: "
        "what follows is not bitwise what it would have been"
    )


# Groups


@pytest.mark.slow
def test_a_variant_added_later_leaves_the_finished_ones_alone(run, train):
    before = contents(run)
    code, out, _ = train("variants={main: {}, late: {optimizer.lr: 2e-2}}")
    assert code == 0 and "main: finished before; nothing to do" in out
    assert contents(run) == before and [*rows(run.parent / "late")] == [0, 4, 8, 12]


def of_steps(variant, steps, reason: str | None = None) -> None:
    """A run directory with checkpoints of these steps, and a summary if it has ended."""
    for step in steps:
        Checkpoints(directory_of(variant)).save(State({"w": np.zeros(1)}, (), np.int32(step)), {})
    if reason is not None:
        ended = {"variant": variant.name, "steps": max(steps, default=8), "verdict": None, "first_nonfinite_step": None}
        directory_of(variant).mkdir(parents=True, exist_ok=True)
        write_json(directory_of(variant) / "summary.json", ended | {"exit_reason": reason})


@pytest.mark.parametrize(
    ("seeds", "more", "parts"),
    [
        # One save apart go on together; further apart they do not.
        ([([4, 8],), ([4],), ([12, 16, 20],), ([],)], [], [[2], [0, 1], [3]]),
        ([([4, 8],), ([4], "signal 2"), ([12, 16, 20],), ([12], "done")], [], [[3], [2], [0, 1]]),
        # One that a bad step stopped without a checkpoint, and one that is to go on with more steps and other saves.
        (
            [([8], "done"), ([], "nonfinite")],
            ["train.steps=80", "train.checkpoint_every=40", "train.eval_every=40"],
            [[0], [1]],
        ),
    ],
)
def test_those_go_on_together_that_were_stopped_together(run, seeds, more, parts):
    keys = ["name=apart", f"sweep={{seed: {[*range(len(seeds))]}}}", *more]
    variants = load("tiny.yaml", keys).variants
    for variant, state in zip(variants, seeds, strict=True):
        of_steps(variant, *state)
    assert [[variant.config.seed for variant in part] for part in resumable_parts(variants)] == parts


def test_what_a_wave_has_saved_is_not_taken_back_for_one_that_has_not_begun(run):
    variants = load("tiny.yaml", ["name=apart", "sweep={seed: [0, 1, 2]}"]).variants
    of_steps(variants[1], [4])
    assert resumable_parts(variants) == [(variants[1],), (variants[0], variants[2])]
    directory_of(variants[0]).mkdir(parents=True)
    (directory_of(variants[0]) / "config.yaml").touch()  # killed between the saves of a group's variants
    assert resumable_parts(variants) == [(variants[0], variants[1]), (variants[2],)]


def test_variants_without_a_whole_step_in_common_go_on_apart(run):
    variants = load("tiny.yaml", ["name=apart", "sweep={seed: [0, 1, 2]}", "train.steps=30"]).variants
    for variant in variants:
        of_steps(variant, [10, 20, 30])
    zero, one, two = (directory_of(variant) for variant in variants)
    assert resumable_parts(variants) == [tuple(variants)]
    damage(zero, 30)
    assert resumable_parts(variants) == [tuple(variants)]  # all have 20
    damage(one, 20)
    assert resumable_parts(variants) == [(variants[1], variants[2]), (variants[0],)]
    of_steps(variants[2], [30], "done")
    assert resumable_parts(variants)[0] == (variants[2],)
    damage(two, 30)
    assert finished_run(variants[2]) is None  # its last part is trained again
    shutil.rmtree(two / "ckpt")
    assert finished_run(variants[2]) is not None  # its checkpoints are not needed


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
def test_training_goes_on_without_a_reader_of_its_output(run):
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
        assert message in (None, "deltaflow: the reader of the output has gone; training goes on\n")
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
