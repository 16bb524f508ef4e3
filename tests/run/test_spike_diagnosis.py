"""Loss spikes provoked in tiny runs: what is said about them, and that training never depends on the replay."""

import re
from pathlib import Path

import numpy as np
import pytest

from runs import arrays, events_of, group_runs, killed_at, rows, summary
from train.cli import main
from train.device.programs import Programs
from train.run.recovery import replay, series_of
from train.store.checkpoint import Checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_programs")]
# Regression on the mean of four numbers; under data seed 1 the targets of steps 61 to 80 are others. And Adam, whose
# 60th update is larger by a factor, for which `weight_decay` serves. Two variants of one program, so.
CODE = """
import jax
import jax.numpy as jnp
import numpy as np
import optax
from data.custom import OwnSource
from data.source import Batch, DataSpec


class Means(OwnSource):
    spec = DataSpec("regression", 4, None, 1, channels=1, pooled=True)

    def drawn(self, seed, step, batch):
        rng = np.random.default_rng([seed, step])
        inputs = rng.normal(size=(batch, 4, 1)).astype(np.float32)
        targets = np.mean(inputs, axis=1) + rng.normal(size=(batch, 1)).astype(np.float32) / 4
        return inputs, targets + np.float32(2) if seed == 1 and 60 <= step < 80 else targets

    def train_batches(self, batch, seed, first_step, steps):
        drawn = [self.drawn(seed, step, batch) for step in range(first_step, first_step + steps)]
        return Batch(*(np.stack(part) for part in zip(*drawn)))

    def heldout_batches(self, batch, batches):
        return Batch(*(part[None] for part in self.drawn(99, 1000, batch))), np.ones((1, batch), np.float32)


def leaps(hp, rate):
    def update(updates, count, params=None):
        factor = jnp.where(count == 59, 1 + hp["weight_decay"], 1.0)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), count + 1

    leap = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
    return optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(rate), leap)
"""
CONFIG = """
name: s
model: {layers: 2, width: 8, heads: 1, attention: full}
data: {kind: spiky_batches:Means, context: 4, batch: 16}
optimizer: {name: spiky_batches:leaps, lr: 1e-2, schedule: constant, warmup: 0, weight_decay: 1e3, clip: null}
train: {steps: 96, eval_every: 48, eval_batches: 1, checkpoint_every: 24, steps_per_call: 8, unroll: 1}
watch: {every: 8, counterfactual: false, instruments: {ledger: 24, attention: 24}}
variants: {main: {}, shifted: {data.seed: 1, optimizer.weight_decay: 0}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spikes")
    (path / "spiky_batches.py").write_text(CODE)
    (path / "s.yaml").write_text(CONFIG)
    return path


@pytest.fixture
def train(folder, monkeypatch):
    """Runs a command line in the folder; returns the run directory of the variant `main`."""
    monkeypatch.chdir(folder)

    def run(name: str, *more: str) -> Path:
        assert main(["train", "s.yaml", f"name={name}", *more]) == 0
        return folder / "runs" / name / "main"

    return run


@pytest.fixture(scope="module")
def leapt(folder, shared_programs) -> Path:
    """The directory of the variant whose update leaps, next to that of the other one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "s.yaml", "name=leapt"]) == 0
    return folder / "runs" / "leapt" / "main"


def test_an_update_that_leaps_is_named_everywhere(leapt):
    run = leapt
    (spike,) = summary(run)["spikes"]
    assert spike["step"] == 64
    assert spike["diagnosis"].startswith("first moved the update per rate of ") and "at step 60)" in spike["diagnosis"]
    assert spike["diagnosis"].endswith("; the loss rose at step 61")
    assert 500 < max(map(float, re.findall(r"\(×(\d+) at step 60\)", spike["diagnosis"]))) < 1100  # 1001 of each step
    assert summary(run)["verdict"]["why"].endswith(f"; spike at step 64: {spike['diagnosis']}")
    (event,) = events_of(run).Tensors("verdict/spike")
    assert event.step == 64 and spike["diagnosis"] in event.tensor_proto.string_val[0].decode()


def test_the_replay_sees_the_steps_of_the_run(leapt, monkeypatch):
    """It begins at the checkpoint of step 24; steps that run alone differ from those of a dispatch by rounding."""
    monkeypatch.chdir(leapt.parents[2])
    killed_at(64, "s.yaml", "name=replayed")
    (run,) = group_runs("s.yaml", "name=replayed")
    run.checkpoints = [Checkpoints(directory) for directory in run.setup.directories]
    steps = list(replay(run, 0, 24, 25, 64, watch_all=True, instruments=["attention", "ledger"]))
    series, losses = series_of(steps, "float32"), np.array([each.metrics.loss[0] for each in steps])
    assert [each.step for each in steps] == list(range(24, 64))
    assert {len(logs) for logs in series.values()} == {40}
    logged = rows(leapt)
    for start in range(24, 64, 8):
        at = start - 24
        assert np.mean(losses[at : at + 8]) == pytest.approx(logged[start + 8]["loss/train"], rel=1e-5)
        tags = {f"delta/norm_log10/layer_{depth:03d}": f"δ at depth {depth}" for depth in range(3)}
        tags |= {"grad/norm_log10/layer_001/attn_q": "the gradient of attn_q in block 1"}
        tags |= {"grad/norm_log10/head": "the gradient of head"}
        for tag, name in tags.items():
            assert series[name][at] == pytest.approx(logged[start][tag], abs=1e-4), (start, tag)
        ratio = logged[start]["update/ratio_log10/layer_000/mlp_in"]
        assert series["the update per rate of mlp_in in block 0"][at] == pytest.approx(ratio + 2, abs=1e-4)
        rms = np.log10(logged[start]["act/rms/layer_002"])
        assert series["the stream's rms at depth 2"][at] == pytest.approx(rms, abs=1e-4)
    for start in (24, 48):  # and what instruments read, but for heads and cosines
        entropy, ratio = (logged[start][f"{tag}/layer_001"] for tag in ("attn/entropy", "ledger/mlp_ratio_log10"))
        assert series["the attention entropy of block 1"][start - 24] == pytest.approx(np.log10(entropy), abs=1e-4)
        assert series["ledger/mlp_ratio_log10/layer_001"][start - 24] == pytest.approx(ratio, abs=1e-4)
    assert not any("head_" in name or "cosine" in name for name in series)
    np.testing.assert_allclose(series["the learning rate"], -2, atol=1e-6)


