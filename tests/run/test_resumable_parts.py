"""Parts of a group that go on together, by their checkpoints and summaries."""

import shutil

import numpy as np
import pytest

from runs import CONFIG, TEXT, damage
from train.config.load import load
from train.core.state import State
from train.disk import write_json
from train.run.start import finished_run, resumable_parts
from train.store.checkpoint import Checkpoints
from train.store.rundir import directory_of


@pytest.fixture
def run(tmp_path, monkeypatch) -> None:
    """A current folder with tiny.yaml alone."""
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    (tmp_path / "corpus.txt").write_text(TEXT * 20)
    monkeypatch.chdir(tmp_path)


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
