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

import pytest

from scripts.faults.programs import shared
from scripts.faults.tiny import differing, snapshots
from train.cli import main
from train.device import programs
from train.device.signals import SIGNALS, Stop, Stopped, listening
from train.run import experiment, summary
from train.run.loop import GroupRun
from train.store.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
# What is cut short in this process, which goes on: files, half an event loop, coroutines that nobody awaits.
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
watch: {every: 4, counterfactual: false, instruments: {units: 4}}
variants: {a: {}, b: {optimizer.lr: 5e-3}, c: {model.norm: none}}
"""


@pytest.fixture(scope="module", autouse=True)
def _shared_programs():
    with shared():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a config of two groups, (a, b) and c, and an unbroken run in `whole`."""
    path = tmp_path_factory.mktemp("signals")
    (path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    (path / "s.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["train", "s.yaml", "runs_dir=whole"]) == 0
    return path


@pytest.fixture
def run(folder, monkeypatch, request):
    """Trains in a folder of the test's own, called `run.name`; afterwards what is left there is gone on with."""
    monkeypatch.chdir(folder)
    name = re.sub(r"\W", "_", request.node.name)

    def train() -> int:
        return main(["train", "s.yaml", f"runs_dir={name}"])

    train.name = name  # pyright: ignore[reportFunctionMemberAccess]
    yield train
    shutil.rmtree(folder / name, ignore_errors=True)


@pytest.fixture(autouse=True)
def from_a_terminal():
    """Where the suite itself runs under nohup, SIGHUP is ignored, here and in every child."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def kill(number: int = signal.SIGTERM) -> None:
    """The handler runs before this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def once(monkeypatch, owner, name: str, *, before=None, after=None) -> None:
    """Around the first call of `owner.name`."""
    original, calls = getattr(owner, name), []

    def around(*args, **more):
        calls.append(1)
        if before is not None and len(calls) == 1:
            before()
        result = original(*args, **more)
        if after is not None and len(calls) == 1:
            after()
        return result

    monkeypatch.setattr(owner, name, around)


def goes_on(folder, monkeypatch, run) -> None:
    """The same command ends as the unbroken run: rows, parameters, figures."""
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run() == 0
    assert differing(snapshots(folder / "whole"), folder / run.name) == []


def standing(folder, run) -> dict[str, list[int]]:
    return {name: Checkpoints(folder / run.name / "s" / name).steps() for name in "abc"}


def test_where_nothing_is_to_be_saved_it_stops_at_once(folder, monkeypatch, run, capsys):
    once(monkeypatch, experiment, "open_source", before=kill)
    assert run() == 143
    out, err = capsys.readouterr()
    assert "nothing saved: a, b, c not begun" in out and err == "deltaflow: stopped during the reading of data\n"
    assert not (folder / run.name).exists()


def test_a_compilation_is_not_waited_for(folder, monkeypatch, run, capsys):
    release, began = threading.Event(), threading.Event()

    def slow(*_, **__):
        began.set()
        release.wait(60)
        raise RuntimeError("nobody waits for this")

    def later():
        began.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(programs, "compiled", slow)
    threading.Thread(target=later).start()
    start = time.monotonic()
    try:
        assert run() == 130
    finally:
        took = time.monotonic() - start
        release.set()
    assert took < 30 and "stopped during set-up and compilation" in capsys.readouterr().err
    goes_on(folder, monkeypatch, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_training_saves_the_group_and_leaves_its_evaluation_to_the_next(
    folder, monkeypatch, run, capsys, number
):
    once(monkeypatch, GroupRun, "log_dispatch", before=lambda: kill(number))
    assert run() == 128 + number
    assert "saved: a, b at step 4; c not begun" in capsys.readouterr().out
    assert standing(folder, run) == {"a": [4], "b": [4], "c": []}
    meta = Checkpoints(folder / run.name / "s" / "a").header(4).meta
    assert meta["eval_pending"] and "loss/val" not in meta["row"]  # step 4 has an evaluation
    goes_on(folder, monkeypatch, run)


def test_a_signal_within_a_save_lets_it_finish(folder, monkeypatch, run):
    once(monkeypatch, Checkpoints, "save", before=lambda: kill(signal.SIGINT))
    assert run() == 130
    assert standing(folder, run) == {"a": [8, 10], "b": [8, 10], "c": []}
    goes_on(folder, monkeypatch, run)


def test_a_second_one_within_a_save_leaves_whole_checkpoints_only(folder, monkeypatch, run, capsys):
    def twice():
        kill(signal.SIGINT)
        kill(signal.SIGINT)

    once(monkeypatch, Checkpoints, "save", after=twice)  # a is saved, and b is not
    assert run() == 130
    assert "deltaflow: interrupted during steps 7 to 8" in capsys.readouterr().err
    assert standing(folder, run) == {"a": [8], "b": [], "c": []}
    goes_on(folder, monkeypatch, run)


def test_between_groups_and_in_a_set_up_the_groups_that_are_done_stay_done(folder, monkeypatch, run, capsys):
    once(monkeypatch, GroupRun, "run", after=kill)
    assert run() == 143
    assert "saved: a, b finished; c not begun" in capsys.readouterr().out
    goes_on(folder, monkeypatch, run)


def test_in_the_closing_of_a_group(folder, monkeypatch, run):
    once(monkeypatch, summary, "summary_of", before=kill)
    assert run() == 143
    assert standing(folder, run) == {"a": [8, 12], "b": [8, 12], "c": []}
    goes_on(folder, monkeypatch, run)


def test_in_the_report_all_training_is_done(folder, monkeypatch, run, capsys):
    monkeypatch.setattr(summary, "write_report", lambda *_: kill())
    assert run() == 143
    out, err = capsys.readouterr()
    assert "saved: a, b, c finished" in out and "during the report, with all training done" in err
    assert differing(snapshots(folder / "whole"), folder / run.name) == []


def test_a_signal_at_the_last_window_leaves_the_last_evaluation(folder, monkeypatch, run):
    original = GroupRun.log_dispatch

    def at_the_end(self, start, end, results):
        if start == 10:
            kill()
        return original(self, start, end, results)

    monkeypatch.setattr(GroupRun, "log_dispatch", at_the_end)
    code = run()  # the last window is looked at when all is evaluated and saved: it was over
    assert code in (0, 143)
    goes_on(folder, monkeypatch, run)


def test_probe_stops_at_once(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    from train.run import probe as probing

    once(monkeypatch, probing, "build_group", before=kill)
    assert main(["probe", "s.yaml"]) == 143
    assert capsys.readouterr().err == "deltaflow: stopped\n"


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
        with pytest.raises(Stopped):
            stop.check()
    stop = Stop()
    with pytest.raises(Stopped), listening(stop):
        kill(signal.SIGINT)
    assert stop.exit_code == 130


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_put_back_when_a_signal_comes_at_that_very_moment(monkeypatch, number):
    before = [signal.getsignal(each) for each in SIGNALS]
    real, stop, sent = signal.set_wakeup_fd, Stop(), []

    def put_back(fd, **more):
        if not more:
            sent.append(number)
            kill(number)
            kill(signal.SIGINT)
        return real(fd, **more)

    monkeypatch.setattr(signal, "set_wakeup_fd", put_back)
    with listening(stop):
        pass
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert stop.signal == number and sent == [number]


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_put_back_when_a_signal_comes_as_the_first_one_is_set(monkeypatch, number):
    before = [signal.getsignal(each) for each in SIGNALS]
    real, stop, sent = signal.signal, Stop(), []

    def set_up(which, handler):
        found = real(which, handler)
        if which == number and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return found

    monkeypatch.setattr(signal, "signal", set_up)
    with pytest.raises(Stopped), listening(stop):
        raise AssertionError("the signal was not heard")
    monkeypatch.undo()
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert stop.signal == number and signal.set_wakeup_fd(-1) == -1


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


def test_handlers_and_the_wakeup_file_are_put_back_also_where_they_cannot_be_set():
    before = [signal.getsignal(number) for number in SIGNALS]
    count = threading.active_count()
    with listening(Stop()):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1 and threading.active_count() == count
    seen = []

    def elsewhere():
        with listening(Stop()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before[1]]


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


@pytest.mark.parametrize(
    ("within", "numbers", "code", "said"),
    [
        ("if True:", [signal.SIGTERM], 143, "stopped during a long call; what was saved before is kept"),
        ("if True:", [signal.SIGINT], 130, "stopped during a long call"),
        ("if True:", [signal.SIGHUP], 129, "stopped during a long call"),
        ("with stop.deferred():", [signal.SIGTERM, signal.SIGINT], 143, "stopping after this dispatch (a long call)"),
        (FINALIZER, [signal.SIGTERM], 143, "stopped during a long call"),
    ],
)
def test_a_process_ends_that_does_not_get_round_to_it(within, numbers, code, said):
    with subprocess.Popen(
        [sys.executable, "-c", STUCK.format(within=within)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(1)  # it is in the call now
        start = time.monotonic()
        for number in numbers:
            child.send_signal(number)
            time.sleep(0.3)
        assert child.wait(30) == code
        assert time.monotonic() - start < 5
        assert said in child.stderr.read().decode()


def test_under_nohup_a_closed_terminal_is_not_heard():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening(Stop()):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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
