"""Commands that are printed to be pasted (train/text.py)."""

import shlex
import shutil
import subprocess
import sys

import pytest

from train.text import command


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two installations of a script that prints its arguments; the first is on PATH. The folder is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("first bin", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "deltaflow").write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
        (tmp_path / name / "deltaflow").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/first bin:/usr/bin:/bin")
    return tmp_path


def pasted(line: str) -> list[str]:
    return subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("called", "program"),
    [
        ("{}/first bin/deltaflow", "deltaflow"),  # as a shell calls what it has found on PATH
        ("second/deltaflow", "second/deltaflow"),  # not the one on PATH
        ("{}/second/deltaflow", "{}/second/deltaflow"),
        ("./first bin/deltaflow", "deltaflow"),
    ],
)
def test_a_script_is_called_by_its_name_only_if_that_finds_it(installed, monkeypatch, called, program):
    monkeypatch.setattr(sys, "argv", [called.format(installed), "train"])
    line = command("tensorboard", installed / "my runs", "it's")
    assert shlex.split(line)[0] == program.format(installed)
    path = shutil.which(program.format(installed))
    assert pasted(line) == [path, "tensorboard", f"{installed}/my runs", "it's"]


def test_a_path_with_a_space_is_quoted_when_path_finds_nothing(installed, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "argv", ["first bin/deltaflow"])
    assert command("x") == "'first bin/deltaflow' x" and pasted(command("x")) == ["first bin/deltaflow", "x"]


def test_a_module_is_called_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train/__main__.py", "train"])
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python", "-m", "train", "train"])
    assert command("devices") == ".venv/bin/python -m train devices"
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py"])  # in a process of another program
    assert command("devices") == shlex.join([sys.executable, "-m", "train", "devices"])
