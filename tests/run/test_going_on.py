"""What a run goes on from: its own config and data, the newest checkpoint that is whole, on whatever machine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from train.cli import main
from train.device import platform as platforms
from train.run import loop
from train.store import tensors
from train.store.checkpoint import Checkpoints

TEXT = "the quick brown fox jumps over the lazy dog. "
CONFIG = """
name: tiny
model: {layers: 1, width: 8, heads: 1}
data: {path: corpus.txt, context: 8, batch: 4}
optimizer: {lr: 1e-2, min_lr: 1e-3, warmup: 2}
train: {steps: 12, eval_every: 4, eval_batches: 1, checkpoint_every: 4, steps_per_call: 4, unroll: 1}
watch: {every: 4, counterfactual: false}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
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


def cut_back(run: Path, step: int = 8) -> None:
    """As after a kill behind `step`."""
    (run / "summary.json").unlink()
    for newer in [there for there in Checkpoints(run).steps() if there > step]:
        Checkpoints(run).path(newer).unlink()


def train(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["train", "tiny.yaml", *arguments])
    return code, *capsys.readouterr()


def logged(run: Path) -> str:
    return re.sub(r',"perf/\w+":[^,}]+', "", (run / "metrics.jsonl").read_text())


def arrays(run: Path, step: int = 12) -> dict[str, bytes]:
    return {path: array.tobytes() for path, array in Checkpoints(run).arrays(step).items()}


def damage(run: Path, step: int) -> None:
    path = Checkpoints(run).path(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_finished_run_with_a_damaged_end_gets_it_back_bit_for_bit(run, whole, capsys):
    damage(run, 12)
    code, out, err = train(capsys)
    assert (code, err) == (0, "") and "resuming at step 8 of 12" in out
    assert out.count("\nwarning: runs/tiny/main/ckpt: goes back to step 8; skipped step 12: ") == 1
    assert arrays(run) == arrays(whole / run) and logged(run) == logged(whole / run)
    assert [path.name[:8] for path in sorted((run / "ckpt").iterdir())] == ["00000004", "00000008", "00000012"]
    assert "finished before; nothing to do" in train(capsys)[1]


def test_a_run_that_is_cut_back_twice_ends_bit_for_bit_the_same(run, whole, capsys):
    cut_back(run)
    damage(run, 8)
    leftover = run / "ckpt" / ".00000012.safetensors.0123abcd.tmp"
    leftover.write_bytes(b"x")
    code, out, _ = train(capsys)
    assert code == 0 and "resuming at step 4 of 12" in out
    assert arrays(run) == arrays(whole / run) and logged(run) == logged(whole / run)
    assert not leftover.exists() and not (run / ".lock").exists()


def test_a_run_is_never_started_over_when_all_is_damaged(run, capsys):
    (run / "summary.json").unlink()
    for step in (4, 8, 12):
        damage(run, step)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, err = train(capsys)
    assert code == 1 and err.startswith("deltaflow: runs/tiny/main/ckpt: no checkpoint can be used (step 12: ")
    assert err.count("\n") == 1 and "delete what is there to start the run over" in err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_finished_run_whose_checkpoints_were_deleted_is_finished(run, capsys):
    shutil.rmtree(run / "ckpt")
    before = logged(run)
    assert "finished before; nothing to do" in train(capsys)[1]
    assert logged(run) == before
    assert main(["sample", str(run)]) == 1
    assert capsys.readouterr().err.startswith("deltaflow: runs/tiny/main: no checkpoint in ")


def test_other_data_is_refused_or_allowed_and_remembered(run, whole, capsys):
    cut_back(run)
    Path("corpus.txt").write_text(TEXT[::-1] * 20)
    code, _, err = train(capsys)
    assert code == 1 and "was trained on other data" in err and "--allow-data-change" in err and err.count("\n") == 1
    code, out, err = train(capsys, "--allow-data-change")
    assert (code, err) == (0, "") and "warning: runs/tiny/main: goes on from step 8 on other data (corpus.txt" in out
    known, before = (json.loads((folder / "data.json").read_text()) for folder in (run, whole / run))
    assert known["before"] == [before | {"until_step": 8}] and known["sha256"] != before["sha256"]
    assert Checkpoints(run).header(12).provenance["data"] == known["sha256"]
    assert arrays(run) != arrays(whole / run)  # it was trained on something else
    cut_back(run)  # back to before the change
    assert train(capsys)[0] == 0
    Path("corpus.txt").write_text(TEXT * 20)
    code, out, _ = train(capsys, "--allow-data-change")  # of a finished run nothing changes any more
    assert code == 0 and "finished before" in out and len(json.loads((run / "data.json").read_text())["before"]) == 1


def test_data_whose_tokens_mean_something_else_is_always_refused(run, capsys):
    cut_back(run)
    Path("corpus.txt").write_text(TEXT.upper() * 20)
    code, _, err = train(capsys, "--allow-data-change")
    assert code == 1 and "--allow-data-change needs data with the same tokenizer" in err and err.count("\n") == 1


def test_a_data_json_that_was_deleted_hides_nothing(run, capsys):
    cut_back(run)
    (run / "data.json").unlink()
    Path("corpus.txt").write_text(TEXT[::-1] * 20)
    code, _, err = train(capsys)
    assert code == 1 and "ckpt/00000008.safetensors: was saved by a run on other data (sha256 " in err


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["model.width=16"], "model.width: 8 there, 16 here"),
        (
            ["optimizer.lr=2e-2", "seed=1"],
            "seed: 0 there, 1 here; data.seed: 0 there, 1 here; optimizer.lr: 0.01 there",
        ),
    ],
)
def test_another_config_is_refused_by_its_keys(run, capsys, keys, said):
    code, _, err = train(capsys, *keys)
    assert code == 1 and said in err and err.count("\n") == 1


