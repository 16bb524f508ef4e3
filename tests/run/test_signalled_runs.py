"""Runs that a signal stops: what is saved, how soon they end, and that going on ends as if it had never come."""

import io
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from runs import SIGNALLED, At, kill
from scripts.faults.tiny import differing, snapshots
from train.cli import main
from train.config.load import load
from train.device.signals import Stop, Stopped, listening
from train.run.experiment import train
from train.store.checkpoint import Checkpoints

pytestmark = SIGNALLED
CONFIG = """
name: s
model: {layers: 1, width: 8, heads: 1, dropout: 0.1}
data: {path: corpus.txt, context: 8, batch: 2}
optimizer: {lr: 1e-2, min_lr: 1e-3, warmup: 3}
train: {steps: 12, eval_every: 4, eval_batches: 1, checkpoint_every: 8, steps_per_call: 2, unroll: 1}
watch: {every: 0}
variants: {a: {}, b: {optimizer.lr: 5e-3}, c: {model.norm: none}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared_programs) -> Path:
    """With a config of two groups, (a, b) and c, and an unbroken run in `whole`."""
    path = tmp_path_factory.mktemp("signals")
    (path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    (path / "s.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["train", "s.yaml", "runs_dir=whole"]) == 0
    return path


@pytest.fixture
def runs_dir(folder, monkeypatch, request):
    """The name of a folder of the test's own in `folder`, which is the current one."""
    monkeypatch.chdir(folder)
    name = re.sub(r"\W", "_", request.node.name)
    yield name
    shutil.rmtree(folder / name, ignore_errors=True)


_moments: list[tuple[str, list[int]]] = []  # (pattern of a path, signals to send as it is opened)


def _opened(event: str, arguments: tuple) -> None:
    if event == "open" and _moments and isinstance(arguments[0], str | os.PathLike):
        if re.search(_moments[0][0], str(arguments[0])):
            for number in _moments.pop()[1]:
                kill(number)


sys.addaudithook(_opened)  # Python's own: nothing of ours is patched to be interrupted


def run(runs_dir: str) -> int:
    return main(["train", "s.yaml", f"runs_dir={runs_dir}"])


def goes_on(folder: Path, runs_dir: str) -> None:
    """The same command ends as the unbroken run: rows, parameters, figures."""
    assert run(runs_dir) == 0
    assert differing(snapshots(folder / "whole"), folder / runs_dir) == []


def saved(folder: Path, runs_dir: str) -> list[list[int]]:
    return [Checkpoints(folder / runs_dir / "s" / name).steps() for name in "abc"]


@pytest.mark.parametrize(
    ("moment", "numbers", "code", "message", "expected"),
    [
        (r"s/a/ckpt/\.00000008", [2], 130, "saved: a, b at step 8; c not begun", [[8], [8], []]),
        # A second one within a save leaves whole checkpoints only: a is saved, and b is not.
        pytest.param(
            *(r"s/b/ckpt/\.00000008", [2, 2], 130, "interrupted during steps 7 to 8", [[8], [], []]),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(r"s/a/\.summary.json", [15], 143, "saved: a, b at step 12; c not begun", [[8, 12], [8, 12], []]),
            marks=pytest.mark.slow,
        ),
        (r"s/c/\.lock", [15], 143, "saved: a, b finished; c not begun", [[8, 12], [8, 12], []]),
    ],
    ids=["a save", "twice in a save", "closing", "the next group"],
)
def test_a_signal_while_files_are_read_and_written(folder, runs_dir, capsys, moment, numbers, code, message, expected):
    _moments.append((moment, numbers))
    assert run(runs_dir) == code and not _moments
    assert message in "".join(capsys.readouterr())
    assert saved(folder, runs_dir) == expected
    goes_on(folder, runs_dir)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_signal_is_told_on_stderr_or_on_a_terminal_under_the_live_lines(
    folder, runs_dir, monkeypatch, capfd, terminal
):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "linux")
    _moments.append((r"s/a/ckpt/\.00000008", [2]))
    assert run(runs_dir) == 130 and "saved: a, b at step 8" in screen.getvalue()
    assert bool(capfd.readouterr().err) is not terminal


def test_where_nothing_is_to_be_saved_it_stops_at_once(folder, runs_dir, capsys, wording):
    for command, note in (("train", "nothing saved: a, b, c"), ("probe", "")):
        _moments.append(("corpus.txt", [15]))
        assert main([command, "s.yaml", f"runs_dir={runs_dir}"]) == 143
        out, err = capsys.readouterr()
        assert note in out and err.count("\n") == 1 and not (folder / runs_dir).exists()
        wording(err)


def test_a_compilation_is_not_waited_for(folder, runs_dir, monkeypatch, capsys, wording):
    release, began = threading.Event(), threading.Event()

    def slow(*_, **__):
        began.set()
        release.wait(60)
        raise RuntimeError("not waited for")

    def later():
        began.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(jax.stages.Lowered, "compile", slow)
    threading.Thread(target=later).start()
    start = time.monotonic()
    try:
        assert main(["train", "s.yaml", f"runs_dir={runs_dir}", "model.width=24"]) == 130  # compiled for no other test
    finally:
        took = time.monotonic() - start
        release.set()
    assert took < 30
    wording(capsys.readouterr().err)
    assert not (folder / runs_dir).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_while_training_saves_the_group_and_leaves_its_evaluation_to_the_next(
    folder, runs_dir, capsys, number
):
    stop = Stop()
    with listening(stop):
        train(load("s.yaml", [f"runs_dir={runs_dir}"]), At(2, lambda: kill(number)), stop)
    assert stop.exit_code == 128 + number
    assert "saved: a, b at step 4; c not begun" in capsys.readouterr().out
    assert saved(folder, runs_dir) == [[4], [4], []]
    meta = Checkpoints(folder / runs_dir / "s" / "a").header(4).meta
    assert meta["eval_pending"] and "loss/val" not in meta["row"]  # step 4 has an evaluation
    goes_on(folder, runs_dir)


@pytest.mark.slow
def test_a_signal_at_the_last_dispatch_leaves_the_last_evaluation(folder, runs_dir):
    """Or the run is over, if the signal is seen when all is evaluated and saved."""
    stop = Stop()
    with listening(stop):
        try:
            train(load("s.yaml", [f"runs_dir={runs_dir}"]), At(12, kill), stop)
        except Stopped:
            pass
    goes_on(folder, runs_dir)


def test_in_the_report_all_training_is_done(folder, runs_dir, capsys, wording):
    _moments.append((r"\.finding_", [15]))
    assert run(runs_dir) == 143 and not _moments
    out, err = capsys.readouterr()
    assert "saved: a, b, c finished" in out
    wording(err)
    assert differing(snapshots(folder / "whole"), folder / runs_dir) == []
