"""One writer a run: a second one is told of the first, a dead one is no obstacle, and a child does not hold it."""

import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.cli import main
from train.errors import UserError
from train.log.console import Console
from train.store.lock import NAME, locked

fcntl = pytest.importorskip("fcntl")
# At a line of input it takes the lock, at another it ends.
HOLDS = """
import sys
from pathlib import Path
from train.store.lock import locked
sys.stdin.readline()
with locked([Path(sys.argv[1])], print):
    print("held", flush=True)
    sys.stdin.readline()
"""


# The process, host and time of a lock.
WRITER = r"(?<=process )\d+|(?<= on )\S+|(?<=since )[-0-9: +]+"


def starting(directory: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDS, str(directory)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)


def let_go(child: subprocess.Popen) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")


def no_warning(line: str) -> None:
    raise AssertionError(line)


def refused(directory: Path, *more: Path) -> str:
    """The message of the error of a lock that cannot be had."""
    with pytest.raises(UserError) as caught, locked([directory, *more], no_warning):
        raise AssertionError
    return str(caught.value)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path."""
    with starting(tmp_path) as child:
        let_go(child)
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        yield child
        child.kill()


@pytest.fixture
def flock(monkeypatch):
    """A function that makes the file system answer every request for a lock with an error."""

    def refuse(number: int) -> None:
        def answer(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", answer)

    return refuse


def test_a_second_writer_is_told_who_the_first_is(holder, tmp_path, wording):
    text = (tmp_path / NAME).read_bytes()
    with pytest.raises(UserError) as caught, locked([tmp_path], no_warning):
        raise AssertionError
    assert f" {holder.pid} on {socket.gethostname()} (" in str(caught.value)
    wording(caught.value, tmp_path, volatile=WRITER)
    assert (tmp_path / NAME).read_bytes() == text
    holder.send_signal(signal.SIGSTOP)  # a stopped one keeps it
    assert f" {holder.pid} " in refused(tmp_path)


def test_what_a_killed_writer_leaves_is_no_obstacle(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == holder.pid
    with locked([tmp_path], no_warning):
        assert json.loads((tmp_path / NAME).read_text()).items() >= {"pid": os.getpid()}.items()
    assert not (tmp_path / NAME).exists()


def test_one_process_cannot_have_it_twice(tmp_path, wording):
    """Two variants whose folders are one, by a link within runs_dir."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    message = refused(tmp_path / "a", tmp_path / "b")
    assert f" {os.getpid()} " in message
    wording(message, tmp_path / "b", volatile=WRITER)
    assert not (tmp_path / "a" / NAME).exists()
    with locked([tmp_path / "a"], no_warning):
        assert (tmp_path / "a" / NAME).exists()


def test_a_lock_that_another_machine_left_is_warned_about(tmp_path, wording):
    """Some network file systems grant each machine its own lock."""
    (tmp_path / NAME).write_text(json.dumps({"pid": 7, "host": "elsewhere\n", "since": "noon"}))
    lines = []
    with locked([tmp_path], lines.append):
        pass
    (line,) = lines
    wording(line, tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 4096, b"\xff", b'{"pid": "1", "host": 2}', b"9" * 5000, b"[]"])
def test_a_torn_lock_is_no_obstacle(tmp_path, text):
    (tmp_path / NAME).write_bytes(text)
    with locked([tmp_path], no_warning):
        pass


def test_a_link_or_folder_in_its_place_is_one_line(tmp_path, wording):
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / NAME).symlink_to(target)
    wording(refused(tmp_path), tmp_path / NAME)
    assert target.read_text() == "kept"
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    wording(refused(tmp_path), tmp_path / NAME)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_warned_about_once_a_command(tmp_path, capsys, flock, number, wording):
    """The console is one for all groups of variants."""
    flock(number)
    console = Console()
    for names in ("ab", "cd"):
        with locked([tmp_path / name for name in names], console.warn):
            (tmp_path / "a" / "config.yaml").touch()
    (line,) = capsys.readouterr().out.splitlines()
    assert os.strerror(number) in line
    wording(line, f"warning: {tmp_path}", volatile=re.escape(os.strerror(number)))
    with locked([tmp_path / "a", tmp_path / "b"], Console().warn):
        assert capsys.readouterr().out.count(os.strerror(number)) == 1
    flock(errno.EIO)
    wording(refused(tmp_path / "a"), tmp_path / "a" / NAME)


