"""The command line: exit codes, and errors in one line."""

import shlex
from pathlib import Path

import jax
import pytest

from train.cli import COMMANDS
from train.disk import write_atomically
from train.errors import UserError


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
    ("arguments", "code", "said"),
    [
        ("god.yaml", 2, ["god.yaml: no such file; did you mean good.yaml?"]),
        ("https://a.org/c.yaml", 2, ["https://a.org/c.yaml: is a URL, and only files are read; download it first"]),
        ("file:///c.yaml", 2, ["file:///c.yaml: is a URL; give the path alone"]),
        ("C:\\x\\c.yaml", 2, ["C:\\x\\c.yaml: is a path of Windows"]),
        (".", 2, [".: expected a file, got a folder"]),
        ("two.yaml", 2, ["two.yaml:2: model.layers: expected a whole number", "two.yaml:4: train.stepz: unknown key"]),
        ("good.yaml modle.layers=3", 2, ["command line: modle.layers: unknown key; did you mean model.layers?"]),
        ("good.yaml model.heads=3", 2, ["command line: model.heads: expected a divisor of width 16"]),
        ("good.yaml data.path=shrt.txt", 2, ["command line: data.path: 'shrt.txt' does not exist"]),
        ("good.yaml data.path=short.txt", 2, ["command line: data.path: 'short.txt' is too short"]),
        ("good.yaml data.path=hollow", 2, ["command line: data.path: 'hollow' holds no .txt file"]),
        ("lost.yaml", 2, ["lost.yaml:4: data.path: 'nowhere.txt' does not exist"]),
        ("tpu.yaml", 1, ["tpu.yaml:5: train.device: no tpu here; JAX sees cpu"]),
        ("good.yaml train.device=gpu", 1, ["command line: train.device: no gpu here; JAX sees cpu"]),
    ],
)
def test_what_a_user_gets_wrong_is_a_line_each_and_leaves_nothing(folder, call, command, arguments, code, said):
    before = sorted(folder.rglob("*"))
    got, out, err = call(command, *arguments.split())
    assert (got, out) == (code, "") and err.startswith("deltaflow: ") and err.endswith("\n")
    for line, start in zip(err.removeprefix("deltaflow: ").splitlines(), said, strict=True):
        assert line.startswith(start)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "required: COMMAND"),
        ("trian", "no command 'trian'; did you mean train?"),
        ("good.yaml", "no command 'good.yaml'; expected one of train, probe,"),
        ("train", "required: config"),
        ("probe", "required: config"),
        ("sample", "required: RUN"),
        ("train good.yaml --wat", "unrecognized arguments: --wat"),
        (
            "train good.yaml --steps 5",
            "--steps is no option; a config key is set by key=value: train.steps=5",
        ),
        ("probe good.yaml --batch-size=8", "by key=value: data.batch=8"),
        ("train --lr --x good.yaml", "--lr is no option; a config key is set by key=value: optimizer.lr=VALUE"),
        ("train good.yaml --residual rezero", "by key=value: model.residual=rezero"),
        ("train good.yaml --train.steps 5", "by key=value: train.steps=5"),
        ("probe good.yaml --json p.json seed=1 --wat", "unrecognized arguments: --wat"),
        ("sample . more", "unrecognized arguments: more"),
        ("sample . --top 0", "--top: expected a whole number of at least 1, got '0'"),
        ("sample . --top some", "--top: expected a whole number of at least 1, got 'some'"),
        ("sample . --tokens -1", "--tokens: expected a whole number of at least 0, got '-1'"),
        ("sample . --temperature nan", "--temperature: expected 0, or a number from 1e-30 to 1e30, got 'nan'"),
        ("sample . --temperature 1e300", "--temperature: expected 0, or a number from 1e-30 to 1e30, got '1e300'"),
        ("sample . --prompt ''", "--prompt: expected at least one character"),
        ("sample . --seed 4294967296", "--seed: expected a whole number from 0 to 4294967295"),
        ("probe good.yaml --json ''", "--json: expected a file, got ''"),
        ("probe good.yaml --json .", "--json: expected a file, got a folder, '.'"),
        ("probe good.yaml --json /dev/null", "--json: expected a file, got a device, '/dev/null'"),
        ("probe good.yaml --json good.yaml/p.json", "--json: cannot write 'good.yaml/p.json'"),
        ("devices --size 0", "--size: expected a whole number from 1 to 32768, got '0'"),
    ],
)
def test_wrong_usage_is_2_in_one_line(folder, call, arguments, said):
    code, out, err = call(*shlex.split(arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("deltaflow: ") and said in err and err.endswith(" --help)\n")
    assert not (folder / "p.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help(call, command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "") and out.startswith(f"usage: deltaflow {command}")
    assert COMMANDS[command] in " ".join(out.split())


def test_help_and_version_without_a_command(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "") and out.startswith("usage: deltaflow [-h]")
    assert all(name in out and summary.split(",")[0] in " ".join(out.split()) for name, summary in COMMANDS.items())
    code, out, _ = call("--version")
    assert code == 0 and out.startswith("deltaflow ")


@pytest.mark.parametrize("arguments", [["sample"], ["probe", "good.yaml", "--checkpoint"]], ids=" ".join)
def test_a_folder_that_is_no_run_is_1_in_one_line(folder, call, arguments):
    (folder / "experiment" / "main").mkdir(parents=True)
    (folder / "experiment" / "main" / "config.yaml").touch()
    for where, said in (
        (".", "not a run directory (no config.yaml in it)"),
        ("experiment", "not a run directory (no config.yaml in it; the runs in it are main)"),
        ("nothing", "no such folder"),
        ("experiment/mian", "no such folder; did you mean experiment/main?"),
    ):
        code, out, err = call(*arguments, where)
        assert (code, out, err) == (1, "", f"deltaflow: {where}: {said}\n")


@pytest.mark.parametrize("path", ["", ".", "hollow", "good.yaml/p.json"])
def test_a_file_that_cannot_be_written_is_one_line(folder, path):
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(Path(path), "text")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        type("_ArrayMemoryError", (MemoryError,), {})("Unable to allocate"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
        jax.errors.JaxRuntimeError("INTERNAL: a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_line_and_other_errors_of_a_device_keep_their_traceback(
    folder, call, monkeypatch, error
):
    def broken(*_):
        raise error

    monkeypatch.setattr("train.run.probe.probe", broken)
    if "bug" in str(error):
        with pytest.raises(jax.errors.JaxRuntimeError):
            call("probe", "good.yaml")
        return
    advice = "lower model.width, model.layers, data.batch or data.context"
    line = f"deltaflow: not enough memory for this model and its batches; {advice}\n"
    assert call("probe", "good.yaml") == (1, "", line)
