"""scripts/colab_tpu.ipynb, filled in and executed in kernels as on Colab, whose own modules are stand-ins."""

import asyncio
import importlib.metadata
import json
import shutil
import subprocess
import zipfile
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
NOTEBOOK = nbformat.read(ROOT / "scripts" / "colab_tpu.ipynb", as_version=4)
SOURCES = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]
COLAB = """
import sys, types
colab = sys.modules["google.colab"] = types.ModuleType("google.colab")
colab.drive = types.SimpleNamespace(mount=lambda folder: print("mounted", folder))
colab.files = types.SimpleNamespace(upload=lambda: {"mine.txt": b"the gradient flows through every block " * 200})
board = sys.modules["tensorboard"] = types.ModuleType("tensorboard")
board.load_ipython_extension = lambda shell: shell.register_magic_function(print, magic_name="tensorboard")
"""
SMALL = "train.steps=800 train.eval_every=400 train.checkpoint_every=40 train.eval_batches=1 model.layers=2"
SMALL += " model.width=16 data.context=8 data.batch=4 watch.every=400 optimizer.warmup=1"


def runtime(folder, **form):
    """Returns a client whose kernel will run all cells in a folder, the form filled in; copies to Drive every 0.1 s."""
    settings, *others = (source.replace("finished.wait(60)", "finished.wait(0.1)") for source in SOURCES)
    answers = "\n".join(f"{name} = {answer!r}" for name, answer in form.items())
    sources = [COLAB, settings, answers, *others, "assert 'jax' not in sys.modules"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    return nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}})


def text(cell):
    """Returns the text that a cell has printed and displayed."""
    return "".join(str(output.get("text") or output.get("data") or output.get("traceback")) for output in cell.outputs)


