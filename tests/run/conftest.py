"""A finished run of 12 steps, for tests that go on with a copy of it; their files go to one worker (../conftest.py)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runs import CONFIG, TEXT
from scripts.faults.programs import drawing, shared
from train.cli import main


@pytest.fixture(scope="session")
def compiled() -> dict:
    """The compiled programs of the runs below, each once for all runs of its structure."""
    return {}


@pytest.fixture(scope="session")
def original(tmp_path_factory, compiled) -> Path:
    """A folder with tiny.yaml, corpus.txt, and its finished run in runs/. Copied, never changed."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "corpus.txt").write_text(TEXT * 20)
    (folder / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch, shared(compiled), drawing():
        patch.chdir(folder)
        assert main(["train", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def run(original, compiled, tmp_path, monkeypatch) -> Iterator[Path]:
    """The run directory in a copy of that folder, which is the current one."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with shared(compiled):
        yield Path("runs/tiny/main")


@pytest.fixture
def train(run, capsys):
    """Runs a command line; returns exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["train", "tiny.yaml", *arguments])
        return code, *capsys.readouterr()

    return call
