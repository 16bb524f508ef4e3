"""`deltaflow tensorboard`: a real server, on this machine's own address and no other."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from train import text
from train.commands import tensorboard as command

ROOT = Path(__file__).parents[2]


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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_the_runs_on_loopback_alone_until_it_is_told_to_stop(trained, number):
    folder = trained[1].parent
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-W", "ignore", "-m", "train", "tensorboard", str(folder)]
    with socket.socket() as busy, contextlib.ExitStack() as stack:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # somebody else has it, which is as good
            busy.bind(("127.0.0.1", command.FIRST_PORT))
            busy.listen()
        process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stack.callback(process.communicate)
        stack.callback(process.kill)
        assert process.stdout is not None
        said = ""
        while "http://" not in said and (text := process.stdout.readline()):
            said += text
        url = said[said.index("http://") :].split()[0].rstrip("/")
        port = int(url.removeprefix("http://127.0.0.1:"))
        assert port != command.FIRST_PORT and f"port {command.FIRST_PORT} is taken: {port} instead\n" in said
        for _ in range(100):
            with urllib.request.urlopen(f"{url}/data/runs", timeout=10) as answer:
                if set(runs := json.load(answer)) == {"with", "without_skip"}:
                    break
            time.sleep(0.1)
        assert set(runs) == {"with", "without_skip"}
        assert listening(process.pid) == {"0100007F"}
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
        assert "Traceback" not in process.stdout.read()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "", "127.0.0.1.example.org"])
def test_a_host_that_others_reach_is_refused_and_the_command_for_it_named(call, host):
    public = "tensorboard --logdir runs --bind_all --samples_per_plugin images=200,scalars=100000"
    said = f"--host: expected a loopback address, got {host!r}; to let others in, without a password: {public}"
    assert call("tensorboard", "--host", host) == (2, "", f"deltaflow: command line: {said}\n")


def test_what_it_cannot_serve_is_one_line(trained, tmp_path, monkeypatch, call):
    _, directory = trained
    monkeypatch.chdir(tmp_path)

    def refused(said, *arguments):
        assert call("tensorboard", *arguments) == (1, "", f"deltaflow: {said}\n")

    refused("runs: no such folder")
    (tmp_path / "runs").mkdir()
    refused(f"runs: no runs in it; {text.command('train', 'quickstart')} makes some")
    (tmp_path / "file").write_text("x")
    refused("file: expected a folder, got a file", "file")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        for folder in (directory, directory.parent, directory.parent.parent):  # however far up one points
            refused(f"port {port} is taken on 127.0.0.1; name another with --port", folder, "--port", port)
    monkeypatch.setitem(sys.modules, "tensorboard.program", None)
    refused("tensorboard is not installed; pip install tensorboard", directory)
