"""`deltaflow watch`: a report that keeps up with a training, and ends with it."""

import signal
import subprocess
import sys
import time

import pytest

from runs import write_run, write_sweep
from train.store.lock import held, locked


@pytest.fixture
def impatient(monkeypatch):
    """Without the second after which a folder without a training is looked at again."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def test_a_folder_without_a_training_gets_one_report(call, tmp_path, impatient):
    root = write_sweep(tmp_path / "sweep")
    code, out, _ = call("watch", root)
    text = (root / "report.html").read_text(encoding="utf-8")
    assert code == 0 and out == f"nothing trains here now; the report is complete: {(root / 'report.html').as_uri()}\n"
    assert "6 runs in 2 groups" in text and "refresh" not in text


@pytest.mark.parametrize("folder", ["missing", "empty", "new"])
def test_a_folder_without_runs_is_one_line(call, tmp_path, impatient, folder, wording):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "new", "x", done=False).joinpath("metrics.jsonl").unlink()
    code, out, err = call("watch", tmp_path / folder)
    assert code == 2 and out == "" and err.count("\n") == 1
    wording(err, tmp_path / folder)
    assert not (tmp_path / folder / "report.html").exists()


@pytest.mark.slow
def test_a_report_follows_a_training_until_it_ends(tmp_path):
    """The training waits for its first row, logs, and ends."""
    root = tmp_path / "e"
    run = write_run(root, "x", done=False)
    log = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").unlink()
    page = root / "report.html"
    with locked([run], print):
        assert held(run)
        command = [sys.executable, "-m", "train", "watch", str(root), "--every", "1"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == f"no report yet: {root}: nothing to show yet, no run has logged\n"
        (run / "metrics.jsonl").write_text(log)
        assert child.stdout.readline() == f"report: {page.as_uri()} (every 1 s; Ctrl-C ends)\n"
        assert 'http-equiv="refresh" content="1"' in page.read_text() and "x at step 50" in page.read_text()
        before = page.stat().st_mtime_ns
        (run / "metrics.jsonl").write_text(log + '{"step": 51, "loss/train": 2.0}\n')
        deadline = time.monotonic() + 60
        while "x at step 51" not in page.read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert "x at step 51" in page.read_text() and page.stat().st_mtime_ns > before
    assert not held(run)
    assert child.communicate(timeout=60)[0].startswith("nothing trains here now")
    assert child.returncode == 0 and "refresh" not in page.read_text()


@pytest.mark.slow
def test_ctrl_c_leaves_a_report_that_does_not_load_itself_again(tmp_path):
    run = write_run(tmp_path / "e", "x", done=False)
    with locked([run], print):
        child = subprocess.Popen(
            [sys.executable, "-m", "train", "watch", str(tmp_path / "e")], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdout.readline().startswith("report: ")
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=60)[0] == "no longer watched\n" and child.returncode == 0
        assert "refresh" not in (tmp_path / "e" / "report.html").read_text()


def test_a_lock_that_a_killed_training_has_left_is_not_held(tmp_path):
    (tmp_path / ".lock").write_text('{"pid": 1, "host": "elsewhere"}\n')
    assert not held(tmp_path) and (tmp_path / ".lock").exists()
    assert not held(tmp_path / "none") and not (tmp_path / "none").exists()
