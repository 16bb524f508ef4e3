"""Every state of the verdict through the command line, one tiny config each, and an interrupted run with spikes."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from runs import events_of, killed_at
from train.cli import main
from train.config.load import load
from train.config.optimizers import OPTIMIZERS
from train.config.schema import STATES
from train.gradflow.advice import advice_for
from train.gradflow.verdict import PLAIN, with_plain_name
from train.report.read import read_run
from train.store.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
MODEL = "model: {layers: 2, width: 16, heads: 2, init_std: 0.1}"

# A warm-up to a rate of 10: well for a while, and then no more. And one at which nothing moves.
TRAINED = """
name: states
{model}
data: {{path: {corpus}, context: 8, batch: 4}}
optimizer: {{warmup: 55, lr: 10.0, schedule: constant}}
train: {{steps: 110, eval_every: 55, eval_batches: 4, checkpoint_every: 11, steps_per_call: 11, unroll: 1}}
watch: {{every: 11, counterfactual: false, diagnose_spikes: 0}}
variants:
  unstable: {{}}
  not_learning: {{optimizer.lr: 1e-9, optimizer.min_lr: 0.0}}
"""

PROBED = {
    "healthy": "{}",
    "dead_qk": "{model.residual: none}",
    "vanishing": "{model.residual: none, model.norm: none}",
    "exploding": "{model.norm: none, model.init_gain.attn_o: 5.0, model.init_gain.mlp_out: 5.0}",
}

# Uniform attention over the same keys makes all tokens alike in one block; K's own size keeps Q's gradient alive.
ALIKE = ["model.layers=1", "model.residual=none", "model.attention=full", "watch.counterfactual=false"]
OWN = """
import numpy as np
from data.custom import OwnSource
from data.source import Batch, DataSpec


class Shift(OwnSource):
    spec = DataSpec("lm", 8, 5, 5)

    def train_batches(self, batch, seed, first_step, steps):
        draws = [np.random.default_rng([seed, first_step + index]).integers(0, 5, (batch, 8)) for index in range(steps)]
        ids = np.stack(draws).astype(np.int32)
        return Batch(ids, (ids + 1) % 5)

    def heldout_batches(self, batch, batches):
        return self.train_batches(batch, 1, 0, 1), np.ones((1, batch), np.float32)
"""


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory, shared_programs) -> tuple[Path, str]:
    """Returns a folder with states.yaml and its finished run `whole`, and the output."""
    folder = tmp_path_factory.mktemp("states")
    (folder / "states.yaml").write_text(TRAINED.format(model=MODEL, corpus=corpus), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", str(folder / "states.yaml"), f"runs_dir={folder / 'whole'}"]) == 0
    return folder, out.getvalue()


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("state", ["unstable", "not_learning"])
def test_states_of_a_run(run, state):
    folder, out = run
    directory = folder / "whole" / "states" / state
    verdict = summary(directory)["verdict"]
    assert verdict["state"] == state
    lines = out.splitlines()
    at = lines.index(f"{state}: {with_plain_name(state)}: {verdict['why']}")
    assert lines[at + 1] == f"  try {verdict['try']}"
    (text,) = (event.tensor_proto.string_val[0].decode() for event in events_of(directory).Tensors("verdict"))
    assert text.startswith(f"**{with_plain_name(state)}**: {verdict['why']}") and text.endswith(f"Try {verdict['try']}")


@pytest.mark.slow
def test_a_spike_is_told_when_it_is_seen(run):
    """Spikes are reported on the console and in TensorBoard with the gradient flow; none for the quiet variant."""
    folder, out = run
    directory = folder / "whole" / "states" / "unstable"
    reports = [line for line in out.splitlines() if "loss spike at step" in line]
    assert (
        reports
        and len(reports) <= 5
        and all(line.startswith("warning: unstable: loss spike at step ") for line in reports)
    )
    assert out.index(reports[0]) < out.index("states: results")
    texts = [
        (event.step, event.tensor_proto.string_val[0].decode())
        for event in events_of(directory).Tensors("verdict/spike")
    ]
    assert [f"warning: unstable: {text.splitlines()[0]}" for _, text in texts] == reports
    for step, text in texts:
        assert text.startswith(f"loss spike at step {step}, ") and "Try optimizer.lr: 0.003 (it is 10.0)" in text
    steps, heights = read_run(directory).steps["loss/spike"]
    first = int(steps[(heights > 0).argmax()])
    assert first - 11 < texts[0][0] <= first and heights[0] == 0.0
    quiet = read_run(folder / "whole" / "states" / "not_learning").steps["loss/spike"][1]
    assert quiet.tolist() == [0.0] * 10


@pytest.mark.slow
@pytest.mark.parametrize("windows", [-1, 1])
def test_a_run_cut_off_before_or_in_its_spike_ends_the_same(run, capsys, windows):
    """The detector's state is in the checkpoint: resumed from that alone, all later results agree."""
    folder, _ = run
    whole = folder / "whole" / "states"
    steps, heights = read_run(whole / "unstable").steps["loss/spike"]
    step = int(steps[(heights > 0).argmax() + windows])
    assert (windows > 0) == (heights[list(steps).index(step)] > 0)
    cut = folder / f"cut{windows}" / "states"
    killed_at(step + 11, folder / "states.yaml", f"runs_dir={cut.parent}")  # before it has saved that
    assert [max(Checkpoints(cut / variant).steps()) for variant in ("unstable", "not_learning")] == [step, step]
    assert main(["train", str(folder / "states.yaml"), f"runs_dir={cut.parent}"]) == 0
    assert f"resuming at step {step} of 110" in capsys.readouterr().out
    for variant in ("unstable", "not_learning"):
        one, other = (read_run(root / variant) for root in (whole, cut))
        for key in ("verdict", "verdict_start", "verdict_end"):
            assert one.summary[key] == other.summary[key]
        np.testing.assert_array_equal(one.steps["loss/spike"], other.steps["loss/spike"])
        metas = [Checkpoints(root / variant).header(110).meta for root in (whole, cut)]
        for key in ("spikes", "spike_watch"):
            assert metas[0][key] == metas[1][key]


