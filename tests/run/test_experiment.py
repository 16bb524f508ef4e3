"""Whole runs through the command line: what they leave, what a stop and a crash do not change, what they refuse."""

import hashlib
import json
import math
import os
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from train.cli import main
from train.config.load import load
from train.core.state import State
from train.errors import UserError
from train.log.console import Console
from train.report.read import read_run
from train.run.summary import unmet
from train.store.checkpoint import Checkpoints
from train.store.rundir import read_config

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_o", "mlp_in", "mlp_out", "norm_1", "norm_2")
LAYERS, ENDS = ("layer_000", "layer_001"), ("layer_000", "layer_001", "layer_002")


def rows(run: Path) -> dict[int, dict]:
    """metrics.jsonl by step; each step has one row, and they come in order."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row.pop("step") for row in found]
    assert steps == sorted(set(steps))
    return dict(zip(steps, found, strict=True))


def timeless(row: dict) -> dict:
    return {tag: value for tag, value in row.items() if not tag.startswith("perf/")}


def watched_tags() -> set[str]:
    """docs/tags.md, for two layers of pre_ln with learned positions and a tied head."""
    tags = {"grad/global_preclip_log10", "grad/clip_factor", "grad/qk_rounded"}
    for suffix in ("", "_without"):
        tags |= {f"delta{suffix}/norm_log10/{layer}" for layer in ENDS}
        tags |= {f"grad{suffix}/norm_log10/{end}" for end in ("embed", "lookup", "head", "positions", "norm_f")}
        tags |= {f"grad{suffix}/norm_log10/{layer}" for layer in LAYERS}
        tags |= {f"grad{suffix}/norm_log10/{layer}/{matrix}" for layer in LAYERS for matrix in MATRICES}
    tags |= {f"gain/{layer}" for layer in LAYERS} | {f"delta/rms_weighted_log10/{layer}" for layer in ENDS}
    for metric in ("update/ratio_log10", "weight/norm"):
        tags |= {f"{metric}/{layer}" for layer in LAYERS}
        tags |= {f"{metric}/{layer}/{matrix}" for layer in LAYERS for matrix in MATRICES}
    return tags | {f"act/{what}/{layer}" for what in ("rms", "rank") for layer in ENDS}


# What a run leaves


def test_the_run_directory(trained):
    config, run = trained
    for variant in load(config).variants:
        folder = run.parent / variant.name
        names = {path.name for path in folder.iterdir()} - {"choices.json"}
        events = {name for name in names if name.startswith("events.out.tfevents.")}
        assert names - events == {"config.yaml", "metrics.jsonl", "summary.json", "tokenizer.json", "data.json", "ckpt"}
        assert len(events) == 1
        assert sorted(path.name for path in (folder / "ckpt").iterdir()) == [
            "00000020.safetensors",
            "00000040.safetensors",
        ]
        assert read_config(folder) == variant.config
        assert read_run(folder).name == variant.name
    reports = ["report.html", "report.md"]
    assert sorted(path.name for path in run.parent.iterdir()) == [*reports, "with", "without_skip"]


def test_each_row_has_the_tags_of_the_docs(trained):
    _, run = trained
    of_steps = {"loss/train", "loss/spike", "optim/lr"}
    of_evaluations = {"loss/val", "perplexity/val", "accuracy/val", "loss/floor_unigram"}
    logged = rows(run)
    assert list(logged) == list(range(0, 41, 5))
    for step, row in logged.items():
        expected = (watched_tags() if step < 40 else set()) | (of_steps if step else set())
        expected |= of_evaluations if step % 20 == 0 else set()
        assert timeless(row).keys() == expected, step
        assert {tag for tag in row if tag.startswith("perf/")} <= {"perf/steps_per_s", "perf/tokens_per_s"}
        assert all(isinstance(value, float) and math.isfinite(value) for value in row.values())
    timed = [row for row in logged.values() if "perf/steps_per_s" in row]
    assert timed and all(row["perf/tokens_per_s"] == pytest.approx(32 * row["perf/steps_per_s"]) for row in timed)


def test_the_figures_of_a_row_agree_with_each_other(trained):
    _, run = trained
    for step, row in rows(run).items():
        if "loss/val" in row:
            assert row["perplexity/val"] == pytest.approx(math.exp(row["loss/val"]), rel=1e-12)
        if step == 40:
            continue
        for suffix in ("", "_without"):
            for layer in LAYERS:
                parts = [10 ** (2 * row[f"grad{suffix}/norm_log10/{layer}/{matrix}"]) for matrix in MATRICES]
                assert 2 * row[f"grad{suffix}/norm_log10/{layer}"] == pytest.approx(math.log10(sum(parts)), abs=1e-5)
        for low, high in zip(ENDS, ENDS[1:], strict=False):
            gain = row[f"delta/norm_log10/{low}"] - row[f"delta/norm_log10/{high}"]
            assert math.log10(row[f"gain/{low}"]) == pytest.approx(gain, abs=1e-9)
        whole = [*LAYERS, "embed", "positions", "norm_f"]
        total = sum(10 ** (2 * row[f"grad/norm_log10/{part}"]) for part in whole)
        assert 2 * row["grad/global_preclip_log10"] == pytest.approx(math.log10(total), abs=1e-5)
        clip = min(1.0, 1.0 / 10 ** row["grad/global_preclip_log10"])
        assert row["grad/clip_factor"] == pytest.approx(clip, rel=1e-5)
        assert all(0 <= row[f"act/rank/{end}"] <= 1 + 1e-6 for end in ENDS)


def test_the_rate_is_that_of_the_last_step_done(trained):
    logged = rows(trained[1])
    assert logged[5]["optim/lr"] == pytest.approx(1e-2 * 5 / 6, rel=1e-6)  # step 4 of a warm-up of 5
    for step in range(10, 41, 5):
        done = (step - 1 - 5) / 35
        expected = 1e-3 + 9e-3 * (1 + math.cos(math.pi * done)) / 2
        assert logged[step]["optim/lr"] == pytest.approx(expected, rel=1e-5)


def test_delta_at_step_0_is_what_probe_measures(trained, probed):
    _, run = trained
    for measured in probed[:2]:
        row = rows(run.parent / measured["variant"])[0]
        for name in ("delta", "delta_without"):
            logged = [row[f"{name}/norm_log10/{layer}"] for layer in ENDS]
            np.testing.assert_allclose(logged, measured[name]["log10_norm"], rtol=0, atol=1e-5)
        for layer in (0, 1):
            for matrix in MATRICES:
                logged = row[f"grad/norm_log10/layer_{layer:03d}/{matrix}"]
                assert logged == pytest.approx(measured["grad_log10"][matrix][layer], abs=1e-5)
        assert row["grad/norm_log10/embed"] == pytest.approx(math.log10(measured["grad"]["embed"]), abs=1e-5)
        np.testing.assert_allclose([row[f"act/rms/{end}"] for end in ENDS], measured["act"]["rms"], rtol=1e-5)
        weighted = [10 ** row[f"delta/rms_weighted_log10/{end}"] for end in ENDS]
        np.testing.assert_allclose(weighted, measured["delta"]["rms_weighted"], rtol=1e-4)


def test_the_summary(trained):
    config, run = trained
    for variant in load(config).variants:
        folder = run.parent / variant.name
        summary, logged = json.loads((folder / "summary.json").read_text(encoding="utf-8")), rows(folder)
        assert summary.keys() >= {
            *("variant", "steps", "tokens", "loss_first", "loss_train", "loss_val", "best_val", "steps_per_s"),
            *("tokens_per_s", "compile_s", "seconds_to_first_step", "wall_s", "peak_bytes", "mfu", "platform"),
            *("versions", "verdict", "exit_reason"),
        }
        assert (summary["variant"], summary["steps"], summary["tokens"]) == (variant.name, 40, 40 * 32)
        assert summary["exit_reason"] == "done"
        assert summary["loss_first"] == logged[5]["loss/train"] and summary["loss_train"] == logged[40]["loss/train"]
        held_out = [logged[step]["loss/val"] for step in (0, 20, 40)]
        assert summary["loss_val"] == held_out[-1] and summary["best_val"] == min(held_out)
        assert held_out[-1] < held_out[0] - 0.1
        assert summary["tokens_per_s"] == pytest.approx(32 * summary["steps_per_s"])
        assert 0 < summary["compile_s"] < summary["wall_s"] and summary["peak_bytes"] > 2**20
        assert summary["seconds_to_first_step"] > summary["compile_s"]
        assert summary["verdict"]["state"] == "healthy" and {"jax", "jaxlib", "flax"} <= summary["versions"].keys()
        assert "cpu" in summary["platform"]


def test_twins_have_the_same_first_loss_only_where_they_agree(trained):
    """delta without the skip, measured in `with`, is delta of `without_skip` at the same initial weights."""
    _, run = trained
    with_, without = rows(run)[0], rows(run.parent / "without_skip")[0]
    for layer in ENDS:
        tag = f"delta_without/norm_log10/{layer}"
        assert with_[tag] == pytest.approx(without[f"delta/norm_log10/{layer}"], abs=1e-5)
    assert with_["loss/val"] != without["loss/val"]


# Promises, and a run that is there already


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("promise", "code", "said"),
    [
        ("{}", 0, None),
        ("{with: {loss/val: [0, 10], verdict: healthy}, without_skip: {ratio: [0.01, 100]}}", 0, None),
        ("{with: {loss/val: [0, 0.5]}}", 1, r"warning: expect: with: loss/val: expected between 0 and 0.5, got 2\.\d+"),
        ("{without_skip: {verdict: vanishing}}", 1, "without_skip: verdict: expected vanishing, got healthy"),
    ],
)
def test_a_finished_run_trains_nothing_and_keeps_its_promises(trained, capsys, promise, code, said):
    config, run = trained
    before = digest(run.parent)
    assert main(["train", str(config), f"expect={promise}"]) == code
    out, err = capsys.readouterr()
    assert "with, without_skip: finished before; nothing to do" in out and err == ""
    if said is None:
        assert "expect" not in out
    else:
        assert re.search(said, out)
    assert digest(run.parent) == before


def test_another_config_in_the_same_folder_is_refused(trained, capsys):
    config, run = trained
    before = digest(run.parent)
    assert main(["train", str(config), "optimizer.lr=0.5", "model.layers=3"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"deltaflow: {run}: holds a run of another config (") and err.count("\n") == 1
    assert "optimizer.lr: 0.01 there, 0.5 here" in err and "model.layers: 2 there, 3 here" in err
    assert digest(run.parent) == before


# Stops and crashes


def stopping(monkeypatch, at: int, action):
    """Calls `action` once, when the progress of a run reaches step `at`."""
    original, done = Console.progress, []

    def progress(self, variant, step, *rest, **more):
        original(self, variant, step, *rest, **more)
        if step >= at and not done:
            done.append(step)
            action()

    monkeypatch.setattr(Console, "progress", progress)


@pytest.fixture(scope="module")
def interrupted(trained, tmp_path_factory):
    """The run of `trained` in another folder: stopped by SIGTERM, resumed, killed, resumed, and finished.

    Returns (its folder, exit codes, the steps of the checkpoints after each start).
    """
    config, _ = trained
    root = tmp_path_factory.mktemp("interrupted")
    arguments = ["train", str(config), f"runs_dir={root}"]
    codes, saved = [], []

    class Killed(BaseException):
        """As a process that ends where it is: nothing below may catch it."""

    def kill():
        raise Killed

    for at, action in ((10, lambda: os.kill(os.getpid(), signal.SIGTERM)), (30, kill), (1000, None)):
        with pytest.MonkeyPatch.context() as patch:
            stopping(patch, at, action)
            try:
                codes.append(main(arguments))
            except Killed:
                codes.append("killed")
        saved.append(Checkpoints(root / "tiny" / "with").steps())
    return root / "tiny", codes, saved


def test_a_signal_stops_after_the_window_and_says_so_by_its_code(interrupted):
    _, codes, saved = interrupted
    assert codes == [143, "killed", 0]
    (stopped_at,) = saved[0]
    assert 10 <= stopped_at < 20 and stopped_at % 5 == 0
    assert saved[1] == [stopped_at, 20] and saved[2] == [stopped_at, 20, 40]


@pytest.mark.parametrize("variant", ["with", "without_skip"])
def test_an_interrupted_run_logs_what_an_unbroken_one_does(trained, interrupted, variant):
    """Byte by byte, but for perf/*: no step is missing, none is there twice, no figure differs."""

    def text(folder: Path) -> str:
        raw = (folder / variant / "metrics.jsonl").read_text(encoding="utf-8")
        return re.sub(r',"perf/\w+":[^,}]+', "", raw)

    assert text(interrupted[0]) == text(trained[1].parent)
    assert '"perf/' not in text(trained[1].parent)


@pytest.mark.parametrize("variant", ["with", "without_skip"])
def test_an_interrupted_run_ends_with_the_same_weights_and_verdict(trained, interrupted, variant):
    def final(root: Path):
        return Checkpoints(root / variant).arrays(40)

    one, other = final(trained[1].parent), final(interrupted[0])
    assert len(jax.tree.leaves(one)) > 20
    jax.tree.map(np.testing.assert_array_equal, one, other)
    summaries = [
        json.loads((root / variant / "summary.json").read_text()) for root in (trained[1].parent, interrupted[0])
    ]
    for key in ("steps", "tokens", "loss_first", "loss_train", "loss_val", "best_val", "verdict", "exit_reason"):
        assert summaries[0][key] == summaries[1][key], key


# Other ways to compute the same


@pytest.mark.slow  # tests/run/test_resume.py has a shorter one
def test_a_corpus_on_the_host_gives_the_same_losses(trained, tmp_path, monkeypatch, capsys):
    config, run = trained
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "cache"))
    assert main(["train", str(config), f"runs_dir={tmp_path}", "data.placement=host", "variants={with: {}}"]) == 0
    assert "on the host" in capsys.readouterr().out
    device, host = rows(run), rows(tmp_path / "tiny" / "with")
    assert host.keys() == device.keys()
    for step, row in timeless_rows(host).items():
        # Two programs, which a compiler may round differently; training makes that grow, with some processors to 2e-5.
        tolerance = 1e-5 if step <= 10 else 1e-4
        for tag, value in row.items():
            assert value == pytest.approx(device[step][tag], rel=tolerance, abs=tolerance), (step, tag)


def timeless_rows(logged: dict[int, dict]) -> dict[int, dict]:
    return {step: timeless(row) for step, row in logged.items()}


@pytest.mark.slow
def test_a_vmapped_sweep_is_stopped_resumed_and_equal_to_its_variants_alone(trained, tmp_path, monkeypatch):
    config, run = trained
    arguments = ["train", str(config), f"runs_dir={tmp_path}", "train.group=vmap", "sweep={seed: [0, 7]}"]
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, 10, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main(arguments) == 130
    names = ["with,seed=0", "with,seed=7", "without_skip,seed=0", "without_skip,seed=7"]
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == names
    for path in tmp_path.rglob("summary.json"):
        stopped = json.loads(path.read_text(encoding="utf-8"))
        saved = max(Checkpoints(path.parent).steps())
        assert (stopped["steps"], stopped["exit_reason"]) == (saved, f"signal {signal.SIGINT}")
    assert main(arguments) == 0
    for name in names:
        logged, variant = rows(tmp_path / "tiny" / name), name.split(",")[0]
        alone = rows(run.parent / variant)
        assert logged.keys() == alone.keys()
        losses = [[r["loss/train"] for step, r in sorted(x.items()) if step] for x in (logged, alone)]
        if name.endswith("=0"):
            np.testing.assert_allclose(losses[0], losses[1], rtol=2e-6)
        else:
            assert np.abs(np.subtract(losses[0], losses[1])).max() > 1e-2
        assert read_config(tmp_path / "tiny" / name).data.seed == int(name[-1])


def test_a_checkpoint_that_cannot_be_written_leaves_those_before(tmp_path, monkeypatch):
    """A full disk at the last moment: one line, nothing half-written, and no older one thrown away for it."""
    checkpoints = Checkpoints(tmp_path)
    states = [State({"w": np.full(3, step, np.float32)}, (), np.int32(step)) for step in (5, 10, 15, 20, 25)]
    for state in states[:4]:
        checkpoints.save(state, {"row": {}})
    assert checkpoints.steps() == [10, 15, 20]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.store.checkpoint.os.replace", full)
    with pytest.raises(UserError, match=r"00000025.safetensors: cannot save: .*No space left on device"):
        checkpoints.save(states[4], {"row": {}})
    assert checkpoints.steps() == [10, 15, 20] and len(list((tmp_path / "ckpt").iterdir())) == 3
    assert checkpoints.header(20).meta == {"row": {}}
    newest = checkpoints.restore(20, states[0], jax.devices()[0])
    np.testing.assert_array_equal(newest.params["w"], np.full(3, 20, np.float32))


# What a run was trained on, and what it promised


@pytest.mark.slow
def test_a_run_is_not_gone_on_with_on_other_text(trained, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh " * 300, encoding="utf-8")
    arguments = [
        "train",
        str(trained[0]),
        f"runs_dir={tmp_path}",
        "data.corpus=null",
        f"data.path={text}",
        "variants={}",
    ]
    assert main([*arguments, "expect={}"]) == 0
    kept = (tmp_path / "tiny" / "main" / "tokenizer.json").read_bytes()
    text.write_text("pqrstuvw " * 300, encoding="utf-8")
    capsys.readouterr()
    assert main([*arguments, "expect={}"]) == 1
    assert "was trained on other data" in capsys.readouterr().err
    assert (tmp_path / "tiny" / "main" / "tokenizer.json").read_bytes() == kept


def test_a_promise_may_be_about_any_logged_tag():
    summaries = [{"variant": "a", "loss_val": 2.0, "verdict": {"state": "healthy"}}]
    logged = {"a": {"perplexity/val": 7.4, "delta/norm_log10/layer_000": -2.0}}
    promises = {
        "perplexity/val": [7, 8],
        "delta/norm_log10/layer_000": [-1, 0],
        "loss/vall": [1, 3],
        "loss/val": [1, 3],
    }
    assert unmet({"a": promises}, summaries, logged) == [
        "a: delta/norm_log10/layer_000: expected between -1 and 0, got -2.0",
        "a: loss/vall: was never logged; did you mean loss/val?",
    ]
    assert unmet({"b": {"loss/val": [0, 1]}}, summaries, logged) == []
