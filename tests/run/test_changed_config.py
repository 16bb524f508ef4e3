"""A run that is there already under another config: what is refused, and what may change on the way."""

import json
import re
import shutil
from pathlib import Path

import pytest

from runs import arrays, contents, cut_back, rows, same, summary
from train.cli import main
from train.store import tensors
from train.store.checkpoint import Checkpoints


@pytest.mark.parametrize(
    ("keys", "differing"),
    [
        (["model.width=16"], ["model.width"]),
        (["optimizer.lr=2e-2", "seed=1"], ["seed", "data.seed", "optimizer.lr"]),
    ],
)
def test_another_config_is_refused_by_its_keys(run, train, keys, differing, wording):
    before = contents(run)
    code, _, err = train(*keys)
    assert code == 2 and re.findall(r"([\w.]+): \S+ there", err) == differing
    assert err.count("\n") == 1 and contents(run) == before
    wording(err, "runs/tiny/main")


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


def test_the_parameters_do_not_depend_on_what_is_saved_and_evaluated(run, original, train):
    cut_back(run)
    assert train("train.eval_every=12", "train.checkpoint_every=12")[0] == 0
    assert arrays(run) == arrays(original / run)


@pytest.mark.parametrize("trained", [12, 8])
def test_fewer_steps_than_were_trained_are_refused(run, train, trained, wording):
    if trained == 8:
        cut_back(run)
    before = contents(run)
    code, _, err = train("train.steps=4")
    assert code == 2 and re.findall(r"\d+", err) == [str(trained), "4"]
    wording(err, "runs/tiny/main")
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


def test_a_config_that_was_edited_is_seen_by_the_checkpoint(run, train, capsys, wording):
    cut_back(run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("warmup: 2", "warmup: 3"))
    place = "runs/tiny/main/ckpt/00000008.safetensors"
    code, _, err = train("optimizer.warmup=3")
    assert code == 2 and "optimizer.warmup: 2 " in err
    wording(err, place)
    assert main(["sample", str(run), "--top", "1"]) == 2  # heads, say, change what arrays of the same shapes compute
    wording(capsys.readouterr().err, place)


@pytest.mark.parametrize("finished", [True, False])
def test_a_config_that_was_lost_is_known_by_the_checkpoint(run, original, train, finished, wording):
    if not finished:
        cut_back(run)
    (run / "config.yaml").unlink()
    code, _, err = train("model.layers=2")
    assert code == 2 and "model.layers: 1 " in err
    wording(err, f"runs/tiny/main/ckpt/{12 if finished else 8:08d}.safetensors")
    assert not (run / "config.yaml").exists()
    assert train()[0] == 0
    assert (run / "config.yaml").read_text() == (original / run / "config.yaml").read_text() and same(run, original)


def test_other_names_are_no_other_config(run, original, train):
    cut_back(run)
    shutil.move("runs", "moved")
    shutil.move("moved/tiny", "moved/renamed")
    assert train("runs_dir=moved", "name=renamed")[0] == 0
    assert arrays(Path("moved/renamed/main")) == arrays(original / run)


def test_other_versions_and_devices_are_told_in_one_line(run, original, train, wording):
    cut_back(run)
    path = Checkpoints(run).path(8)
    metadata, saved = tensors.read(path)
    provenance = json.loads(metadata["provenance"])
    provenance["versions"]["jax"], provenance["device"]["count"] = "0.0.1", 4
    with open(path, "wb") as file:
        tensors.write(file, saved, metadata | {"provenance": json.dumps(provenance)})
    code, out, err = train()
    (line,) = (line for line in out.splitlines() if "bitwise" in line)
    now = Checkpoints(original / run).header(12).provenance["versions"]["jax"]
    assert (code, err) == (0, "") and now in line
    wording(line, volatile=rf"\b{re.escape(now)}\b")