@pytest.fixture(
    scope="module", params=[("vanishing", "exploding"), pytest.param(tuple(PROBED), marks=pytest.mark.slow)]
)
def looked(request, corpus, tmp_path_factory) -> list[dict]:
    """Returns the output of `probe --json` for some of PROBED at 12 blocks; these two share a program."""
    folder = tmp_path_factory.mktemp("looked")
    variants = "\n".join(f"  {name}: {PROBED[name]}" for name in request.param)
    text = f"name: p\n{MODEL}\ndata: {{path: {corpus}, context: 8, batch: 4}}\nvariants:\n{variants}\n"
    (folder / "p.yaml").write_text(text, encoding="utf-8")
    file = folder / "p.json"
    keys = ["model.layers=12", "watch.counterfactual=false"]
    assert main(["probe", str(folder / "p.yaml"), *keys, "--json", str(file)]) == 0
    return json.loads(file.read_text(encoding="utf-8"))


def test_states_of_one_backward_pass(looked):
    assert all(result["variant"] == result["verdict"]["state"] for result in looked)
    for result in looked:
        verdict = result["verdict"]
        assert (verdict["try"] is None) == (verdict["state"] == "healthy")
        assert verdict["gain_at_100"] == pytest.approx(verdict["per_layer_gain"] ** 100, rel=1e-9)
        assert verdict["rank_left"] == pytest.approx(np.median(result["act"]["rank"][7:]) / result["act"]["rank"][0])


@pytest.mark.slow
def test_collapsed_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_shift.py").write_text(OWN)
    (tmp_path / "c.yaml").write_text(f"name: c\n{MODEL}\ndata: {{kind: own_shift:Shift, context: 8, batch: 4}}\n")
    assert main(["probe", "c.yaml", *ALIKE, "variants={flat: {model.init_gain.attn_q: 1e-6}, usual: {}}"]) == 0
    out = capsys.readouterr().out
    assert "flat: collapsed (tokens alike): delta arrives" in out and "  try model.residual: pre_ln" in out
    assert "usual: healthy" in out
    assert {"unstable", "not_learning", "collapsed", *PROBED} == {"healthy", *PLAIN} == set(STATES)  # each tested above


# What to try