def test_a_diagnosis_changes_nothing_of_the_run(train, leapt, capsys):
    off = train("off", "watch.diagnose_spikes=0")
    assert "loss spike at step 64" in (out := capsys.readouterr().out) and "moved" not in out
    assert summary(off)["spikes"] == []
    for one, other in ((off, leapt), (off.parent / "shifted", leapt.parent / "shifted")):
        assert rows(one) == rows(other) and arrays(one) == arrays(other)


def test_of_a_batch_that_differs_nothing_moved_before_the_loss(leapt):
    (spike,) = summary(leapt.parent / "shifted")["spikes"]
    assert spike["diagnosis"].startswith("the loss rose at step 61, and nothing that is watched moved before it")


@pytest.mark.parametrize(("step", "replays"), [(64, 1), (80, 0)], ids=["before", "after"])
def test_a_killed_run_tells_the_same_and_replays_once(train, leapt, monkeypatch, capsys, step, replays):
    """Killed before the replay; or later, when a checkpoint has the result."""
    monkeypatch.chdir(leapt.parents[2])
    killed_at(step, "s.yaml", f"name=killed{step}")
    capsys.readouterr()
    run = train(f"killed{step}")
    assert capsys.readouterr().out.count("; replaying the steps before it") == 2 * replays
    assert summary(run)["spikes"] == summary(leapt)["spikes"]
    assert summary(run)["verdict"] == summary(leapt)["verdict"]
    assert rows(run) == rows(leapt) and arrays(run) == arrays(leapt)


def test_a_signal_ends_the_replay_and_is_told(train, leapt, monkeypatch):
    """At its fifth step; those of a dispatch are eight."""
    monkeypatch.chdir(leapt.parents[2])
    alone = 0

    class Signalled(Programs):
        def dispatch(self, states, batches, watched):
            nonlocal alone
            alone += len(batches[0].inputs) == 1
            run.stop.signal = 2 if alone == 5 else run.stop.signal
            return super().dispatch(states, batches, watched)

    (run,) = group_runs("s.yaml", "name=stopped", programs=Signalled)
    assert [each["exit_reason"] for each in run.run()] == ["signal 2"] * 2
    assert alone == 5  # of both variants
    stopped = train("stopped")
    assert summary(stopped)["spikes"] == [{"step": 64, "diagnosis": "no diagnosis, the replay was interrupted"}]
    assert rows(stopped) == rows(leapt) and arrays(stopped) == arrays(leapt)


class Full(Programs):
    """Programs of a device that has no memory for the states of a replay."""

    def joined(self, states):
        if isinstance(states[0].step, np.ndarray):
            raise MemoryError("no memory left")
        return super().joined(states)


def test_a_replay_that_fails_is_told_and_training_goes_on(leapt, monkeypatch):
    monkeypatch.chdir(leapt.parents[2])
    (run,) = group_runs("s.yaml", "name=failed", programs=Full)
    failed, _ = run.run()
    assert failed["spikes"][0]["diagnosis"] == "no diagnosis, the replay failed: no memory left"
    directory = leapt.parents[1] / "failed" / "main"
    assert rows(directory) == rows(leapt) and arrays(directory) == arrays(leapt)


def test_variants_of_one_call_share_the_number_of_diagnoses(train):
    run = train("vmapped", "train.group=vmap", "watch.diagnose_spikes=1")
    assert "at step 60)" in summary(run)["spikes"][0]["diagnosis"]
    assert summary(run.parent / "shifted")["spikes"] == []


def test_a_resumed_run_does_not_replay_from_parameters_that_it_has_not_read(train, leapt, monkeypatch):
    """Those of `train.init_from`, which only a fresh run reads; there is no other state 40 steps before the spike."""
    monkeypatch.chdir(leapt.parents[2])
    keys = [f"train.init_from={leapt.parent / 'shifted'}", "variants={main: {}}", "train.checkpoint_every=32"]
    assert "moved" in summary(train("warm", *keys))["spikes"][0]["diagnosis"]
    killed_at(64, "s.yaml", "name=warm_killed", *keys)
    diagnosis = "no diagnosis, there is no checkpoint 40 to 1000 steps before it"
    assert summary(train("warm_killed", *keys))["spikes"] == [{"step": 64, "diagnosis": diagnosis}]
