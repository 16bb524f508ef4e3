"""scripts/colab_tpu.ipynb, filled in and executed as on Colab, whose own modules and TensorBoard are stand-ins."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest

pytest.importorskip("IPython")

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "scripts" / "colab_tpu.ipynb").read_text(encoding="utf-8"))
CELLS = NOTEBOOK["cells"]
SOURCES = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
SHELL = """
import json, sys, types
from IPython.core.interactiveshell import InteractiveShell
colab = sys.modules["google.colab"] = types.ModuleType("google.colab")
colab.drive = types.SimpleNamespace(mount=lambda folder: print("mounted", folder))
colab.files = types.SimpleNamespace(upload=lambda: {"mine.txt": b"the gradient flows through every block " * 200})
board = sys.modules["tensorboard"] = types.ModuleType("tensorboard")
board.load_ipython_extension = lambda shell: shell.register_magic_function(magic, magic_name="tensorboard")
def magic(line):
    print("TENSORBOARD", line)
shell = InteractiveShell.instance()
shell.display_pub.publish = lambda data, **_: print("HTML", "without_skip_and_norm" in data["text/html"])
for source in json.load(sys.stdin):
    print("CELL", flush=True)
    result = shell.run_cell(source)
    if not result.success:
        sys.exit(1)
assert "jax" not in sys.modules
"""
SMALL = "train.steps=4 train.eval_every=2 train.checkpoint_every=2 train.eval_batches=1 model.layers=2 model.width=16"
SMALL += " data.context=8 data.batch=4 watch.every=1 optimizer.warmup=1"


def run_all(folder, **form):
    """Runs all cells in a folder, the form filled in; returns (exit code, outputs of the cells)."""
    settings, *others = SOURCES
    for name, answer in form.items():
        blank = f"\n{name} = " + ("False" if isinstance(answer, bool) else '""') + "  # @param"
        assert settings.count(blank) == 1
        settings = settings.replace(blank, f"\n{name} = {answer!r}  # @param")
    # One CPU device, as a user has: the suite's own flags make several.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(folder / "ipython")}
    command = [sys.executable, "-c", SHELL]
    done = subprocess.run(
        command, cwd=folder, input=json.dumps([settings, *others]), env=environment, capture_output=True, text=True
    )
    return done.returncode, (done.stdout + done.stderr).split("CELL\n")[1:]


@pytest.fixture
def machine(tmp_path):
    """Makes a folder with an uploaded zip of the project, as GitHub makes them: all in one folder."""

    def make(name):
        for package in ("configs", "data", "model", "train"):
            shutil.copytree(ROOT / package, tmp_path / "upload" / "deltaflow-main" / package, dirs_exist_ok=True)
        shutil.copy(ROOT / "pyproject.toml", tmp_path / "upload" / "deltaflow-main")
        (tmp_path / name).mkdir()
        shutil.make_archive(str(tmp_path / name / "deltaflow"), "zip", tmp_path / "upload")
        return tmp_path / name

    return make


@pytest.mark.slow
def test_it_trains_on_a_text_of_ones_own_and_goes_on_from_drive_on_another_machine(machine, tmp_path):
    drive = tmp_path / "drive"
    form = {"OWN_TEXT": True, "DRIVE": str(drive)}
    code, cells = run_all(machine("first"), MORE=SMALL, **form)
    assert code == 0, cells
    _, install, devices, _, board, training, report, sample = cells
    assert f"'jax': '{jax.__version__}'" in install
    assert "THIS IS A CPU: no accelerator" in devices
    assert "TENSORBOARD --logdir" in board
    assert all(name in training for name in ("with", "without_skip", "without_skip_and_norm"))
    assert "HTML True" in report
    assert len(sample.strip()) > 50
    kept = drive / "colab_tpu" / "with"
    assert "own_text.txt" in (kept / "config.yaml").read_text()
    assert [path.name for path in (kept / "ckpt").iterdir()] and (kept / "summary.json").exists()
    code, cells = run_all(machine("second"), MORE=f"{SMALL} train.steps=6", **form)
    assert code == 0, cells
    assert "runs are back from" in cells[3]
    steps = [json.loads(line)["step"] for line in (kept / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 6
    assert "resum" in cells[5]


def test_an_empty_form_is_one_friendly_line(tmp_path):
    code, cells = run_all(tmp_path)
    assert code == 1 and cells[1].strip().splitlines()[-1].startswith("STOPPED: fill in REPOSITORY in the form above")
    assert "Traceback" not in "".join(cells)


@pytest.mark.parametrize("replaces", [False, True])
def test_where_it_is_missing_it_is_installed_with_the_runtimes_versions(tmp_path, monkeypatch, capsys, replaces):
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
    with pytest.raises(Exception, match="jax replaced") if replaces else nullcontext():
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
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in CELLS)
    assert NOTEBOOK["metadata"]["colab"]["gpuType"] == "V5E1" and NOTEBOOK["metadata"]["accelerator"] == "TPU"
