"""A finished run of 12 steps, for tests that go on with a copy of it; their files go to one worker (../conftest.py)."""

import shutil
from pathlib import Path

import pytest

from runs import CONFIG, TEXT
from train.cli import main
from train.device import programs
from train.run import summary
from train.run.metrics import RunMetrics


@pytest.fixture(scope="session")
def compiled_once():
    """Stands in for programs.compiled, and compiles a program once for all runs of its structure."""
    from scripts.faults.programs import shared

    with shared():
        return programs.compiled


@pytest.fixture(scope="session")
def original(tmp_path_factory, compiled_once) -> Path:
    """A folder with tiny.yaml, corpus.txt, and its finished run in runs/. Copied, never changed."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "corpus.txt").write_text(TEXT * 20)
    (folder / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(programs, "compiled", compiled_once)
        patch.setattr(summary, "write_report", lambda *_: None)
        patch.setattr(RunMetrics, "draw", lambda _: None)
        assert main(["train", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def run(original, compiled_once, tmp_path, monkeypatch) -> Path:
    """The run directory in a copy of that folder, which is the current one."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(programs, "compiled", compiled_once)
    return Path("runs/tiny/main")


@pytest.fixture
def train(run, capsys):
    """Runs a command line; returns exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["train", "tiny.yaml", *arguments])
        return code, *capsys.readouterr()

    return call