@pytest.mark.parametrize(
    ("state", "keys", "advice"),
    [
        ("vanishing", {"model.residual": "none"}, "model.residual: pre_ln"),
        ("vanishing", {"model.skip_scale": 0.0}, "model.skip_scale: 1 (it is 0)"),
        ("dead_qk", {"model.skip_scale": 0.5}, "model.skip_scale: 1 (it is 0.5, and multiplies delta twice a block)"),
        ("vanishing", {"model.skip_scale": 0.5}, "model.skip_scale: 1 (it is 0.5"),
        ("vanishing", {"model.norm": "none"}, "model.norm: rms"),
        ("vanishing", {"model.residual": "post_ln"}, "pre_ln or deepnorm"),
        ("vanishing", {"model.init": "normal"}, "model.init: xavier, or a larger model.init_std (it is 0.1)"),
        ("exploding", {"model.skip_scale": 1.5}, "model.skip_scale: 1 (it is 1.5"),
        ("exploding", {"model.norm": "none"}, "model.norm: rms"),
        ("exploding", {"model.residual": "gpt2_scaled"}, "model.residual: deepnorm"),
        ("exploding", {}, "model.residual: gpt2_scaled; or optimizer.lr: 0.0003 (it is 0.001)"),
        ("dead_qk", {"model.residual": "none"}, "model.residual: pre_ln"),
        ("dead_qk", {"model.residual": "value_skipinit"}, "optimizer.lr_factors"),
        ("dead_qk", {}, "model.qk_norm: true"),
        ("dead_qk", {"model.qk_norm": True}, "model.init_gain.attn_v"),
        ("collapsed", {"model.residual": "none"}, "model.residual: pre_ln"),
        ("collapsed", {}, "a longer optimizer.warmup (it is 3)"),
        ("unstable", {"train.steps": 1000}, "optimizer.lr: 0.0003 (it is 0.001), optimizer.warmup: 100 (it is 3)"),
        ("unstable", {"optimizer.clip": None}, "optimizer.clip: 1.0, model.qk_norm: true"),
        ("unstable", {"optimizer.lr": 2e-4}, "optimizer.lr: 7e-5 (it is 0.0002), optimizer.min_lr: 7e-6"),
        ("not_learning", {"optimizer.freeze": ["blocks/attn"]}, "optimizer.freeze: [] (it holds blocks/attn)"),
        ("not_learning", {}, "optimizer.lr: 0.01 (it is 0.001)"),
    ],
)
def test_what_to_try_follows_from_the_config(tiny, state, keys, advice):
    assert advice in str(advice_for(state, tiny(keys).variants[0].config))


def test_a_run_that_does_not_learn_is_told_by_how_much_its_weights_move(tiny):
    high, long, low = "optimizer.lr: 0.03 (it is 0.001)", "longer train.steps", "optimizer.lr: 0.0003"
    for update, advice in ((-8.9, high), (-6.1, high), (-4.0, long), (-1.9, low)):
        assert str(advice_for("not_learning", tiny().variants[0].config, update)).startswith(advice)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "own:rule"])
def test_a_rate_to_try_is_one_that_somebody_would_use(tiny, name):
    """Whatever the rate is, and for every optimizer one at which it trains in configs/optimizers.yaml."""
    base = {"optimizer.name": name, "optimizer.min_lr": 0.0}

    def tried(state, rate, update=None):
        advice = str(advice_for(state, tiny(base | {"optimizer.lr": rate}).variants[0].config, update))
        return float(re.findall(r"optimizer.lr: (\S+)", advice)[0])

    if name == "own:rule":
        assert tried("unstable", 3e6) == 1e6
        return
    used = load(str(ROOT / "configs" / "optimizers.yaml"), []).variants
    (usual,) = (variant.config.optimizer.lr for variant in used if variant.config.optimizer.name == name)
    assert [tried("unstable", usual * scale) for scale in (1e9, 10.0)] == [usual, usual]
    assert tried("unstable", usual / 10) == pytest.approx(usual / 30, rel=0.3)
    assert tried("not_learning", usual / 1e9) < usual and tried("not_learning", usual, -9.0) == pytest.approx(
        10 * usual
    )


@pytest.mark.parametrize(
    "keys", [{}, {"model.residual": "none"}, {"model.norm": "none"}, {"optimizer.lr": 0.0, "optimizer.min_lr": 0.0}]
)
def test_every_state_has_something_to_try_with_keys_that_there_are(tiny, keys):
    config = tiny(keys).variants[0].config
    for state in STATES:
        text = advice_for(state, config)
        assert (text is None) == (state == "healthy")
        for section, name in re.findall(r"\b(model|optimizer|train)\.(\w+)", text or ""):
            assert name in type(getattr(config, section)).model_fields, text
