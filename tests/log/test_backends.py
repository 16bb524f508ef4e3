"""Backends other than TensorBoard: each is called as its library wants it, and none can stop a training."""

import csv
import errno
import json
import re
import sys
from contextlib import closing
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from runs import rows, train_until
from train.config.load import from_mapping, to_yaml
from train.errors import UserError
from train.log.backends import BACKENDS, Backend, Wandb, check_installed
from train.log.writer import Tracker


class Run:
    """The part of `wandb.Run` that is used; like the server, it has the earlier rows of its id."""

    def __init__(self, history, **init):
        self.init, self.history, self.flat, self.summary, self.finished = init, history, {}, {}, False
        self.config = SimpleNamespace(update=lambda keys, allow_val_change: self.flat.update(keys))
        self.step = history[-1][0] + 1 if history else 0

    def log(self, values, step):
        assert not self.finished
        self.step = step
        self.history.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, and the runs that it has begun."""
    module, runs, histories = ModuleType("wandb"), [], {}
    module.__spec__ = ModuleSpec("wandb", None)

    def init(**arguments):
        runs.append(Run(histories.setdefault(arguments["id"], []), **arguments))
        return runs[-1]

    vars(module).update(init=init, Settings=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_config_scalars_and_final_metrics(tmp_path, wandb):
    directory = tmp_path / "experiment" / "with"
    run = Tracker(directory, backends=["wandb"])
    run.config(from_mapping({"name": "experiment"}).variants[0])
    run.log(0, {"loss/val": 3.0, "weight/norm/layer_000": 1.0, "gain/layer_000": None})
    run.finish({"loss/val": 2.0})
    (begun,) = wandb
    assert (begun.init["project"], begun.init["name"], begun.init["dir"]) == ("experiment", "with", directory)
    assert begun.flat["optimizer.lr"] == 1e-3 and begun.summary == {"loss/val": 2.0} and begun.finished
    assert begun.history == [(0, {"loss/val": 3.0}), (0, {"loss/val": 2.0})]
    assert not list(directory.glob("events*"))


def test_a_resumed_run_goes_on_in_wandb_and_repeats_no_step(tmp_path, wandb):
    for first_step, steps in ((0, range(5)), (3, range(3, 7)), (0, range(2))):
        with closing(Tracker(tmp_path, first_step=first_step, backends=["wandb"])) as run:
            for step in steps:
                run.log(step, {"x": float(step)})
    first, resumed, fresh = wandb
    assert first.init["id"] == resumed.init["id"] != fresh.init["id"] and resumed.init["resume"] == "allow"
    assert [step for step, _ in resumed.history] == list(range(7))
    assert [step for step, _ in fresh.history] == [0, 1]


def test_csv_is_the_log_as_a_table(tmp_path):
    with closing(Tracker(tmp_path, backends=["csv"])) as run:
        run.log(0, {"loss/val": 3.0, "x": None})
        run.log(1, {"loss/train": 2.5, "x": float("inf")})
    with closing(Tracker(tmp_path, first_step=1, backends=["csv"])) as run:
        run.log(1, {"loss/train": 2.25, "x": float("inf")})
    with open(tmp_path / "metrics.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table == [["step", "loss/val", "x", "loss/train"], ["0", "3.0", "", ""], ["1", "", "nan", "2.25"]]


class Failing(Backend):
    def __init__(self, directory, first_step):
        if first_step:
            raise RuntimeError("no key\nand more")

    def __getattribute__(self, name):
        if name in ("log", "text", "finish", "close"):
            raise ConnectionError("no route to host")
        return super().__getattribute__(name)


def test_a_backend_that_fails_is_one_warning(tmp_path, monkeypatch, wording):
    monkeypatch.setitem(BACKENDS, "failing", Failing)
    warnings = []
    for first_step in (0, 1):
        run = Tracker(tmp_path, first_step=first_step, backends=["failing", "csv"], warn=warnings.append)
        run.log(first_step, {"x": 1.0})
        run.text("verdict", 0, "healthy")
        run.finish({"x": 1.0})
    assert len(warnings) == 2
    for warning in warnings:
        wording(warning, tmp_path)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3


def test_an_id_of_wandb_is_whole_or_not_there(tmp_path, wandb, disk):
    """An empty one, left by a kill, would be that of no run."""
    disk.refuse("fsync", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        Wandb(tmp_path, 0)
    assert not list((tmp_path / "wandb").iterdir())
    disk.fault = None
    Wandb(tmp_path, 3)
    assert re.fullmatch("[0-9a-f]{16}", (tmp_path / "wandb" / "id").read_text())


def test_wandb_that_is_not_installed_is_a_line_before_training(tiny, monkeypatch, wording):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with wording.raises(UserError, "log.wandb"):
        check_installed(tiny({"log.wandb": True}).variants[0].config.log)
    check_installed(tiny().variants[0].config.log)


@pytest.mark.slow
def test_a_training_logs_to_what_its_config_names(tiny, tmp_path, wandb):
    """Stopped and resumed: no row is twice in any of them."""
    config = tmp_path / "config.yaml"
    keys = {"runs_dir": str(tmp_path / "runs"), "train.steps_per_call": 5, "model.layers": 1}
    experiment = tiny(keys)
    config.write_text(to_yaml(experiment.variants[0].config))
    chosen = ("log.tensorboard=false", "log.wandb=true", "log.csv=true")

    def stop(signal):
        signal.signal = 15

    train_until(15, config, *chosen, action=stop)
    train_until(10**9, config, *chosen, action=stop)
    run = tmp_path / "runs" / "tiny" / "main"
    assert not list(run.glob("events*"))
    steps = list(rows(run))
    assert steps == list(range(0, 31, 5))
    table = (run / "metrics.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in table] == ["step", *map(str, steps)]
    first, resumed = wandb
    assert first.init["id"] == resumed.init["id"] and resumed.finished
    assert sorted({step for step, _ in resumed.history}) == steps
    final = json.loads((run / "summary.json").read_text())
    assert resumed.summary["loss/val"] == final["loss_val"]
