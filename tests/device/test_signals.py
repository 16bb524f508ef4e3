"""A signal wherever a run may be: what is saved, how soon it ends, and that going on ends as if it had never come."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from runs import At
from scripts.faults.tiny import differing, snapshots
from train.cli import main
from train.config.load import load
from train.device.signals import SIGNALS, Stop, Stopped, listening
from train.run.experiment import train
from train.store.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
# What is cut short in this process, which goes on: files, half an event loop, coroutines that are never awaited.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{each}")
    for each in (
        ":ResourceWarning",
        "coroutine .* was never awaited:RuntimeWarning",
        "Exception ignored in. <(function BaseEventLoop.__del__|coroutine):pytest.PytestUnraisableExceptionWarning",
    )
]
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


@pytest.fixture(autouse=True)
def handlers():
    """Those before each test, and afterwards too. Under nohup SIGHUP would be ignored, here and in children."""
    sighup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    assert [signal.getsignal(number) for number in SIGNALS] == before and signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGHUP, sighup)


def kill(number: int = signal.SIGTERM) -> None:
    """The handler runs before this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


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


def test_where_nothing_is_to_be_saved_it_stops_at_once(folder, runs_dir, capsys):
    for command, doing, note in (("train", " during the reading of data", "nothing saved: a, b, c"), ("probe", "", "")):
        _moments.append(("corpus.txt", [15]))
        assert main([command, "s.yaml", f"runs_dir={runs_dir}"]) == 143
        out, err = capsys.readouterr()
        assert note in out and err == f"deltaflow: stopped{doing}\n" and not (folder / runs_dir).exists()


def test_a_compilation_is_not_waited_for(folder, runs_dir, monkeypatch, capsys):
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
    assert took < 30 and "stopped during set-up and compilation" in capsys.readouterr().err
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


def test_in_the_report_all_training_is_done(folder, runs_dir, capsys):
    _moments.append((r"\.finding_", [15]))
    assert run(runs_dir) == 143 and not _moments
    out, err = capsys.readouterr()
    assert "saved: a, b, c finished" in out and "during the report, with all training done" in err
    assert differing(snapshots(folder / "whole"), folder / runs_dir) == []


# The handlers themselves


