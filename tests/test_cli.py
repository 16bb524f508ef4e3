"""The command line: exit codes, and errors in one line."""

import time
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from unittest.mock import Mock

import jax
import pytest

from data import DataError
from model.rules import DeclarationError
from train.cli import COMMANDS, EXAMPLES, FIRST
from train.disk import write_atomically
from train.errors import Failure, UserError
from train.text import command


@pytest.fixture
def folder(tmp_path, monkeypatch, corpus):
    """The current folder, with configs and corpora of every kind of wrong."""
    monkeypatch.chdir(tmp_path)
    good = f"name: t\nmodel: {{layers: 2, width: 16, heads: 2}}\ndata: {{path: {corpus}, context: 8, batch: 4}}\n"
    files = {
        "good.yaml": good,
        "two.yaml": "name: t\nmodel: {layers: two}\ntrain:\n  stepz: 3\n",
        "lost.yaml": good.replace(f"data: {{path: {corpus}", "data: {\n  path: nowhere.txt"),
        "tpu.yaml": good + "train:\n  device: tpu\n",
        "short.txt": "too short",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "hollow").mkdir()
    return tmp_path


@pytest.mark.parametrize("command", ["train", "probe"])
@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        ("god.yaml", ["god.yaml"]),
        ("https://a.org/c.yaml", ["https://a.org/c.yaml"]),
        ("file:///c.yaml", ["file:///c.yaml"]),
        ("C:\\x\\c.yaml", ["C:\\x\\c.yaml"]),
        (".", ["."]),
        ("two.yaml", ["two.yaml:2: model.layers", "two.yaml:4: train.stepz"]),
        ("good.yaml modle.layers=3", ["command line: modle.layers"]),
        ("good.yaml model.heads=3", ["command line: model.heads"]),
        ("good.yaml data.path=shrt.txt", ["command line: data.path"]),
        ("good.yaml data.path=short.txt", ["command line: data.path"]),
        ("good.yaml data.path=hollow", ["command line: data.path"]),
        ("lost.yaml", ["lost.yaml:4: data.path"]),
        ("tpu.yaml", ["tpu.yaml:5: train.device"]),
        ("good.yaml train.device=gpu", ["command line: train.device"]),
    ],
    ids=str,
)
def test_what_a_user_gets_wrong_is_a_line_each_and_leaves_nothing(folder, call, command, arguments, places, wording):
    before = sorted(folder.rglob("*"))
    got, out, err = call(command, *arguments.split())
    assert (got, out) == (2, "") and err.startswith("deltaflow: ") and err.endswith("\n")
    for line, place in zip(err.removeprefix("deltaflow: ").splitlines(), places, strict=True):
        wording(line, place, volatile=r"(?<=JAX sees ).*")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_help(call, name):
    code, out, err = call(name, "--help")
    assert (code, err) == (0, "") and out.startswith(f"usage: deltaflow {name}")
    assert COMMANDS[name] in " ".join(out.split())
    assert name not in EXAMPLES or out.endswith(f" {name} {EXAMPLES[name]}\n")


def test_help_and_version_without_a_command(call):
    code, out, err = call()
    assert (code, out, err) == call("--help") and code == 0 and out.startswith("usage: deltaflow [-h]")
    assert all(command(*words) in out for words in FIRST) and len(FIRST) == 3
    assert all(name in out and summary.split(",")[0] in " ".join(out.split()) for name, summary in COMMANDS.items())
    code, out, _ = call("--version")
    assert code == 0 and out.startswith("deltaflow ")


def test_it_runs_without_being_installed(call, monkeypatch):
    monkeypatch.setattr(Distribution, "from_name", Mock(side_effect=PackageNotFoundError("deltaflow")))
    assert call("--version") == (0, "deltaflow (not installed)\n", "") and call("train", "nothing")[0] == 2


@pytest.mark.parametrize("arguments", [["sample"], ["probe", "good.yaml", "--checkpoint"]], ids=" ".join)
def test_a_folder_that_is_no_run_is_one_line(folder, call, arguments, wording):
    (folder / "experiment" / "main").mkdir(parents=True)
    (folder / "experiment" / "main" / "config.yaml").touch()
    for where in (".", "experiment", "nothing", "experiment/mian"):
        code, out, err = call(*arguments, where)
        assert (code, out, err.count("\n")) == (2, "", 1)
        wording(err, where)


MISSING = (
    *("train {}", "train good.yaml data.path={}", "train good.yaml train.init_from={}", "probe {}", "chain {}"),
    *("probe good.yaml --checkpoint {}", "sample {}", "export {} --to x.safetensors", "compare {}", "watch {}"),
    *("tensorboard {}", "plan {}", "coordcheck {}"),
)


@pytest.mark.parametrize("words", MISSING)
@pytest.mark.parametrize("path", ["nothing", "nothing.yaml", "hollow/nothing"])
def test_a_path_that_is_missing_is_2_for_every_command(folder, call, words, path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # of watch, before it looks again
    assert {words.split()[0] for words in MISSING} == COMMANDS.keys() - {"init", "devices"}  # which read none
    before = sorted(folder.rglob("*"))
    code, _, err = call(*words.format(path).split())
    assert (code, err.count("\n")) == (2, 1) and path in err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *((kind("why"), 2) for kind in (UserError, DataError, DeclarationError)),
        *((kind("why"), 1) for kind in (Failure, OSError)),
    ],
)
def test_the_exit_code_says_whose_fault_it_is(folder, call, monkeypatch, error, code):
    monkeypatch.setattr("train.commands.compare.run", Mock(side_effect=error))
    got, out, err = call("compare", "hollow")
    assert (got, out) == (code, "") and err.startswith("deltaflow: ") and err.endswith("why\n")


@pytest.mark.parametrize("path", ["", ".", "hollow", "good.yaml/p.json"])
def test_a_file_that_cannot_be_written_is_one_line(folder, path, wording):
    with wording.raises(UserError, repr(path or ".") if path in ("", ".") else path, volatile="(?<=cannot write: ).*"):
        write_atomically(Path(path), "text")


@pytest.fixture
def compiler(folder, monkeypatch):
    """Makes compilation raise an error, in a folder with good.yaml."""

    def broken(error):
        def compile(*_, **__):
            raise error

        monkeypatch.setattr(jax.stages.Lowered, "compile", compile)

    return broken


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        type("_ArrayMemoryError", (MemoryError,), {})("Unable to allocate"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    ],
    ids=["python", "numpy", "device"],
)
def test_too_little_memory_is_one_line(compiler, call, wording, error):
    compiler(error)
    code, out, err = call("probe", "good.yaml")
    assert (code, out, err.count("\n")) == (1, "", 1)
    wording(err)


def test_other_errors_of_a_device_keep_their_traceback(compiler, call):
    compiler(jax.errors.JaxRuntimeError("INTERNAL: a bug"))
    with pytest.raises(jax.errors.JaxRuntimeError):
        call("probe", "good.yaml")
