"""scripts/colab_tpu.ipynb, run for real in smoke size."""

import json
import os
import sys
import warnings
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "scripts" / "colab_tpu.ipynb"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The notebook after a run on this machine's CPU."""
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


def test_it_ends_with_the_table_of_all_variants(notebook):
    table = notebook.cells[-1]["outputs"][-1]["data"]["text/markdown"]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == ["with", "without_skip", "without_skip_and_norm"]


def test_the_stored_notebook_has_no_outputs():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in stored.cells)
