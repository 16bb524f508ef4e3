"""Recovery from steps that are not finite: seen at the exact step, and each policy kept to the bit."""

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runs import arrays, killed_at, rows, summary
from train.cli import main
from train.report.comparison import as_markdown, compare
from train.run.recovery import NonfiniteSteps, first_nonfinite
from train.store.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("shared_programs")
# Batches of one number to tell from four; those in `bad` hold a target whose square float32 cannot.
DATA = """
import numpy as np
from data.custom import OwnSource
from data.source import Batch, DataSpec


class Calm(OwnSource):
    bad = ()
    spec = DataSpec("regression", 4, None, 1, channels=1, pooled=True)

    def drawn(self, seed, step, batch):
        rng = np.random.default_rng([seed, step])
        inputs = rng.normal(size=(batch, 4, 1)).astype(np.float32)
        targets = np.mean(inputs, axis=1)
        return inputs, targets * np.float32(1e30) if step in self.bad else targets

    def train_batches(self, batch, seed, first_step, steps):
        drawn = [self.drawn(seed, step, batch) for step in range(first_step, first_step + steps)]
        return Batch(*(np.stack(part) for part in zip(*drawn)))

    def heldout_batches(self, batch, batches):
        return Batch(*(part[None] for part in self.drawn(99, 1000, batch))), np.ones((1, batch), np.float32)


class Stormy(Calm):
    bad = (9,)


class Ever(Calm):
    bad = range(9, 1000)


class Always(Calm):
    bad = range(1000)
"""
CONFIG = """
name: n
model: {layers: 2, width: 8, heads: 1, attention: full}
data: {kind: stormy_batches:Stormy, context: 4, batch: 4}
optimizer: {name: adam, lr: 1e-2, schedule: constant, warmup: 0, decay: l2, weight_decay: 0}
train: {steps: 16, eval_every: 8, eval_batches: 1, checkpoint_every: 4, steps_per_call: 4, unroll: 1}
watch: {every: 4, counterfactual: false}
"""
GROUP = [
    "optimizer={name: sgd, lr: 1e-2, schedule: constant, warmup: 0, clip: null}",
    "data.kind=stormy_batches:Calm",
    "variants={good: {}, bad: {optimizer.lr: 1e30}, late: {optimizer.lr: 2e-2}}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("nonfinite")
    (path / "stormy_batches.py").write_text(DATA)
    (path / "n.yaml").write_text(CONFIG)
    return path


@pytest.fixture
def train(folder, monkeypatch):
    """Runs a command line in the folder; the exit code."""
    monkeypatch.chdir(folder)
    return lambda name, *more: main(["train", "n.yaml", f"name={name}", *more])


@pytest.fixture(scope="module")
def alone(folder, shared_programs):
    """`good` without the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "n.yaml", "name=alone", *GROUP[:2], "variants={good: {}}", "train.group=turn"]) == 0
    return folder / "runs" / "alone" / "good"


@pytest.mark.parametrize("group", ["turn", pytest.param("vmap", marks=pytest.mark.slow)])
def test_stop_ends_one_variant_and_leaves_the_others_alone(train, folder, alone, capsys, group):
    assert train(group, *GROUP, f"train.group={group}") == 1
    out = capsys.readouterr().out
    root = folder / "runs" / group
    ended, logged = summary(root / "bad"), rows(root / "bad")
    step = ended["first_nonfinite_step"]
    assert ended["exit_reason"] == "nonfinite" and 1 <= step <= 3 and ended["steps"] == step
    assert f"bad: step {step}: the " in out and "pass went bad first" in out and ended["nonfinite"] in out
    assert f"bad: stops at step {step}; there was no checkpoint yet" in out
    report = as_markdown(compare([root]))
    assert ended["nonfinite"] in report and f"the run stopped at step {step}" in report
    (event,) = EventAccumulator(str(root / "bad")).Reload().Tensors("verdict/nonfinite")
    text = event.tensor_proto.string_val[0]
    assert event.step == step and b"pass went bad first" in text and b"Try " in text
    assert [*logged] == [0, step] and logged[step]["optim/nonfinite"] == 1
    assert Checkpoints(root / "bad").steps() == []
    assert ended["verdict"]["state"] == "unstable" and f"at step {step}" in ended["verdict"]["why"]
    for name in ("good", "late"):
        assert summary(root / name)["exit_reason"] == "done" and summary(root / name)["first_nonfinite_step"] is None
        assert [*rows(root / name)] == [0, 4, 8, 12, 16]
    if group == "turn":
        assert rows(root / "good") == rows(alone) and arrays(root / "good") == arrays(alone)
    else:
        losses = [[row["loss/train"] for step, row in rows(run).items() if step] for run in (root / "good", alone)]
        np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_bad_again_at_the_same_step_and_may_then_skip(train, folder, capsys):
    assert train("stormy") == 1
    run = folder / "runs" / "stormy" / "main"
    first, state = rows(run), arrays(run)
    assert max(first) == 10 and Checkpoints(run).steps() == [4, 8]
    assert "main: step 10: the forward pass went bad first: the logits or the loss" in capsys.readouterr().out
    assert train("stormy") == 1
    assert rows(run) == first and arrays(run) == state
    # Killed before it was noticed, and gone on with.
    killed_at(8, "n.yaml", "name=stormy_killed")
    assert train("stormy_killed") == 1
    assert rows(folder / "runs" / "stormy_killed" / "main") == first
    # The policy decides on nothing before the bad step, so it may change now.
    assert train("stormy", "train.on_nonfinite=skip") == 0
    assert train("skipped", "train.on_nonfinite=skip") == 0
    other = Checkpoints(folder / "runs" / "skipped" / "main").arrays(16)
    for path, array in Checkpoints(run).arrays(16).items():
        np.testing.assert_allclose(array, other[path], rtol=1e-2, atol=1e-3)  # another program: equal up to rounding


@pytest.mark.slow
def test_skip_leaves_out_one_update_and_counts_the_step(train, folder):
    if not (run := folder / "runs" / "skipped" / "main").exists():
        assert train("skipped", "train.on_nonfinite=skip") == 0
    ended, logged = summary(run), rows(run)
    assert (ended["exit_reason"], ended["skipped_steps"], ended["first_nonfinite_step"]) == ("done", 1, 10)
    assert "the logits or the loss" in ended["nonfinite"]
    assert [row["optim/skipped"] for step, row in logged.items() if step] == [0, 0, 1, 0]
    assert all(np.isfinite(row["loss/train"]) and "nonfinite" not in row for step, row in logged.items() if step)
    killed_at(12, "n.yaml", "name=skipped_killed", "train.on_nonfinite=skip")
    assert train("skipped_killed", "train.on_nonfinite=skip") == 0
    other = folder / "runs" / "skipped_killed" / "main"
    assert rows(other) == logged and arrays(other, 16) == arrays(run, 16)
    again = summary(other)
    assert all(again[key] == ended[key] for key in ("skipped_steps", "first_nonfinite_step", "nonfinite", "verdict"))


@pytest.mark.slow
def test_updates_that_were_skipped_count_under_the_other_policy_too(train, folder, capsys):
    killed_at(16, "n.yaml", "name=changed", "train.on_nonfinite=skip")
    assert train("changed") == 0
    assert summary(folder / "runs" / "changed" / "main")["skipped_steps"] == 1
    assert "main: 1 update was left out; the first that was not finite was step 10" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "K", "every", "last"),
    [("Ever", 20, 5, 120), ("Always", 100, 10, 100)],
)
def test_a_run_that_skipped_too_often_ends_with_its_rows_in_order(train, folder, kind, K, every, last):
    keys = [f"data.kind=stormy_batches:{kind}", f"train.steps_per_call={K}", f"watch.every={every}"]
    keys += [
        "train.on_nonfinite=skip",
        "train.steps=200",
        f"train.eval_every={2 * K}",
        f"train.checkpoint_every={2 * K}",
    ]
    assert train(f"stuck_{kind}", *keys) == 1
    run = folder / "runs" / f"stuck_{kind}" / "main"
    assert max(rows(run)) == last and summary(run)["exit_reason"] == "nonfinite"


def test_the_memory_of_bad_steps():
    finite = np.array([True, False, True, True])
    memory = NonfiniteSteps().skipping(finite, 8).diagnosed(10, "why").diagnosed(12, "other")
    assert (memory.first, memory.cause, memory.skipped, memory.in_a_row) == (10, "why", 1, 0)
    memory = memory.skipping(np.array([True, True, False, False]), 12).skipping(np.zeros(4, bool), 16)
    assert (memory.skipped, memory.in_a_row) == (7, 6)
    assert first_nonfinite(finite, 8) == 10 and first_nonfinite(np.ones(4, bool), 8) is None
    assert NonfiniteSteps(**json.loads(json.dumps(vars(memory)))) == memory
