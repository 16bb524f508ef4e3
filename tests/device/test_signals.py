"""Handlers of signals: put back at every moment, deferred, heard in finalizers and by processes that hang."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from runs import SIGNALLED, kill
from train.device import hosts
from train.device.signals import SIGNALS, Stop, Stopped, listening

ROOT = Path(__file__).parents[2]
pytestmark = SIGNALLED


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


def test_a_signal_that_arrives_while_processes_agree_is_not_lost(monkeypatch):
    stop = Stop()

    def agreed(number: int | None) -> int | None:
        stop.signal = signal.SIGTERM  # of the handler, once the number was read
        return number

    monkeypatch.setattr(hosts, "agreed", agreed)
    assert not hosts.agreed_stop(stop) and stop.signal == signal.SIGTERM
    assert hosts.agreed_stop(stop)


@pytest.mark.parametrize("live", [True, False])
def test_what_is_waited_for_is_said_among_live_lines_or_on_stderr(capfd, live, wording):
    """Once, however many signals arrive. Rich redraws its lines over whatever else was written there."""
    shown: list[str] = []
    stop = Stop(doing="steps 1 to 2", show=lambda text: shown.append(text) is None and live)
    with listening(stop), stop.deferred():
        kill(signal.SIGTERM)
        while not shown:
            time.sleep(0.01)
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(KeyboardInterrupt):
                kill(number)
    (line,) = shown
    wording(line)
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

    stop, hook = Stop(), sys.unraisablehook
    with listening(stop):
        dropped = Dropped()
        del dropped
        with pytest.raises(Stopped), stop.deferred():
            raise AssertionError("the signal was not noticed")
    assert stop.exit_code == 143 and sys.unraisablehook is hook
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
def test_a_process_ends_that_does_not_get_round_to_it(request, wording):
    cases = [
        ("if True:", [signal.SIGTERM], 143),
        ("if True:", [signal.SIGINT], 130),
        ("if True:", [signal.SIGHUP], 129),
        ("with stop.deferred():", [signal.SIGTERM, signal.SIGINT], 143),
        (FINALIZER, [signal.SIGTERM], 143),
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
        request.addfinalizer(child.kill)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    time.sleep(0.5)  # they are in the call now
    start = time.monotonic()
    for child, (_, numbers, _) in zip(children, cases, strict=True):
        for number in numbers:
            child.send_signal(number)
            if number != numbers[-1]:
                time.sleep(0.3)
    for child, (_, _, code) in zip(children, cases, strict=True):
        _, err = child.communicate(timeout=30)
        assert child.returncode == code and time.monotonic() - start < 7
        wording("\n".join(filter(None, err.decode().splitlines())))


SLOW_SAVE = """
import time
from train.device.signals import GRACE_S, Stop, listening
stop = Stop(doing="steps 1 to 2")
with listening(stop, hard=True), stop.deferred():
    print("ready", flush=True)
    time.sleep(1.5 * GRACE_S)
    print(stop.exit_code)
"""


@pytest.mark.slow
def test_a_save_may_take_longer_than_what_stops_at_once():
    with subprocess.Popen([sys.executable, "-c", SLOW_SAVE], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.read() == b"143\n" and child.wait(30) == 0


@pytest.mark.slow
def test_a_terminal_gets_its_cursor_back_from_a_process_that_does_not_get_round_to_it(wording):
    leader, follower = os.openpty()
    command = [sys.executable, "-c", STUCK.format(within="if True:")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=follower) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 143
    line = os.read(leader, 4096).decode().strip()
    assert line.endswith("\x1b[?25h")
    wording(line.removesuffix("\x1b[?25h"))
    os.close(leader)
    os.close(follower)


def test_of_signals_that_a_parent_ignores_only_a_closed_terminal_s_is_not_heard(handlers):
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with listening(Stop()):
        assert [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN] == [signal.SIGHUP]
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN] * 3
    for number, handler in zip(SIGNALS, handlers, strict=True):
        signal.signal(number, handler)


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