@pytest.mark.slow
def test_it_goes_on_from_drive_in_another_kernel_when_the_first_one_was_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    project = tmp_path / "upload" / "deltaflow-main"
    for package in ("configs", "data", "model", "train"):
        shutil.copytree(ROOT / package, project / package)
    shutil.copy(ROOT / "pyproject.toml", project)
    for name in ("first", "second"):  # as GitHub makes zips: all in one folder
        shutil.make_archive(str(tmp_path / name / "deltaflow"), "zip", project.parent)
    kept = tmp_path / "drive" / "own_text" / "with"
    form = {"OWN_TEXT": True, "DRIVE": str(tmp_path / "drive"), "MORE": SMALL}

    async def disconnected(client):
        running = asyncio.create_task(client.async_execute())
        while len({path.parent for path in kept.parent.rglob("*.safetensors")}) < 2:
            assert not running.done(), running
            await asyncio.sleep(0.05)
        await client.km.shutdown_kernel(now=True)
        await running

    with pytest.raises(nbclient.exceptions.DeadKernelError):
        asyncio.run(disconnected(runtime(tmp_path / "first", **form)))
    assert not (kept / "summary.json").exists()
    executed = runtime(tmp_path / "second", **form).execute()
    _, _, _, install, devices, drive, board, training, report, sample, _ = map(text, executed.cells)
    assert f"'jax': '{jax.__version__}'" in install
    assert "THIS IS A CPU: no accelerator" in devices
    assert "runs are back from" in drive
    assert "--logdir" in board
    assert "resuming at step" in training
    assert all(name in training for name in ("with", "without_skip", "without_skip_and_norm"))
    assert "without_skip_and_norm" in report
    assert len(sample.strip()) > 50
    assert "own_text.txt" in (kept / "config.yaml").read_text() and (kept / "summary.json").exists()
    steps = [json.loads(line)["step"] for line in (kept / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 800


def test_an_empty_form_is_one_friendly_line(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    client = runtime(tmp_path)
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        client.execute()
    (error,) = client.nb.cells[3].outputs
    assert len(error.traceback) == 1 and error.traceback[0].startswith("STOPPED: fill in REPOSITORY in the form above")


@pytest.mark.parametrize("files", [None, {}, {"a/pyproject.toml": "", "b/pyproject.toml": ""}])
def test_an_upload_that_is_not_the_project_is_one_friendly_line(tmp_path, monkeypatch, files, wording):
    """None: the first bytes of an archive that is still on its way."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("deltaflow.zip", "w") as archive:
        for name, content in ({"pyproject.toml": "x"} if files is None else files).items():
            archive.writestr(name, content)
    if files is None:
        Path("deltaflow.zip").write_bytes(Path("deltaflow.zip").read_bytes()[:20])
    with wording.raises(Exception) as error:
        exec(SOURCES[1], {"REPOSITORY": ""})
    assert type(error.value).__name__ == "Stop" and not Path("deltaflow").exists() and not Path("unzipped").exists()


@pytest.mark.parametrize("replaces", [False, True])
def test_where_it_is_missing_it_is_installed_with_the_runtimes_versions(
    tmp_path, monkeypatch, capsys, replaces, wording
):
    """git and pip are stand-ins; one pip respects the pins, the other replaces jax."""
    versions, commands = dict(jax="0.9.9", jaxlib="0.9.9", flax="1", optax="1", numpy="2"), []

    def version(name):
        if name == "deltaflow":
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    class Program:
        stdout = ()

        def __init__(self, command, **_):
            commands.append(command)
            versions["jax"] = "1.0" if replaces and "pip" in command else versions["jax"]

        def wait(self):
            return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(subprocess, "Popen", Program)
    with wording.raises(Exception) if replaces else nullcontext():
        exec(SOURCES[1], {"REPOSITORY": " https://example.org/fork.git "})
    clone, install = commands
    assert clone[:2] == ("git", "clone") and clone[-2:] == ("https://example.org/fork.git", str(tmp_path / "deltaflow"))
    assert install[1:-1] == ("-m", "pip", "install", "-q", "-e", ".", "-c")
    assert Path(install[-1]).read_text(encoding="utf-8").split() == [
        f"{name}=={number}" for name, number in {**versions, "jax": "0.9.9"}.items()
    ]


def test_copies_are_whole_and_a_drive_that_fails_costs_one_line(tmp_path, monkeypatch, capsys):
    cell = next(source for source in SOURCES if "def copy(" in source)
    names = {"DRIVE": "", "OWN_TEXT": False, "MORE": "", "HOME": tmp_path, "RUNS": tmp_path / "runs"}
    exec("import contextlib, os, pathlib, shlex, shutil\n" + cell, names)
    source, target = tmp_path / "runs", tmp_path / "drive"
    (source / "a" / "ckpt").mkdir(parents=True)
    for name in ("a/ckpt/1.safetensors", "a/ckpt/2.safetensors", "a/choices.json", "a/.lock"):
        (source / name).write_text(name)
    copied, whole = [], shutil.copyfile

    def copyfile(path, part):
        copied.append(path.name)
        return whole(path, part)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    names["copy"](source, target)
    assert sorted(copied[:2]) == ["1.safetensors", "2.safetensors"] and copied[2:] == ["choices.json"]
    (source / "a/ckpt/1.safetensors").unlink()
    (source / "a/choices.json").write_text("longer than before")
    names["copy"](source, target)
    assert copied[3:] == ["choices.json"]
    assert sorted(path.name for path in target.rglob("*.*")) == ["2.safetensors", "choices.json"]
    names["copy"](tmp_path / "a new machine", target)  # has nothing, and takes nothing away
    assert (target / "a/ckpt/2.safetensors").exists() and capsys.readouterr().out == ""
    (source / "a/choices.json").write_text("even longer than before")
    monkeypatch.setattr(
        shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(107, "Transport endpoint is not connected"))
    )
    names["copy"](source, target)
    assert capsys.readouterr().out.count("not copied to") == 1
    assert (target / "a/choices.json").read_text() == "longer than before"


def test_the_stored_notebook_has_no_outputs_and_asks_for_a_tpu():
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in NOTEBOOK.cells)
    assert NOTEBOOK.metadata.colab.gpuType == "V5E1" and NOTEBOOK.metadata.accelerator == "TPU"
