"""`train.stop_when`: a variant ends early at a verdict, saved; the others and those without it go on."""

import json

import numpy as np
import pytest

from runs import arrays, group_runs, rows, summary
from train.cli import main
from train.device.programs import Programs
from train.store.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("shared_programs")
STOP = "train.stop_when=[vanishing, unstable]"


@pytest.fixture(scope="module")
def train(corpus, tmp_path_factory):
    """Trains two variants of one shape, without and with skips, into runs/NAME; (exit code, folder)."""
    folder = tmp_path_factory.mktemp("stop")
    config = {
        "name": "stop",
        "runs_dir": str(folder),
        # Without skips and norms, at a tiny init: delta vanishes within four blocks.
        "model": {"layers": 4, "width": 8, "heads": 2, "init": "normal", "init_std": 0.02, "norm": "none"},
        "data": {"path": corpus, "context": 8, "batch": 4},
        "optimizer": {"warmup": 0, "lr": 1e-4, "min_lr": 1e-4},
        "train": {"steps": 12, "eval_every": 6, "eval_batches": 1, "checkpoint_every": 6}
        | {"steps_per_call": 2, "unroll": 1},
        "watch": {"every": 2, "counterfactual": False},
        "variants": {"without": {"model.residual": "none"}, "with": {}},
        "expect": {"without": {"loss/val": [0, 1e-3]}, "with": {"verdict": "dead_qk"}},
    }
    path = folder / "stop.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return lambda name, *keys: (main(["train", str(path), f"name={name}", *keys]), folder / name)


class Full(Programs):
    """Programs of a device that has no memory for an instrument."""

    def instrument(self, name, states, batches):
        raise MemoryError("no memory left")


@pytest.fixture(scope="module")
def whole(train):
    """The run directories of both without `train.stop_when`."""
    code, folder = train("whole")
    assert code == 1  # the promise that is not kept
    return folder


def test_a_variant_that_vanishes_ends_and_the_other_goes_on(train, whole, capsys):
    code, folder = train("early", STOP)
    out = capsys.readouterr().out
    assert code == 0
    ended = summary(folder / "without")
    assert (ended["exit_reason"], ended["steps"], ended["verdict"]["state"]) == ("verdict", 2, "vanishing")
    assert [*rows(folder / "without")] == [0, 2] and Checkpoints(folder / "without").steps() == [2]
    assert "without: stops at step 2, saved (train.stop_when): vanishing (gradient fades): |delta|" in out
    assert "expect: without: not checked, since train.stop_when ended it" in out and "warning: expect" not in out
    assert summary(folder / "with")["exit_reason"] == "done" and Checkpoints(folder / "with").steps() == [6, 12]
    assert rows(folder / "with") == rows(whole / "with") and arrays(folder / "with") == arrays(whole / "with")


@pytest.mark.slow
def test_it_is_finished_until_its_verdict_is_no_reason_any_more(train, whole, capsys):
    if not (run := whole.parent / "early" / "without").exists():
        train("early", STOP)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train("early", STOP)[0] == 0
    assert "finished before; nothing to do" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert train("early", "train.stop_when=[exploding]")[0] == 1  # it goes on, and its promise is checked
    assert "resuming at step 2 of 12" in capsys.readouterr().out
    assert summary(run)["exit_reason"] == "done"
    assert rows(run) == rows(whole / "without") and arrays(run) == arrays(whole / "without")


@pytest.mark.slow
def test_a_vmapped_group_goes_on_for_the_variants_that_are_left(train, whole):
    code, folder = train("vmap", STOP, "train.group=vmap")
    assert code == 0 and [*rows(folder / "without")] == [0, 2]
    assert summary(folder / "without")["exit_reason"] == "verdict"
    assert summary(folder / "with")["exit_reason"] == "done"
    losses = [[row["loss/train"] for step, row in rows(run / "with").items() if step] for run in (folder, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_verdict_of_dead_qk_says_what_starves_attention(train, whole, capsys):
    """By one reading at the end, or where `train.stop_when` ends it, that leaves no tags; if it fails, without."""
    only = "variants={with: {}}"
    _, read = train("read", only, "watch.instruments={grad_mean: 2}")
    row = {step: values for step, values in rows(read / "with").items() if step in (2, 12)}
    names = [f"grad_mean/mean/layer_{block:03d}/attn_{{}}" for block in range(4)]

    def said(step: int) -> str:
        v, k = (100 * np.median([row[step][name.format(matrix)] for name in names]) for matrix in "vk")
        return f"; at step {step} the means over tokens make {v:.0f} % of the gradient of V, and {k:.0f} % of that of K"

    verdict = summary(whole / "with")["verdict"]
    assert (
        verdict["state"] == "dead_qk"
        and verdict["why"].endswith(said(12))
        and summary(read / "with")["verdict"] == verdict
    )
    assert not any("grad_mean" in tag for values in rows(whole / "with").values() for tag in values)
    assert "at step" not in summary(whole / "without")["verdict"]["why"]
    _, starved = train("starved", only, "train.stop_when=[dead_qk]")
    assert summary(starved / "with")["verdict"]["why"].endswith(said(2)) and said(2) in capsys.readouterr().out

    failed = whole.parent / "failed"
    (run,) = group_runs(whole.parent / "stop.yaml", "name=failed", only, programs=Full)
    run.run()
    assert ": what starves attention was not measured: no memory left" in capsys.readouterr().out
    assert rows(failed / "with") == rows(whole / "with") and summary(failed / "with")["verdict"]["state"] == "dead_qk"
