"""One writer a run: who has it, what is left behind, and nobody twice, also when many start at once."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from train.cli import main
from train.device import process
from train.errors import UserError
from train.store import lock
from train.store.lock import NAME, Lock, locked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no flock")

HOLDS = """
import sys, time
from pathlib import Path
from train.store.lock import Lock
held = Lock(Path(sys.argv[1]), print)
print("held", flush=True)
time.sleep(60)
"""


def unheard(line: str) -> None:
    raise AssertionError(line)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path."""
    child = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_writer_is_told_who_the_first_is(holder, tmp_path):
    text = (tmp_path / NAME).read_bytes()
    with pytest.raises(UserError) as caught:
        Lock(tmp_path, unheard)
    expected = (
        rf"{tmp_path}: is written by process {holder.pid} on {socket.gethostname()} \(since [-0-9: +]+\); "
        r"wait for it, stop it, or choose another name \(name=\.\.\.\)"
    )
    assert re.fullmatch(expected, str(caught.value))
    assert (tmp_path / NAME).read_bytes() == text


def test_what_a_killed_writer_leaves_is_taken_over(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == holder.pid
    said = []
    taken = Lock(tmp_path, said.append)
    assert len(said) == 1 and f"the lock of process {holder.pid} on " in said[0] and "is taken over" in said[0]
    found = json.loads((tmp_path / NAME).read_text())
    assert found.items() >= {"pid": os.getpid(), "host": socket.gethostname(), "boot": process.boot()}.items()
    taken.release()
    assert not (tmp_path / NAME).exists()


def test_a_stopped_writer_keeps_it(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        Lock(tmp_path, unheard)


def test_one_process_cannot_have_it_twice(tmp_path):
    """Two variants whose folders are one, by a link within runs_dir."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match=f"is written by process {os.getpid()} on"):
        with locked([tmp_path / "a", tmp_path / "b"], unheard):
            raise AssertionError
    assert not (tmp_path / "a" / NAME).exists()
    with locked([tmp_path / "a"], unheard):
        assert (tmp_path / "a" / NAME).exists()


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"boot": "before"}, True),  # this machine, since started again
        ({"host": "elsewhere", "boot": "theirs"}, False),
        ({"pid": 2**22 + 1}, True),  # no such process
        ({"pid": os.getppid(), "started": process.started(os.getppid())}, False),  # it lives, and somehow has no flock
        ({"pid": os.getppid(), "started": 1}, True),  # its number is another's now
    ],
)
@pytest.mark.skipif(process.boot() is None, reason="no boot id here")
def test_whose_lock_is_stale(tmp_path, changes, taken):
    (tmp_path / NAME).write_text(json.dumps(lock._self() | changes))
    said = []
    if taken:
        Lock(tmp_path, said.append).release()
        assert len(said) == 1 and "which has ended" in said[0]
    else:
        with pytest.raises(UserError, match=rf"if that process is gone, delete {tmp_path}/{NAME}$"):
            Lock(tmp_path, said.append)
        assert not said and json.loads((tmp_path / NAME).read_text()).items() >= changes.items()


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 4096, b"\xff", b'{"pid": "1", "host": 2}', b"9" * 5000])
def test_a_torn_lock_is_no_obstacle(tmp_path, text):
    (tmp_path / NAME).write_bytes(text)
    Lock(tmp_path, unheard).release()


def test_a_link_or_folder_in_its_place_is_one_line(tmp_path):
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / NAME).symlink_to(target)
    with pytest.raises(UserError, match="cannot lock"):
        Lock(tmp_path, unheard)
    assert target.read_text() == "kept"
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match="cannot lock: Is a directory"):
        Lock(tmp_path, unheard)


def test_where_there_is_no_flock_a_file_that_is_there_is_respected(tmp_path, monkeypatch):
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    held = Lock(tmp_path, unheard)
    with pytest.raises(UserError, match="if that process is gone, delete"):
        Lock(tmp_path, unheard)
    held.release()
    Lock(tmp_path, unheard).release()


def test_a_child_neither_holds_nor_removes_it(tmp_path):
    held = Lock(tmp_path, unheard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: held._owner + 1)  # as in a forked child
        held.release()
    assert (tmp_path / NAME).exists()
    lock._forget_all()  # what runs in a forked child: here nobody has it any more
    Lock(tmp_path, lambda _: None).release()


def test_a_lock_that_is_removed_while_it_is_opened_is_made_anew(tmp_path, monkeypatch):
    """Its holder lets go between our open and our flock: what we would hold then has no name any more."""
    held, flock = Lock(tmp_path, unheard), lock._flock

    def late(descriptor):
        held.release()
        return flock(descriptor)

    monkeypatch.setattr(lock, "_flock", late)
    mine = Lock(tmp_path, lambda _: None)
    monkeypatch.undo()
    assert os.path.samestat(os.fstat(mine._descriptor), os.stat(tmp_path / NAME))
    with pytest.raises(UserError, match="is written by process"):
        Lock(tmp_path, unheard)
    mine.release()


def test_of_many_that_start_at_once_one_gets_it(tmp_path):
    """Each takes, writes what only its holder may, and lets go; a lock that two have would be seen."""
    inside: list[int] = []
    got = []

    def attempt(index: int) -> None:
        try:
            held = Lock(tmp_path, lambda _: None)
        except UserError:
            return
        inside.append(index)
        assert inside == [index]
        got.append(index)
        inside.remove(index)
        held.release()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(attempt, range(400)))
    assert got and not (tmp_path / NAME).exists()


def test_what_was_made_for_nothing_is_removed(tmp_path):
    run = tmp_path / "runs" / "tiny" / "main"
    with pytest.raises(ZeroDivisionError), locked([run], unheard):
        assert (run / NAME).exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with locked([run], unheard):
        (run / "config.yaml").write_text("")
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_a_second_training_changes_nothing_and_says_who(trained, holder, tmp_path, capsys):
    root = tmp_path / "elsewhere"
    (root / "tiny" / "with").mkdir(parents=True)
    (root / "tiny" / "with" / NAME).write_bytes((tmp_path / NAME).read_bytes())  # of a living process
    before = sorted(root.rglob("*"))
    assert main(["train", str(trained[0]), f"runs_dir={root}"]) == 1
    err = capsys.readouterr().err
    assert f"{root}/tiny/with: is written by process {holder.pid} on " in err and err.count("\n") == 1
    assert sorted(root.rglob("*")) == before


def test_a_lock_is_no_part_of_a_run(trained, tmp_path, capsys):
    """Of a run that is being written while it is compared."""
    (trained[1] / NAME).write_text("{}")
    try:
        assert main(["compare", str(trained[1].parent), "--markdown", str(tmp_path / "c.md")]) == 0
        assert NAME not in (tmp_path / "c.md").read_text() + capsys.readouterr().out
    finally:
        (trained[1] / NAME).unlink()
