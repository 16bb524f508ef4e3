"""`deltaflow tensorboard`: a real server, on this machine's own address and no other."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from train.cli import main
from train.commands import tensorboard as command

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(*arguments):
    """The process and its URL, once it answers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-W", "ignore", "-m", "train", "tensorboard", *map(str, arguments)]
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        said = []
        for text in process.stdout:
            said.append(text)
            if "http://" in text:
                break
        yield process, "".join(said)
    finally:
        process.kill()
        process.communicate()


def listening(pid: int) -> set[str]:
    """The local addresses of a process's listening sockets, as /proc has them: 0100007F is 127.0.0.1."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = row.split()
            if columns[3] == "0A" and columns[9] in inodes:
                found.add(columns[1].partition(":")[0])
    return found


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_it_serves_the_runs_on_loopback_alone_until_it_is_told_to_stop(trained, number, code):
    _, directory = trained
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            busy.bind(("127.0.0.1", command.FIRST_PORT))
            busy.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        with serving(directory.parent) as (process, said):
            url = said[said.index("http://") :].split()[0].rstrip("/")
            assert url.startswith("http://127.0.0.1:") and f"port {command.FIRST_PORT} is taken: " in said
            port = int(url.rpartition(":")[2])
            assert port != command.FIRST_PORT and f": {port} instead" in said
            for _ in range(100):
                with urllib.request.urlopen(f"{url}/data/runs", timeout=10) as answer:
                    if set(runs := json.load(answer)) == {"with", "without_skip"}:
                        break
                time.sleep(0.1)
            assert set(runs) == {"with", "without_skip"}
            assert listening(process.pid) == {"0100007F"}
            process.send_signal(number)
            assert process.wait(timeout=20) == code
            assert process.stdout is not None and "Traceback" not in process.stdout.read()


def refused(capsys, *arguments) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["tensorboard", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return code, err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "", "127.0.0.1.example.org"])
def test_a_host_that_others_reach_is_refused_and_the_command_for_it_named(trained, capsys, host):
    _, directory = trained
    code, err = refused(capsys, directory, "--host", host)
    assert code == 2
    assert f"--host: expected a loopback address, got {host!r}; to let others in, without a password: " in err
    assert f"tensorboard --logdir {directory} --bind_all --samples_per_plugin images=200,scalars=100000\n" in err


def test_what_it_cannot_serve_is_one_line(trained, tmp_path, monkeypatch, capsys):
    _, directory = trained
    monkeypatch.chdir(tmp_path)
    assert refused(capsys) == (1, "deltaflow: runs: no such folder\n")
    (tmp_path / "runs").mkdir()
    assert refused(capsys) == (1, "deltaflow: runs: no runs in it; deltaflow train CONFIG makes some\n")
    (tmp_path / "file").write_text("x")
    assert refused(capsys, "file") == (1, "deltaflow: file: expected a folder, got a file\n")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        said = f"deltaflow: port {port} is taken on 127.0.0.1; name another with --port\n"
        assert refused(capsys, directory, "--port", port) == (1, said)
    monkeypatch.setitem(sys.modules, "tensorboard.program", None)
    said = "deltaflow: tensorboard is not installed; pip install tensorboard\n"
    assert refused(capsys, directory) == (1, said)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_runs_are_found_however_far_up_one_points(trained, monkeypatch, capsys, depth):
    _, directory = trained
    monkeypatch.setattr(command, "free_port", lambda *_: None)
    code, err = refused(capsys, [directory, *directory.parents][depth])
    assert code == 1 and "are taken on 127.0.0.1" in err