def steps_logged(run: Path) -> list[int]:
    return [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("schedule", "finished"), [("constant", True), ("rsqrt", True), ("rsqrt", False), ("wsd", False)]
)
def test_more_steps_are_what_a_longer_run_would_have_done(run, capsys, schedule, finished):
    """Where nothing so far depended on the number of steps: wsd has not begun to fall by step 8."""
    keys = [f"optimizer.schedule={schedule}", "optimizer.decay_fraction=0.3"]
    assert train(capsys, "name=longer", "train.steps=20", *keys)[0] == 0
    assert train(capsys, "name=short", *keys)[0] == 0
    short, longer = Path("runs/short/main"), Path("runs/longer/main")
    if not finished:
        cut_back(short)
    code, out, err = train(capsys, "name=short", "train.steps=20", *keys)
    step = 12 if finished else 8
    assert (code, err) == (0, "") and out.count(f"continues at step {step} with train.steps 12 -> 20\n") == 1
    assert arrays(short, 20) == arrays(longer, 20)
    assert logged(short) == logged(longer)
    assert steps_logged(short) == [0, 4, 8, 12, 16, 20]
    assert "steps: 20" in (short / "config.yaml").read_text()
    assert json.loads((short / "summary.json").read_text())["steps"] == 20
    assert "finished before; nothing to do" in train(capsys, "name=short", "train.steps=20", *keys)[1]


def test_a_schedule_over_all_steps_is_re_drawn_and_said_so(run, capsys):
    code, out, _ = train(capsys, "train.steps=24")
    (line,) = (line for line in out.splitlines() if "continues" in line)
    match = re.fullmatch(
        "continues at step 12 with train.steps 12 -> 24; the cosine schedule is re-drawn from here, "
        r"with a learning rate of ([\d.e-]+) after ([\d.e-]+)",
        line,
    )
    rates = {row["step"]: row["optim/lr"] for row in map(json.loads, logged(run).splitlines()) if "optim/lr" in row}
    assert code == 0 and match
    assert float(match[2]) == pytest.approx(rates[12], rel=0.01)  # of the 12th step, as it was logged
    assert rates[16] < float(match[1]) and float(match[1]) > 2 * float(match[2])  # half of the way down, not at its end
    assert steps_logged(run) == [0, 4, 8, 12, 16, 20, 24]