@pytest.mark.slow
def test_a_training_goes_on_where_there_are_no_locks_and_no_fsync_of_folders(
    trained, tmp_path, disk, flock, capsys, wording
):
    flock(errno.ENOSYS)
    disk.refuse("fsync", errno.EINVAL, where=os.path.isdir)
    keys = ["model={layers: 1, width: 8, heads: 1}", "train.steps=5", "watch.every=0", "train.eval_batches=1"]
    keys.append("variants.without_skip={model.width: 16}")  # a group of its own
    assert main(["train", str(trained[0]), f"runs_dir={tmp_path}", *keys]) == 0
    out, err = capsys.readouterr()
    (line,) = (line for line in (out + err).splitlines() if os.strerror(errno.ENOSYS) in line)
    wording(line, f"warning: {tmp_path}/tiny")
    assert len(list(tmp_path.glob("tiny/*/ckpt/00000005.safetensors"))) == 2


def _in_child(directory: Path, results) -> None:
    try:
        with locked([directory], no_warning):
            results.put("held")
    except UserError as error:
        results.put(str(error))


def test_without_locks_the_text_of_one_keeps_a_second_writer_out(holder, tmp_path, flock, wording):
    """As far as one machine goes: the holder lives, and then it does not."""
    flock(errno.ENOSYS)
    assert f" {holder.pid} " in refused(tmp_path)
    holder.kill()
    holder.wait()
    warnings: list[str] = []
    with locked([tmp_path], warnings.append):
        assert json.loads((tmp_path / NAME).read_text().splitlines()[-1])["pid"] == os.getpid()
    (line,) = warnings
    wording(line, tmp_path.parent)
    assert not (tmp_path / NAME).exists()


def test_a_forked_child_neither_holds_nor_removes_it(tmp_path):
    context = multiprocessing.get_context("fork")
    results, go_on = context.Queue(), context.Event()
    with locked([tmp_path], no_warning):
        second = context.Process(target=_in_child, args=(tmp_path, results))
        second.start()
        assert f" {os.getpid()} on " in results.get(timeout=30)
        second.join()
        assert (tmp_path / NAME).exists()
        sleeper = context.Process(target=go_on.wait, args=(60,))
        sleeper.start()
    with locked([tmp_path], no_warning):  # although the child that was forked while it was held still runs
        pass
    go_on.set()
    sleeper.join()


def test_one_of_many_that_start_at_once_gets_it(tmp_path, wording):
    children = [starting(tmp_path) for _ in range(6)]
    for child in children:
        let_go(child)
    while sum(child.poll() is not None for child in children) < 5:
        time.sleep(0.05)
    results = sorted(child.communicate("\n", timeout=60) for child in children)
    assert [out for out, _ in results] == ["", "", "", "", "", "held\n"]
    for _, err in results[:5]:
        wording(err.splitlines()[-1], f"train.errors.Failure: {tmp_path}", volatile=WRITER)


def test_directories_that_stay_empty_are_removed(tmp_path):
    run = tmp_path / "runs" / "tiny" / "main"
    with pytest.raises(ZeroDivisionError), locked([run], no_warning):
        assert (run / NAME).exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with locked([run], no_warning):
        (run / "config.yaml").write_text("")
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_a_second_training_changes_nothing_and_names_the_first(trained, tmp_path, capsys, wording):
    directory = tmp_path / "tiny" / "with"
    directory.mkdir(parents=True)
    with locked([directory], no_warning):
        before = sorted(tmp_path.rglob("*"))
        assert main(["train", str(trained[0]), f"runs_dir={tmp_path}"]) == 1
        err = capsys.readouterr().err
        assert f" {os.getpid()} on " in err and err.count("\n") == 1
        wording(err, directory, volatile=WRITER)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_lock_is_no_part_of_a_run(trained, tmp_path, capsys):
    """While the run is written, it can be compared."""
    (trained[1] / NAME).write_text("{}")
    try:
        assert main(["compare", str(trained[1].parent), "--markdown", str(tmp_path / "c.md")]) == 0
        assert NAME not in (tmp_path / "c.md").read_text() + capsys.readouterr().out
    finally:
        (trained[1] / NAME).unlink()
