"""scripts/colab_tpu.ipynb, executed in smoke size."""

import importlib.metadata
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest

pytest.importorskip("IPython")

ROOT = Path(__file__).parents[2]
CELLS = json.loads((ROOT / "scripts" / "colab_tpu.ipynb").read_text(encoding="utf-8"))["cells"]
SOURCES = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for source in json.load(sys.stdin):
    print("CELL", flush=True)
    result = shell.run_cell(source)
    result.raise_error()
print("CELL\\n" + result.result.data)
"""


def test_on_a_cpu_it_names_the_device_keeps_jax_and_ends_with_the_table_of_all_variants(tmp_path):
    settings = {"DELTAFLOW_HOME": str(ROOT), "DELTAFLOW_SMOKE": "1", "DELTAFLOW_RUNS": str(tmp_path / "runs")}
    # One CPU device, as a user has: the suite's own flags make several.
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1")
    settings |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "IPYTHONDIR": str(tmp_path)}
    command = [sys.executable, "-c", SHELL]
    done = subprocess.run(
        command, input=json.dumps(SOURCES), env=os.environ | settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, install, devices, *_, table = done.stdout.split("CELL\n")
    assert f"'jax': '{jax.__version__}'" in install
    assert "THIS IS A CPU: no accelerator" in devices
    rows = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
    assert rows == ["with", "without_skip", "without_skip_and_norm"]


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
    with pytest.raises(AssertionError, match="jax was replaced: 0.9.9 before") if replaces else nullcontext():
        exec(SOURCES[0], {})
    clone, install = commands
    assert clone[:2] == ["git", "clone"] and clone[-1] == str(tmp_path / "new")
    assert install[1:-1] == ("-m", "pip", "install", "-q", "-e", ".", "-c")
    assert Path(install[-1]).read_text(encoding="utf-8").split() == [
        f"{name}=={number}" for name, number in {**versions, "jax": "0.9.9"}.items()
    ]


def test_the_stored_notebook_has_no_outputs():
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in CELLS)