def test_what_is_watched_saved_and_evaluated_may_change_on_the_way(run, capsys):
    cut_back(run)
    keys = ["watch.every=2", "watch.counterfactual=true", "train.eval_every=2", "train.eval_batches=2"]
    keys += ["train.checkpoint_every=6", "train.steps_per_call=2", "watch.instruments.attention=2"]
    code, out, err = train(capsys, *keys)
    (line,) = (line for line in out.splitlines() if "continues" in line)
    assert (code, err) == (0, "") and line.startswith("continues at step 8 with ") and "re-drawn" not in line
    for change in (
        "train.eval_every 4 -> 2",
        "train.eval_batches 1 -> 2",
        "train.checkpoint_every 4 -> 6",
        "train.steps_per_call 4 -> 2",
        "watch.every 4 -> 2",
        "watch.counterfactual false -> true",
        "watch.instruments.attention 0 -> 2",
    ):
        assert change in line
    rows = {row["step"]: row for row in map(json.loads, logged(run).splitlines())}
    assert [*rows] == [0, 4, 8, 10, 12] and "loss/val" in rows[10] and "attn/entropy/layer_000" in rows[10]
    assert json.loads((run / "choices.json").read_text())["steps_per_call"] == 2
    assert Checkpoints(run).steps() == [4, 8, 12]


def test_the_parameters_do_not_depend_on_what_is_saved_and_evaluated(run, whole, capsys):
    cut_back(run)
    assert train(capsys, "train.eval_every=12", "train.checkpoint_every=12")[0] == 0
    assert arrays(run) == arrays(whole / run)


