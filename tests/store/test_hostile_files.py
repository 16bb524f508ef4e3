"""Files and names that were made to do harm: the sweep in small, and that it would notice."""

import os
import pickle
import subprocess

import numpy as np

from scripts.torture import audit, hostile, pickles


def test_the_sweep_in_small():
    found = list(hostile.rows(scale=0.1, seed=1))
    assert len(found) == 5
    for row in found:
        assert row.held == row.trials > 0, row.broken
    assert sum(row.trials for row in found) > 100


def test_the_sweep_notices_what_is_executed_and_what_is_written(tmp_path):
    for part in ("runs", "work"):
        (tmp_path / part).mkdir()
    evil = pickle.dumps(pickles.Marker(tmp_path / "executed"))
    row = audit.sweep("", "", [("a", lambda: str(pickle.loads(evil))[:0])], tmp_path)
    assert row.held == 0 and row.broken == ("a: was executed",)

    def trial(call):
        row = audit.sweep("", "", [("a", lambda: (call(), "")[1])], tmp_path)
        return row.held, row.broken

    assert trial(lambda: (tmp_path / "runs" / "x").write_text("x")) == (1, ())
    assert trial(lambda: (tmp_path / "x").write_text("x"))[1] == (f"a: wrote {tmp_path / 'x'}",)
    assert trial(lambda: (tmp_path / "x").rename(tmp_path / "y"))[0] == 0
    assert trial(lambda: os.remove(tmp_path / "y"))[0] == 0
    assert trial(lambda: (tmp_path / "z").mkdir())[0] == 0
    assert trial(lambda: subprocess.run(["true"], check=True))[1][0].startswith("a: ran subprocess.Popen")


def test_the_sweep_notices_a_reader_that_unpickles(monkeypatch):
    real = np.lib.format.open_memmap

    def careless(path, mode):
        np.load(path, allow_pickle=True)
        return real(path, mode=mode)

    monkeypatch.setattr(np.lib.format, "open_memmap", careless)
    row = next(iter(hostile.rows(scale=0.1, seed=1)))
    assert row.held < row.trials and any("executed" in line for line in row.broken)


def test_the_sweep_notices_a_name_that_is_not_checked(monkeypatch):
    monkeypatch.setattr("train.config.load.safe", lambda name: True)
    monkeypatch.setattr("train.config.expand.safe", lambda name: True)
    row = list(hostile.rows(scale=0.02, seed=1))[1]
    assert row.held < row.trials
