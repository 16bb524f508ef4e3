"""Loss spikes provoked in tiny runs: what is said about them, and that training never depends on the replay."""

from pathlib import Path

import numpy as np
import pytest

from runs import arrays, events_of, killed_at, rows, summary
from train.cli import main
from train.device.programs import Programs
from train.gradflow import spikes
from train.run import recovery

pytestmark = pytest.mark.usefixtures("shared_programs")
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
def leapt(folder, shared_programs):
    """Both variants; of the one whose update leaps (its directory, and the series, losses and first step compared)."""
    compared = []

    def recorded(*arguments):
        compared.append(arguments)
        return spikes.first_moved(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(recovery, "first_moved", recorded)
        patch.setattr(recovery, "WINDOW", 40)  # so that the replay begins at a checkpoint
        assert main(["train", "s.yaml", "name=leapt"]) == 0
    series, losses, _, first = compared[0]
    return folder / "runs" / "leapt" / "main", series, losses, first


def test_an_update_that_leaps_is_named_everywhere(leapt):
    run, *_ = leapt
    (spike,) = summary(run)["spikes"]
    assert spike["step"] == 64
    assert spike["diagnosis"].startswith("first moved the update per rate of ") and "at step 60)" in spike["diagnosis"]
    assert spike["diagnosis"].endswith("; the loss rose at step 61") and "×1" in spike["diagnosis"]
    assert summary(run)["verdict"]["why"].endswith(f"; spike at step 64: {spike['diagnosis']}")
    (event,) = events_of(run).Tensors("verdict/spike")
    assert event.step == 64 and spike["diagnosis"] in event.tensor_proto.string_val[0].decode()


def test_the_replay_sees_the_steps_of_the_run(leapt):
    """It begins at the checkpoint of step 24; steps that run alone differ from those of a dispatch by rounding."""
    run, series, losses, first = leapt
    assert first == 25 and losses.shape == (40,)
    assert {len(logs) for logs in series.values()} == {40}
    logged = rows(run)
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
    for one, other in ((off, leapt[0]), (off.parent / "shifted", leapt[0].parent / "shifted")):
        assert rows(one) == rows(other) and arrays(one) == arrays(other)


def test_of_a_batch_that_differs_nothing_moved_before_the_loss(leapt):
    (spike,) = summary(leapt[0].parent / "shifted")["spikes"]
    assert spike["diagnosis"].startswith("the loss rose at step 61, and nothing that is watched moved before it")


@pytest.mark.parametrize(
    ("step", "replays"), [(64, 1), pytest.param(80, 0, marks=pytest.mark.slow)], ids=["before", "after"]
)
def test_a_killed_run_tells_the_same_and_replays_once(train, leapt, monkeypatch, step, replays):
    """Killed before the replay; or later, when a checkpoint has the result."""
    monkeypatch.setattr(recovery, "WINDOW", 40)
    monkeypatch.chdir(leapt[0].parents[2])
    killed_at(step, "s.yaml", f"name=killed{step}")
    count, replay = [], recovery.replay
    monkeypatch.setattr(recovery, "replay", lambda *args, **keys: count.append(args) or replay(*args, **keys))
    run = train(f"killed{step}")
    assert len(count) == 2 * replays
    assert summary(run)["spikes"] == summary(leapt[0])["spikes"]
    assert summary(run)["verdict"] == summary(leapt[0])["verdict"]
    assert rows(run) == rows(leapt[0]) and arrays(run) == arrays(leapt[0])


@pytest.mark.slow
def test_a_signal_ends_the_replay_and_is_told(train, leapt, monkeypatch):
    replay, steps = recovery.replay, []

    def signalled(run, *arguments, **keys):
        for each in replay(run, *arguments, **keys):
            steps.append(each.step)
            run.stop.signal = 2 if len(steps) == 5 else run.stop.signal
            yield each

    monkeypatch.setattr(recovery, "replay", signalled)
    assert main(["train", "s.yaml", "name=stopped"]) == 130
    assert len(steps) == 5  # of both variants
    run = train("stopped")
    assert summary(run)["spikes"] == [{"step": 64, "diagnosis": "no diagnosis, the replay was interrupted"}]
    assert rows(run) == rows(leapt[0]) and arrays(run) == arrays(leapt[0])


@pytest.mark.slow
def test_a_replay_that_fails_is_told_and_training_goes_on(train, leapt, monkeypatch):
    joined = Programs.joined

    def full(self, states):
        if isinstance(states[0].step, np.ndarray):
            raise MemoryError("no memory left")
        return joined(self, states)

    monkeypatch.setattr(Programs, "joined", full)
    run = train("failed")
    assert summary(run)["spikes"][0]["diagnosis"] == "no diagnosis, the replay failed: no memory left"
    assert rows(run) == rows(leapt[0]) and arrays(run) == arrays(leapt[0])


@pytest.mark.slow
def test_without_a_checkpoint_that_is_near_there_is_no_diagnosis(train, monkeypatch):
    monkeypatch.setattr(recovery, "NEAREST", 41)  # there are 24 and 48
    monkeypatch.setattr(recovery, "FARTHEST", 60)
    run = train("far")
    assert summary(run)["spikes"][0]["diagnosis"] == "no diagnosis, there is no checkpoint 41 to 60 steps before it"


@pytest.mark.slow
def test_variants_of_one_call_share_the_number_of_diagnoses(train):
    run = train("vmapped", "train.group=vmap", "watch.diagnose_spikes=1")
    assert "at step 60)" in summary(run)["spikes"][0]["diagnosis"]
    assert summary(run.parent / "shifted")["spikes"] == []


@pytest.mark.slow
def test_a_resumed_run_does_not_replay_from_parameters_that_it_has_not_read(train, leapt, monkeypatch):
    """Those of `train.init_from`, which only a fresh run reads; there is no other state 41 steps before the spike."""
    monkeypatch.setattr(recovery, "NEAREST", 41)
    monkeypatch.chdir(leapt[0].parents[2])
    keys = [f"train.init_from={leapt[0].parent / 'shifted'}", "variants={main: {}}"]
    assert "moved" in summary(train("warm", *keys))["spikes"][0]["diagnosis"]
    killed_at(64, "s.yaml", "name=warm_killed", *keys)
    assert "no checkpoint 41 to" in summary(train("warm_killed", *keys))["spikes"][0]["diagnosis"]