def test_a_deferred_signal_is_noted_and_another_is_not():
    stop = Stop()
    with listening(stop):
        with stop.deferred():
            kill(signal.SIGTERM)
            kill(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM and stop.exit_code == 143
            with pytest.raises(KeyboardInterrupt):
                kill(signal.SIGINT)
        assert stop.exit_code == 143
        with pytest.raises(Stopped), stop.deferred():
            pass
    stop = Stop()
    with pytest.raises(Stopped), listening(stop):
        kill(signal.SIGINT)
    assert stop.exit_code == 130


@pytest.mark.parametrize("live", [True, False])
def test_what_is_waited_for_is_said_among_live_lines_or_on_stderr(capfd, live):
    """Rich redraws its lines over whatever else was written there."""
    shown: list[str] = []
    stop = Stop(doing="steps 1 to 2", show=lambda text: shown.append(text) is None and live)
    with listening(stop), stop.deferred():
        kill(signal.SIGINT)
        while not shown:
            time.sleep(0.01)
    (line,) = shown
    assert line == "stopping after this dispatch (steps 1 to 2); SIGINT (Ctrl-C) again stops at once"
    assert capfd.readouterr().err == ("" if live else f"\ndeltaflow: {line}\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_put_back_when_a_signal_comes_at_that_very_moment(monkeypatch, number):
    real, stop = signal.set_wakeup_fd, Stop()

    def put_back(fd, **more):
        if not more:
            kill(number)
            kill(signal.SIGINT)
        return real(fd, **more)

    with monkeypatch.context() as patch:
        patch.setattr(signal, "set_wakeup_fd", put_back)
        with listening(stop):
            pass
    assert stop.signal == number


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_put_back_when_a_signal_comes_as_the_first_one_is_set(monkeypatch, number):
    real, stop = signal.signal, Stop()

    def set_up(which, handler):
        former = real(which, handler)
        if which == number and stop.signal is None:
            os.kill(os.getpid(), number)
        return former

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", set_up)
        with pytest.raises(Stopped), listening(stop):
            raise AssertionError("the signal was not heard")
    assert stop.signal == number


def test_what_is_lost_in_a_finalizer_is_raised_by_the_next_check_and_not_printed(capfd):
    class Dropped:
        def __del__(self):  # Python drops, and prints, what is raised in here
            kill(signal.SIGTERM)

    stop = Stop()
    with listening(stop):
        dropped = Dropped()
        del dropped
        with pytest.raises(Stopped), stop.deferred():
            raise AssertionError("the signal was not noticed")
    assert stop.exit_code == 143
    assert capfd.readouterr().err == ""


def test_no_handler_is_set_in_another_thread_and_no_thread_is_left(handlers):
    count, elsewhere = threading.active_count(), []

    def listen() -> None:
        with listening(Stop()):
            elsewhere.append(signal.getsignal(signal.SIGTERM))

    with listening(Stop()):
        assert signal.getsignal(signal.SIGTERM) != handlers[1]
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert elsewhere == [handlers[1]] and threading.active_count() == count


FINALIZER = """class Dropped:
        def __del__(self):
            print("ready", flush=True)
            for _ in range(100_000):
                hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10)
    Dropped()
    if True:"""
STUCK = """
import hashlib, sys
from train.device.signals import Stop, listening
stop = Stop(doing="a long call")
with listening(stop, hard=True):
    {within}
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)  # Python runs no handler in here
"""


@pytest.mark.slow
def test_a_process_ends_that_does_not_get_round_to_it():
    stuck = "stopped during a long call; what was saved before is kept"
    cases = [
        ("if True:", [signal.SIGTERM], 143, stuck),
        ("if True:", [signal.SIGINT], 130, stuck),
        ("if True:", [signal.SIGHUP], 129, stuck),
        ("with stop.deferred():", [signal.SIGTERM, signal.SIGINT], 143, "stopping after this dispatch (a long call)"),
        (FINALIZER, [signal.SIGTERM], 143, stuck),
    ]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", STUCK.format(within=within)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for within, *_ in cases
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    time.sleep(0.5)  # they are in the call now
    start = time.monotonic()
    for child, (_, numbers, _, _) in zip(children, cases, strict=True):
        for number in numbers:
            child.send_signal(number)
            if number != numbers[-1]:
                time.sleep(0.3)
    for child, (_, _, code, message) in zip(children, cases, strict=True):
        with child:
            assert child.wait(30) == code and time.monotonic() - start < 7
            assert child.stderr is not None and message in child.stderr.read().decode()


@pytest.mark.slow
def test_a_terminal_gets_its_cursor_back_from_a_process_that_does_not_get_round_to_it():
    leader, follower = os.openpty()
    command = [sys.executable, "-c", STUCK.format(within="if True:")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=follower) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 143
    assert b"what was saved before is kept\x1b[?25h" in os.read(leader, 4096)
    os.close(leader)
    os.close(follower)


def test_under_nohup_a_closed_terminal_is_not_heard(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with listening(Stop()):
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) != handlers[1]
    assert signal.signal(signal.SIGHUP, signal.SIG_DFL) == signal.SIG_IGN


CUT_SHORT = """
import os, signal, sys
from train import cli
from train.commands import devices

class Half:
    def __del__(self):
        raise AttributeError("half made")

def cut_short(parsed):
    half = Half()
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100):
        pass

devices.run = cut_short
sys.argv = ["deltaflow", "devices"]
cli.script()
"""


def test_what_is_cut_short_has_no_say():
    child = subprocess.run([sys.executable, "-c", CUT_SHORT], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (143, b"", b"deltaflow: stopped\n")
