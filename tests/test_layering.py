"""Imports go one way: data | model -> train.config -> gradflow -> core -> report -> run -> commands -> cli."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "data", "train")
# What a room may import of train: the rooms of a smaller number, and itself.
LEVEL = {"config": 0, "gradflow": 1, "core": 2, "report": 3, "chain": 3, "run": 4, "commands": 5, "cli": 6}
LEVEL |= {"__main__": 7}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def imported(module: str) -> frozenset[str]:
    """Every module that the source names in an import, wherever in the file; with the packages around it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: relative imports hide where they lead"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
    parents = {name.rpartition(".")[0] for name in found if "." in name}
    return frozenset(found | (parents & MODULES.keys()))


def reached(module: str) -> set[str]:
    """All that importing a module may import, third parties by their name alone."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += imported(name) if name in MODULES else ()
    return seen


def ours(module: str) -> set[str]:
    """The packages of this repository that it imports."""
    return {name.partition(".")[0] for name in imported(module)} & set(PACKAGES)


def foreign(module: str) -> set[str]:
    """Top-level packages that are neither Python's nor ours."""
    return {name.partition(".")[0] for name in imported(module)} - set(sys.stdlib_module_names) - set(PACKAGES)


def of(package: str) -> list[str]:
    return [name for name in MODULES if name == package or name.startswith(f"{package}.")]


def test_the_walk_sees_what_is_there():
    """Or everything below would hold of nothing."""
    assert len(of("model")) >= 10 and len(of("data")) >= 5 and len(of("train")) >= 30
    assert "train.config.schema" in imported("train.config.load")
    assert "orbax.checkpoint" in imported("train.run.checkpoint")  # within a function
    assert "jax" in reached("train.commands.probe")
    assert "pydantic" in reached("train.commands.probe")


@pytest.mark.parametrize("module", of("model"))
def test_model_knows_jax_and_nothing_of_us(module):
    assert foreign(module) <= {"jax", "flax", "pydantic", "numpy", "jaxtyping"}
    assert ours(module) <= {"model"}


@pytest.mark.parametrize("module", of("data"))
def test_data_knows_neither_jax_nor_us(module):
    assert foreign(module) <= {"numpy", "pydantic", "pooch", "requests", "sklearn", "tokenizers"}
    assert ours(module) <= {"data"}


@pytest.mark.parametrize("module", [name for name in of("train") if name != "train"])
def test_train_imports_downwards(module):
    room = module.split(".")[1]
    for name in imported(module):
        if name.startswith("train."):
            other = name.split(".")[1]
            assert other == room or LEVEL[other] < LEVEL[room], f"{module} imports {name}"


@pytest.mark.parametrize("module", ["train", *of("train.config"), *of("train.report"), "model.config", "train.cli"])
def test_a_config_is_checked_and_a_run_is_read_without_jax(module):
    """Also through what these import: errors in a config come at once, and a report needs no accelerator."""
    assert not {name.partition(".")[0] for name in reached(module)} & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize("module", [*of("train.core"), *of("train.gradflow")])
def test_the_core_does_no_io(module):
    assert not imported(module) & {"os", "pathlib", "tensorboardX", "orbax.checkpoint", "rich", "logging", "shutil"}
    assert not imported(module) & {"sys", "importlib"}  # what users write is handed in


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_scripts_or_tests(module):
    assert not {name.partition(".")[0] for name in imported(module)} & {"scripts", "tests", "conftest"}


def test_no_file_hides_a_package():
    """`python scripts/x.py` puts scripts/ first on the path."""
    for folder in (ROOT, ROOT / "scripts", ROOT / "tests", *(ROOT / "scripts").glob("*/")):
        hidden = {f"{package}.py" for package in PACKAGES} & {path.name for path in folder.iterdir()}
        assert not hidden, folder
    inner = {path.name for path in (ROOT / "scripts").iterdir() if path.is_dir()}
    assert not inner & set(PACKAGES)
