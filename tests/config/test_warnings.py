"""What a config may say and hardly anybody means is told, and trains all the same."""

import pytest

from train.cli import main
from train.config.checks import warnings_for
from train.config.load import from_mapping
from train.report.read import read_run

WARMUPS = {"one": {"optimizer.warmup": 100}, "two": {"optimizer.warmup": 9}, "three": {"optimizer.warmup": 10}}


def said(**entries) -> list[str]:
    base = {"name": "doubtful", "train": {"steps": 10}, "optimizer": {"warmup": 0}}
    return warnings_for(from_mapping(base | entries).variants)


def test_a_warm_up_that_outlasts_the_run():
    def line(warmup: int, share: float) -> str:
        return (
            f"optimizer.warmup {warmup} is not over within train.steps 10: the last step's learning rate is {share} of "
            "what the warm-up leads to"
        )

    assert said(variants=WARMUPS) == [f"one: {line(100, 0.099)}", f"three: {line(10, 0.909)}"]


def test_a_learning_rate_of_zero():
    line = "optimizer.lr 0 leaves every parameter as it was drawn"
    assert said(optimizer={"lr": 0, "min_lr": 0}) == [f"main: {line}"]
    assert said(optimizer={"lr": 0, "schedule": "constant"}) == [f"main: {line}"]
    assert said(sweep={"seed": [0, 1]}, optimizer={"lr": 0, "min_lr": 0}) == [f"main,seed=0, main,seed=1: {line}"]


def test_intervals_that_leave_one_step_a_dispatch():
    line = "no number of steps above 1 goes into all, so each is a dispatch of its own (slower)"
    train = {"steps": 10, "eval_every": 7}
    assert said(train=train) == [f"main: train.eval_every 7, train.checkpoint_every 500, watch.every 10: {line}"]
    watch = {"every": 0, "instruments": {"noise": 3}}
    keys = "train.eval_every 250, train.checkpoint_every 500, watch.instruments.noise 3"
    assert said(watch=watch) == [f"main: {keys}: {line}"]
    # Whoever asks for every step, or says how many, means it.
    assert said(train=train | {"eval_every": 1}) == said(train=train | {"steps_per_call": 1}) == []
    assert said(train=train | {"checkpoint_every": 70}, watch={"every": 14}) == []


@pytest.mark.parametrize(
    "entries", [{}, {"optimizer": {"lr": 1e-9, "min_lr": 0, "warmup": 0}}, {"optimizer": {"warmup": 9}}]
)
def test_what_is_meant_is_not_remarked_upon(entries):
    assert said(**entries) == []


def test_it_is_a_warning_and_the_rate_is_as_it_says(trained, tmp_path, capsys):
    overrides = (f"runs_dir={tmp_path}", "variants={}", "train.eval_every=5", "optimizer.warmup=199")
    assert main(["train", str(trained[0]), *overrides]) == 0
    last = "the last step's learning rate is 0.2 of what the warm-up leads to"
    assert f"warning: main: optimizer.warmup 199 is not over within train.steps 40: {last}" in " ".join(
        capsys.readouterr().out.split()
    )
    _, rates = read_run(tmp_path / "tiny/main").steps["optim/lr"]
    assert float(rates[-1]) == pytest.approx(0.2 * 1e-2, rel=1e-6)
