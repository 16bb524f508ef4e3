"""Fine-tuning from another run: what matches is taken, the rest is fresh, and both are printed."""

import json

import jax
import numpy as np
import pytest

from train.cli import main
from train.errors import UserError
from train.run.transfer import PretrainedRun, transferred
from train.store.checkpoint import Checkpoints


def tree(fill: float, width: int = 3):
    full = np.full
    return {"blocks": {"mlp": {"in_": {"kernel": full((2, 3, width), fill)}}}, "embed": full((5, 3), fill)}


def source(params, tokenizer=None):
    flat = {"blocks/mlp/in/kernel": params["blocks"]["mlp"]["in_"]["kernel"], "embed": params["embed"]}
    return PretrainedRun("elsewhere", 3, flat, tokenizer)  # pyright: ignore[reportArgumentType]


def test_equal_paths_and_shapes_are_taken_and_the_rest_is_left():
    fresh = jax.tree.map(np.float32, {**tree(1.0), "norm_f": {"gain": np.ones(3)}, "head": np.ones((5, 3))})
    old = source(tree(2.0, width=4))
    old.params["positions"] = np.ones((4, 3))  # pyright: ignore[reportIndexIssue]
    got = transferred(old, fresh, {"kind": "char"})
    assert got.matched == ["embed"]
    assert got.new == ["blocks/mlp/in/kernel ([2, 3, 4] there, [2, 3, 3] here)", "head", "norm_f/gain"]
    assert got.left_out == ["blocks/mlp/in/kernel", "positions"]
    assert (got.params["embed"] == 2).all() and got.params["embed"].dtype == np.float32
    assert (got.params["blocks"]["mlp"]["in_"]["kernel"] == 1).all() and (got.params["head"] == 1).all()


def test_rows_of_another_tokenizer_are_not_taken():
    got = transferred(source(tree(2.0), {"vocab": "ab"}), tree(1.0), {"vocab": "cd"})
    assert got.matched == ["blocks/mlp/in/kernel"] and got.new == ["embed (another tokenizer there)"]
    assert (got.params["embed"] == 1).all()
    same = transferred(source(tree(2.0), {"vocab": "ab"}), tree(1.0), {"vocab": "ab"})
    assert same.new == same.left_out == []


def test_nothing_in_common_is_an_error(wording):
    with wording.raises(UserError):
        transferred(source({**tree(2.0, 4), "embed": np.ones((6, 3))}), tree(1.0), None)


def first_row(directory):
    return json.loads((directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])


@pytest.mark.parametrize("group", ["turn", pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_run_goes_on_from_another_s_loss(trained, tmp_path, capsys, group):
    config, run = trained
    keys = [f"runs_dir={tmp_path}", f"train.init_from={run}", "optimizer.ema=0.5", f"train.group={group}"]
    keys += ["train.steps=5", "watch.every=0", "variants={low: {optimizer.lr: 2e-3}, high: {optimizer.lr: 4e-3}}"]
    assert main(["train", str(config), *keys]) == 0
    printed = capsys.readouterr().out
    assert "step 40" in printed and "matched" in printed and "left out" in printed
    end = json.loads((run / "summary.json").read_text(encoding="utf-8"))["loss_val"]
    for variant in ("low", "high"):
        row = first_row(tmp_path / "tiny" / variant)
        assert row["step"] == 0
        assert row["loss/val"] == pytest.approx(end, rel=1e-5) and row["loss/val_ema"] == row["loss/val"]


def test_a_folder_that_is_no_run_is_one_line(trained, tmp_path, capsys, wording):
    config, run = trained
    assert main(["train", str(config), f"runs_dir={tmp_path}", f"train.init_from={tmp_path}"]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    wording(printed, f"command line: train.init_from: {tmp_path}")


def test_parameters_are_read_without_knowing_the_model(trained):
    _, run = trained
    params = Checkpoints(run).params(40)
    assert params["embed"].shape[1] == 16 and params["blocks"]["attn"]["q"]["kernel"].shape == (2, 16, 16)
