"""`deltaflow tensorboard`: a real server, on this machine's own address and no other."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

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
    result = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = row.split()
            if columns[3] == "0A" and columns[9] in inodes:
                result.add(columns[1].partition(":")[0])
    return result


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
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
        output = ""
        while "http://" not in output and (text := process.stdout.readline()):
            output += text
        link = urlsplit(output[output.index("http://") :].split()[0])
        url, port = f"http://{link.netloc}", link.port
        cards = json.loads(parse_qs(link.query)["pinnedCards"][0])
        assert [card["tag"] for card in cards] == list(command.PINNED)
        assert {card["plugin"] for card in cards} == {"scalars"}
        assert parse_qs(link.query)["smoothing"] == ["0"] and link.fragment.startswith("timeseries")
        assert port != command.FIRST_PORT and f"port {command.FIRST_PORT} is taken: {port} instead\n" in output
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


def test_what_is_pinned_is_logged_and_explained(trained):
    row = json.loads((trained[1] / "metrics.jsonl").read_text().splitlines()[0])
    page = (ROOT / "docs" / "tags.md").read_text(encoding="utf-8")
    assert all(tag in row and f"`{tag}`" in page for tag in command.PINNED)


@pytest.mark.parametrize("opens", [True, False])
def test_a_browser_opens_once_it_listens_and_may_fail(opens, monkeypatch, capsys):
    opened = []

    def broken(link):
        opened.append(link)
        raise webbrowser.Error("no browser")

    monkeypatch.setattr(webbrowser, "open", broken)
    server = command.board(opens).server_class
    server.print_serving_message(SimpleNamespace(get_url=lambda: "http://127.0.0.1:1/"))
    link = command.deep_link("http://127.0.0.1:1/")
    assert capsys.readouterr().out.splitlines()[0] == link
    assert opened == [link] * opens


def test_a_window_is_opened_for_a_terminal_with_a_display_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert command.has_browser()
    monkeypatch.delenv("DISPLAY")
    assert not command.has_browser()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert command.has_browser()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: False))
    assert not command.has_browser()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "", "127.0.0.1.example.org"])
def test_a_host_that_others_reach_is_refused_and_the_command_for_it_named(call, host, wording):
    code, out, err = call("tensorboard", "--host", host)
    assert (code, out, err.count("\n")) == (2, "", 1) and repr(host) in err
    wording(err, "command line: --host", volatile=f"(?<=got ){re.escape(repr(host))}")


def test_what_it_cannot_serve_is_one_line(trained, tmp_path, monkeypatch, call, wording):
    _, directory = trained
    monkeypatch.chdir(tmp_path)

    def refused(key, *arguments, code=2, volatile=None):
        got, out, err = call("tensorboard", *arguments)
        assert (got, out, err.count("\n")) == (code, "", 1)
        assert volatile is None or re.search(volatile, err)
        wording(err, key, volatile=volatile)

    refused("runs")
    (tmp_path / "runs").mkdir()
    refused("runs")
    (tmp_path / "file").write_text("x")
    refused("file", "file")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        for folder in (directory, directory.parent, directory.parent.parent):  # however far up one points
            refused(None, folder, "--port", port, code=1, volatile=rf"\b{port}\b")
    monkeypatch.setitem(sys.modules, "tensorboard.program", None)
    refused(None, directory, code=1)
