"""Warnings for valid but suspicious configs; they train all the same."""

import pytest

from train.cli import main
from train.config.checks import warnings_for
from train.config.load import from_mapping
from train.report.read import read_run

LR, WARMUP = "optimizer.lr 0 ", "optimizer.warmup {} is not over within train.steps 10: "
SLOW = "{}: no number of steps above 1 divides all of them"
ENDS = "train.eval_every 250, train.checkpoint_every 500, watch.instruments.noise 3"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, []),
        ({"optimizer": {"lr": 1e-9, "min_lr": 0, "warmup": 0}}, []),
        ({"optimizer": {"warmup": 9}}, []),
        (
            {"variants": {name: {"optimizer.warmup": steps} for name, steps in (("a", 100), ("b", 9), ("c", 10))}},
            ["a: " + WARMUP.format(100), "c: " + WARMUP.format(10)],
        ),
        ({"optimizer": {"lr": 0, "min_lr": 0}}, ["main: " + LR]),
        ({"optimizer": {"lr": 0, "schedule": "constant"}}, ["main: " + LR]),
        ({"sweep": {"seed": [0, 1]}, "optimizer": {"lr": 0, "min_lr": 0}}, ["main,seed=0, main,seed=1: " + LR]),
        (
            {"train": {"steps": 10, "eval_every": 7}},
            ["main: " + SLOW.format("train.eval_every 7, train.checkpoint_every 500, watch.every 10")],
        ),
        ({"watch": {"every": 0, "instruments": {"noise": 3}}}, ["main: " + SLOW.format(ENDS)]),
        # Every step, or a number of steps, was asked for.
        ({"train": {"steps": 10, "eval_every": 1}}, []),
        ({"train": {"steps": 10, "eval_every": 7, "steps_per_call": 1}}, []),
        ({"train": {"steps": 10, "eval_every": 7, "checkpoint_every": 70}, "watch": {"every": 14}}, []),
    ],
)
def test_suspicious_settings_are_named_with_their_variants(entries, expected):
    base = {"name": "a", "train": {"steps": 10}, "optimizer": {"warmup": 0}}
    lines = warnings_for(from_mapping(base | entries).variants)
    assert len(lines) == len(expected) and all(map(str.startswith, lines, expected)), lines


def test_the_learning_rate_is_as_the_warning_says(trained, tmp_path, capsys):
    overrides = (f"runs_dir={tmp_path}", "variants={}", "train.eval_every=5", "optimizer.warmup=199")
    assert main(["train", str(trained[0]), *overrides]) == 0
    warning = (
        "warning: main: optimizer.warmup 199 is not over within train.steps 40: the last step's learning rate is 0.2"
    )
    assert warning in " ".join(capsys.readouterr().out.split())
    _, rates = read_run(tmp_path / "tiny/main").steps["optim/lr"]
    assert float(rates[-1]) == pytest.approx(0.2 * 1e-2, rel=1e-6)