@pytest.mark.parametrize("finished", [True, False])
def test_fewer_steps_than_were_trained_are_refused(run, capsys, finished):
    if not finished:
        cut_back(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, err = train(capsys, "train.steps=4")
    trained = 12 if finished else 8
    assert code == 1
    assert err == f"deltaflow: runs/tiny/main: has trained {trained} steps already, and train.steps is 4\n"
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_more_steps_without_a_checkpoint_are_refused(run, capsys):
    shutil.rmtree(run / "ckpt")
    before = logged(run)
    code, _, err = train(capsys, "train.steps=20")
    assert code == 1 and "was finished at step 12, and has no checkpoint to go on from" in err
    assert logged(run) == before


def test_the_recorded_steps_of_a_dispatch_are_kept_as_long_as_they_fit(run, capsys):
    config = "train.steps_per_call=auto"
    assert train(capsys, "name=auto", config)[0] == 0
    choices = Path("runs/auto/main/choices.json")
    assert json.loads(choices.read_text()) == {"steps_per_call": 4}
    assert train(capsys, "name=auto", config, "train.steps=16")[0] == 0
    assert json.loads(choices.read_text()) == {"steps_per_call": 4}
    assert train(capsys, "name=auto", config, "train.steps=20", "train.eval_every=2")[0] == 0
    assert json.loads(choices.read_text()) == {"steps_per_call": 2}
    assert steps_logged(Path("runs/auto/main")) == [0, 4, 8, 12, 16, 18, 20]


def test_no_watched_step_is_missed_where_a_run_goes_on_with_other_windows(run, capsys):
    keys = ["name=rewatched", "watch.every=2", "train.eval_every=8", "train.checkpoint_every=8"]
    assert train(capsys, *keys, "train.steps=1", "train.steps_per_call=1")[0] == 0
    assert train(capsys, *keys, "train.steps=8", "train.steps_per_call=4")[0] == 0
    rows = [json.loads(line) for line in Path("runs/rewatched/main/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "delta/norm_log10/layer_000" in row] == [0, 2, 4, 6]


def test_a_config_that_was_edited_is_seen_by_the_checkpoint(run, capsys):
    cut_back(run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("warmup: 2", "warmup: 3"))
    code, _, err = train(capsys, "optimizer.warmup=3")
    assert (
        code == 1
        and "ckpt/00000008.safetensors: was saved under another config (optimizer.warmup: 2 there, 3 here)" in err
    )
    assert main(["sample", str(run), "--top", "1"]) == 1  # heads, say, change what arrays of the same shapes compute
    assert "ckpt/00000008.safetensors: was saved under another config (optimizer.warmup" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_a_config_that_was_lost_is_known_by_the_checkpoint(run, whole, capsys, finished):
    if not finished:
        cut_back(run)
    (run / "config.yaml").unlink()
    code, _, err = train(capsys, "model.layers=2")
    assert code == 1 and "was saved under another config (model.layers: 1 there, 2 here)" in err
    assert not (run / "config.yaml").exists()
    assert train(capsys)[0] == 0
    assert (run / "config.yaml").read_text() == (whole / run / "config.yaml").read_text()
    assert logged(run) == logged(whole / run)


@pytest.mark.parametrize("errors", [subprocess.PIPE, subprocess.STDOUT], ids=["stdout", "both"])
def test_training_goes_on_when_nobody_reads_what_it_prints(run, errors):
    command = [sys.executable, "-m", "train", "train", "tiny.yaml", "name=unread"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        said = None if child.stderr is None else child.stderr.read()
    assert child.returncode == 0
    assert said in (None, "deltaflow: the reader of the output has gone; training goes on\n")
    assert json.loads(Path("runs/unread/main/summary.json").read_text())["exit_reason"] == "done"


def test_the_share_of_the_peak_that_a_long_training_reached(run, capsys, monkeypatch):
    """FLOPs by hand: 6 a weight and token, 12 T D for the two products of attention."""
    assert json.loads((run / "summary.json").read_text())["mfu"] is None  # a short one measures no peak
    monkeypatch.setattr(loop, "_WORTH_A_PEAK_S", 0.0)
    monkeypatch.setattr(platforms, "matmul_peak", lambda dtype: {"float32": 1e9}[dtype])
    assert train(capsys, "name=long", "train.eval_every=12", "train.checkpoint_every=12")[0] == 0
    summary = json.loads(Path("runs/long/main/summary.json").read_text())
    width, context, tokens, vocabulary = 8, 8, 32, len(set(TEXT))
    flops = tokens * (6 * (12 * width**2 + vocabulary * width) + 12 * context * width)
    assert summary["mfu"] == pytest.approx(flops * summary["steps_per_s"] / 1e9, rel=1e-9)
    rows = [json.loads(line) for line in Path("runs/long/main/metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["perf/mfu"]) for row in rows if "perf/mfu" in row] == [(12, summary["mfu"])]


def test_a_closed_output_is_no_error(run):
    command = f'exec "{sys.executable}" -m train compare runs/tiny/main >&-'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_other_names_are_no_other_config(run, whole, capsys):
    cut_back(run)
    shutil.move("runs", "moved")
    shutil.move("moved/tiny", "moved/renamed")
    code, _, _ = train(capsys, "runs_dir=moved", "name=renamed")
    assert code == 0 and arrays(Path("moved/renamed/main")) == arrays(whole / run)


def test_other_versions_and_devices_are_told_in_one_line(run, whole, capsys):
    cut_back(run)
    path = Checkpoints(run).path(8)
    metadata, saved = tensors.read(path)
    provenance = json.loads(metadata["provenance"])
    provenance["versions"]["jax"], provenance["device"]["count"] = "0.0.1", 1
    with open(path, "wb") as file:
        tensors.write(file, saved, metadata | {"provenance": json.dumps(provenance)})
    code, out, err = train(capsys)
    (line,) = (line for line in out.splitlines() if "bitwise" in line)
    now = Checkpoints(whole / run).header(12).provenance["versions"]["jax"]
    assert code == 0 and line == (
        f"warning: saved with jax 0.0.1 then, {now} now; device count 1 then, 4 now: "
        "what follows is not bitwise what it would have been"
    )
    assert arrays(run).keys() == arrays(whole / run).keys()
    assert err == ""


def test_the_log_of_a_run_without_a_checkpoint_begins_anew(run, whole, capsys):
    """Killed before its first save."""
    (run / "summary.json").unlink()
    shutil.rmtree(run / "ckpt")
    code, out, _ = train(capsys)
    assert code == 0 and "resuming" not in out
    assert arrays(run) == arrays(whole / run) and logged(run) == logged(whole / run)
    np.testing.assert_array_equal([json.loads(row)["step"] for row in logged(run).splitlines()], [0, 4, 8, 12])
