"""scripts/colab_tpu.ipynb, executed in smoke size."""

import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "scripts" / "colab_tpu.ipynb"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """Returns the notebook after a run on this machine's CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own
        from jupyter_client.kernelspec import KernelSpecManager
        from nbclient import NotebookClient

        runs = tmp_path_factory.mktemp("notebook")
        settings = {"DELTAFLOW_HOME": str(ROOT), "DELTAFLOW_SMOKE": "1", "DELTAFLOW_RUNS": str(runs)}
        # One CPU device, as a user has: the suite's own flags make several.
        environment = {**os.environ, **settings, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        kernel = runs / "kernels" / "this"
        kernel.mkdir(parents=True)
        spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "this"}
        (kernel / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))
        manager = KernelSpecManager(kernel_dirs=[str(runs / "kernels")])
        client = NotebookClient(nbformat.read(NOTEBOOK, as_version=4), timeout=300, kernel_name="this")
        client.create_kernel_manager()
        assert client.km is not None
        client.km.kernel_spec_manager = manager
        with client.setup_kernel(env=environment):
            for index, cell in enumerate(client.nb.cells):
                client.execute_cell(cell, index)
    return client.nb


def _text(cell) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def test_it_says_loudly_which_device_it_got(notebook):
    assert "THIS IS A CPU: no accelerator" in _text(notebook.cells[3])


def test_it_keeps_the_runtimes_jax(notebook):
    import jax

    assert f"'jax': '{jax.__version__}'" in _text(notebook.cells[1])


@pytest.mark.parametrize("replaces", [False, True])
def test_where_it_is_missing_it_is_installed_with_the_runtimes_versions(tmp_path, monkeypatch, replaces):
    """git and pip are stand-ins; one pip respects the pins, the other replaces jax."""
    versions, commands = dict(jax="0.9.9", jaxlib="0.9.9", flax="1", optax="1", numpy="2"), []

    def version(name):
        if name == "deltaflow":
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    class Pip:
        stdout = ()

        def __init__(self, command, **_):
            commands.append(command)
            versions["jax"] = "1.0" if replaces else versions["jax"]

        def wait(self):
            return 0

    monkeypatch.setenv("DELTAFLOW_HOME", str(tmp_path / "new"))
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(subprocess, "Popen", Pip)
    source = nbformat.read(NOTEBOOK, as_version=4).cells[1].source
    with pytest.raises(AssertionError, match="jax was replaced: 0.9.9 before") if replaces else nullcontext():
        exec(source, {})
    clone, install = commands
    assert clone[:2] == ["git", "clone"] and clone[-1] == str(tmp_path / "new")
    assert install[1:-1] == ("-m", "pip", "install", "-q", "-e", ".", "-c")
    assert Path(install[-1]).read_text(encoding="utf-8").split() == [
        f"{name}=={number}" for name, number in {**versions, "jax": "0.9.9"}.items()
    ]


def test_it_ends_with_the_table_of_all_variants(notebook):
    table = notebook.cells[-1]["outputs"][-1]["data"]["text/markdown"]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == ["with", "without_skip", "without_skip_and_norm"]


def test_the_stored_notebook_has_no_outputs():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in stored.cells)
