"""Warnings for valid but suspicious configs; they train all the same."""

import numpy as np
import pytest

from train.cli import main
from train.config.checks import warnings_for
from train.config.instruments import INSTRUMENTS
from train.config.load import from_mapping, load
from train.core.schedule import learning_rate


@pytest.mark.parametrize(
    ("entries", "places"),
    [
        ({}, []),
        ({"optimizer": {"lr": 1e-9, "min_lr": 0, "warmup": 0}}, []),
        ({"optimizer": {"warmup": 9}}, []),
        (
            {"variants": {name: {"optimizer.warmup": steps} for name, steps in (("a", 100), ("b", 9), ("c", 10))}},
            ["a: optimizer.warmup 100 ", "c: optimizer.warmup 10 "],
        ),
        ({"optimizer": {"lr": 0, "min_lr": 0}}, ["main: optimizer.lr 0 "]),
        ({"optimizer": {"lr": 0, "schedule": "constant"}}, ["main: optimizer.lr 0 "]),
        (
            {"sweep": {"seed": [0, 1]}, "optimizer": {"lr": 0, "min_lr": 0}},
            ["main,seed=0, main,seed=1: optimizer.lr 0 "],
        ),
        (
            {"train": {"steps": 10, "eval_every": 7}},
            ["main: train.eval_every 7, train.checkpoint_every 500, watch.every 10: "],
        ),
        (
            {"watch": {"every": 0, "instruments": {"noise": 3}}},
            ["main: train.eval_every 250, train.checkpoint_every 500, watch.instruments.noise 3: "],
        ),
        # Every step, or a number of steps, was asked for.
        ({"train": {"steps": 10, "eval_every": 1}}, []),
        ({"train": {"steps": 10, "eval_every": 7, "steps_per_call": 1}}, []),
        ({"train": {"steps": 10, "eval_every": 7, "checkpoint_every": 70}, "watch": {"every": 14}}, []),
    ],
)
def test_suspicious_settings_are_named_with_their_variants(entries, places, wording):
    base = {"name": "a", "train": {"steps": 10}, "optimizer": {"warmup": 0}}
    lines = warnings_for(from_mapping(base | entries).variants)
    assert len(lines) == len(places) and all(map(str.startswith, lines, places)), lines
    for line in lines:
        wording(line)


@pytest.mark.parametrize(("rule", "expected"), [("pre_ln", True), ("none", True), ("attnres", False)])
def test_twins_are_for_rules_with_a_skip_scale(rule, expected):
    config = from_mapping({"name": "a", "model.residual": rule, "watch.instruments.twins": 1}).variants[0].config
    assert INSTRUMENTS["twins"].applies(config) == expected


def test_the_learning_rate_is_as_the_printed_warning_says(tmp_path, corpus, capsys, wording):
    path = tmp_path / "a.yaml"
    keys = ["train: {steps: 40}", f"data: {{path: {corpus}}}", "optimizer: {lr: 1e-2, warmup: 199, freeze: [nosuch]}"]
    path.write_text("\n".join(["name: a", f"runs_dir: {tmp_path}", *keys]))
    assert main(["train", str(path)]) == 2  # for the pattern, which is compared with the parameters after the warning
    (warning,) = (line for line in capsys.readouterr().out.split("\n\n") if "warning: " in line)
    wording(" ".join(warning.partition("warning: ")[2].split()), "main")
    optimizer = load(path).variants[0].config.optimizer
    rate = learning_rate(optimizer, np.float32(optimizer.lr), np.float32(optimizer.min_lr), np.int32(39), 40)
    assert float(rate) == pytest.approx(0.2 * 1e-2, rel=1e-6)
