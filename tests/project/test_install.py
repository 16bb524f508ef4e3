"""Installations into fresh environments, editable and not: what they offer to import, and what may hide it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from train import hidden_package

ROOT = Path(__file__).parents[2]
EDITABLE = ["editables", "-e", str(ROOT)]  # its finder is a dependency of editable installs alone


class Environment:
    """A virtual environment with this project installed, and the dependencies of the one that runs the tests."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        self.run(folder, "python", "-m", "pip", "install", "-q", "--no-deps", *requirements).check_returncode()
        (site,) = folder.glob("lib/python*/site-packages")
        # After its own packages. The .pth files over there, such as another editable install's, are not read.
        (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def run(self, folder: Path, program: str, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment in `folder`; `path` is PYTHONPATH."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"PYTHONPATH": path} if path else {}
        command = [str(self.bin / program), *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module", params=["editable", "wheel"])
def installed(request, tmp_path_factory) -> tuple[Environment, Path]:
    """(the environment, the folder that its packages are in)."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "editable":
        return Environment(folder, *EDITABLE), ROOT
    environment = Environment(folder, str(ROOT))
    (site,) = folder.glob("lib/python*/site-packages")
    return environment, site


@pytest.fixture
def nanogpt(tmp_path) -> Path:
    """A folder laid out like nanoGPT, whose modules are called `model` and `train`, and its folder of texts `data`."""
    (tmp_path / "data" / "shakespeare").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare" / "prepare.py").write_text("HERE = 1\n")
    (tmp_path / "model.py").write_text("class GPT: ...\n")
    (tmp_path / "train.py").write_text("print('training')\n")
    return tmp_path


@pytest.mark.slow
def test_the_command_works_from_any_folder(installed, nanogpt, tmp_path_factory):
    environment, _ = installed
    for folder in (tmp_path_factory.mktemp("empty"), nanogpt, ROOT):
        result = environment.run(folder, "deltaflow", "--version")
        assert (result.returncode, result.stderr) == (0, ""), folder
        assert result.stdout.startswith("deltaflow 0.")


@pytest.mark.slow
def test_nothing_but_the_three_packages_is_offered(installed, tmp_path):
    environment, home = installed
    code = "import model, data, train; print(*(p.__path__[0] for p in (model, data, train)), sep='\\n')"
    result = environment.run(tmp_path, "python", "-c", code)
    assert result.stdout.split("\n")[:3] == [str(home / name) for name in ("model", "data", "train")], result.stderr
    for name in ("scripts", "tests", "docs", "configs", "conftest"):
        result = environment.run(tmp_path, "python", "-c", f"import {name}")
        assert f"ModuleNotFoundError: No module named '{name}'" in result.stderr


@pytest.mark.slow
def test_a_folder_of_the_user_s_is_the_user_s(installed, nanogpt):
    environment, _ = installed
    result = environment.run(nanogpt, "python", "-c", "import model; print(model.GPT.__name__)")
    assert result.stdout == "GPT\n", result.stderr
    (nanogpt / "data" / "__init__.py").touch()
    result = environment.run(nanogpt, "python", "-c", "from data.shakespeare.prepare import HERE; print(HERE)")
    assert result.stdout == "1\n", result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "program", "on_path"),
    [
        ("train", ("deltaflow", "--version"), True),
        ("model", ("deltaflow", "--version"), True),
        ("model", ("python", "-m", "train", "--version"), False),
        ("model", ("python", "-m", "train.cli", "--version"), False),
        ("model", ("python", "-c", "import train.config"), False),
    ],
)
def test_one_line_names_what_hides_a_package(installed, nanogpt, hidden, program, on_path):
    environment, home = installed
    if hidden != "train":
        (nanogpt / "train.py").unlink()
    result = environment.run(nanogpt, *program, path=str(nanogpt) if on_path else "")
    assert result.returncode == 1 and result.stdout == ""
    *above, line = result.stderr.splitlines()
    assert str(nanogpt / f"{hidden}.py") in line and str(home / hidden) in line
    assert above == [] if program[1] != "-c" else line.startswith("ImportError: ")


@pytest.mark.slow
def test_a_shipped_config_is_found_by_its_bare_name(installed, tmp_path):
    environment, _ = installed
    small = ["model.layers=2", "train.steps=2", "train.eval_every=2", "train.eval_batches=1", "expect={}"]
    result = environment.run(tmp_path, "deltaflow", "train", "quickstart", *small)
    assert result.returncode == 0, result.stderr
    variants = {path.parent.name for path in (tmp_path / "runs" / "quickstart").glob("*/summary.json")}
    assert variants == {"with", "without_skip", "without_skip_and_norm"}


def test_a_namespace_folder_hides_a_package_that_is_mapped(tmp_path, monkeypatch):
    """A user's `data/` without an __init__.py comes before the finder of an editable install."""
    (tmp_path / "theirs" / "wares").mkdir(parents=True)
    (tmp_path / "ours" / "wares").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "theirs")
    line = hidden_package(tmp_path / "ours", "os", "wares")  # without a folder for `os` there is nothing to hide
    assert line is not None and str(tmp_path / "theirs" / "wares") in line and str(tmp_path / "ours" / "wares") in line
    assert hidden_package(tmp_path / "theirs", "wares") is None
    assert hidden_package(ROOT, "model", "data", "train") is None
