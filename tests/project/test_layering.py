"""Directions of imports (.github/CONTRIBUTING.md, Layout); what tests replace. Each test is one law over all files."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("model", "data", "train")
# A room of train may import itself and rooms of smaller numbers.
LEVEL = {"errors": 0, "text": 0, "disk": 1, "config": 2, "gradflow": 3, "core": 4, "instruments": 5}
LEVEL |= {"device": 6, "log": 6, "store": 6, "report": 7, "chain": 7, "run": 8, "commands": 9, "cli": 10}
LEVEL["__main__"] = 11
# What tests may replace of this repository; all else is an argument. The reasons:
MUTANT = "something has to be broken, so that it is seen who notices"
COMMANDS = "runs come through the command line, which has no arguments of the process"
BENCH = "it changes malloc for good, or compiles for seconds"
REPLACED = {
    "scripts/faults/programs.py::train.device.programs.compiled": COMMANDS,
    "scripts/faults/programs.py::train.run.metrics.RunMetrics.draw": COMMANDS,
    "scripts/faults/programs.py::train.run.summary.write_report": COMMANDS,
    "tests/chain/test_chain.py::module.name": MUTANT,
    "tests/chain/test_chain.py::train.chain.loss.softmax": MUTANT,
    "tests/device/test_signals.py::train.device.hosts.agreed": "stands for the other processes",
    "tests/scripts/test_bench.py::scripts.bench.project.make": BENCH,
    "tests/scripts/test_bench.py::scripts.bench.project.programs_of": BENCH,
    "tests/scripts/test_bench.py::scripts.bench.project.tune": BENCH,
    "tests/scripts/test_faults.py::train.store.checkpoint.Checkpoints.damage": MUTANT,
    "tests/test_cli.py::train.commands.compare.run": "raises an error of each kind; no command has all of them",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def imported(module: str) -> frozenset[str]:
    """Returns the absolute names of all modules that the source imports, in functions too, and of their packages."""
    names = set()
    inside = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names.add(base)
            names |= {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
    parents = {name.rpartition(".")[0] for name in names if "." in name}
    return frozenset(names | (parents & MODULES.keys()))


def reached(module: str) -> set[str]:
    """Returns all that importing a module may import, third parties by name alone."""
    visited, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in visited:
            visited.add(name)
            todo += imported(name) if name in MODULES else ()
    return visited


def ours(module: str) -> set[str]:
    """Returns the packages of this repository that a module imports."""
    return {name.partition(".")[0] for name in imported(module)} & set(PACKAGES)


def foreign(module: str) -> set[str]:
    """Returns the top-level packages that are neither Python's nor ours."""
    return {name.partition(".")[0] for name in imported(module)} - set(sys.stdlib_module_names) - set(PACKAGES)


def of(*packages: str) -> list[str]:
    return [name for name in MODULES for package in packages if name == package or name.startswith(f"{package}.")]


def replaced(path: Path) -> Iterator[str]:
    """Yields what a file replaces of this repository, or of what is known only once it runs: by `setattr` or `patch` of
    a fixture or a module, or by an assignment to a module or class."""
    names, tree = {}, ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0]: alias.asname and alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def full(node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        first, *rest = ast.unparse(node).split(".")
        return ".".join([names.get(first, f"?{first}") or first, *rest])

    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            if called.endswith((".setattr", "patch.object")):
                owner, name = node.args[:2]
                target = full(owner) if isinstance(owner, ast.Constant) else f"{full(owner)}.{full(name).lstrip('?')}"
            elif called in ("patch", "mock.patch"):
                target = full(node.args[0])
            else:
                continue
            if target.startswith(("?", *(f"{package}." for package in (*PACKAGES, "scripts")))):
                yield target.lstrip("?")
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Attribute) and full(target).startswith(tuple(f"{each}." for each in PACKAGES)):
                yield full(target)


def test_the_walk_covers_the_packages():
    """Otherwise the laws below would be empty."""
    assert len(of("model")) >= 10 and len(of("data")) >= 5 and len(of("train")) >= 30
    assert "train.config.schema" in imported("train.config.load")
    assert "tensorboardX.record_writer" in imported("train.log.append")  # within a function
    assert "jax" in reached("train.commands.probe")
    assert "pydantic" in reached("train.commands.probe")


def test_model_imports_neither_data_nor_train():
    for module in of("model"):
        assert foreign(module) <= {"jax", "flax", "pydantic", "numpy", "jaxtyping"}, module
        assert ours(module) <= {"model"}, module


def test_data_imports_neither_jax_nor_model_nor_train():
    for module in of("data"):
        assert foreign(module) <= {"numpy", "pydantic", "pooch", "requests", "sklearn", "tokenizers"}, module
        assert ours(module) <= {"data"}, module


def test_imports_within_a_package_are_relative():
    """So that a folder can be vendored under another name."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                assert node.module.split(".")[0] != module.split(".")[0], f"{module} imports {node.module}"


def test_train_imports_downwards():
    for module in of("train"):
        if module == "train":
            continue
        room = module.split(".")[1]
        for name in imported(module):
            if name.startswith("train."):
                other = name.split(".")[1]
                assert other == room or LEVEL[other] < LEVEL[room], f"{module} imports {name}"


def test_a_config_is_checked_and_a_run_is_read_without_jax():
    """Also through what these import: errors in a config come at once, and a report needs no accelerator."""
    for module in ["train", *of("train.config", "train.report", "train.log"), "model.config", "train.cli"]:
        assert not {name.partition(".")[0] for name in reached(module)} & {"jax", "flax", "optax", "orbax"}, module


def test_the_core_does_no_io():
    for module in of("train.core", "train.gradflow"):
        assert not imported(module) & {"os", "pathlib", "tensorboardX", "rich", "logging", "shutil"}, module
        assert not imported(module) & {"sys", "importlib"}, module  # user code is passed in


def test_nothing_imports_scripts_or_tests():
    for module in MODULES:
        assert not {name.partition(".")[0] for name in imported(module)} & {"scripts", "tests", "conftest"}, module


def test_tests_replace_nothing_of_ours_without_a_reason():
    """They give a clock, a disk, programs, a limit: what stands in the place of a name is not what users run."""
    files = [path for folder in ("tests", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert sorted(f"{path.relative_to(ROOT)}::{name}" for path in files for name in replaced(path)) == sorted(REPLACED)


def test_no_file_hides_a_package():
    """`python scripts/x.py` puts scripts/ first on the path."""
    for folder in (ROOT, ROOT / "scripts", ROOT / "tests", *(ROOT / "scripts").glob("*/")):
        hidden = {f"{package}.py" for package in PACKAGES} & {path.name for path in folder.iterdir()}
        assert not hidden, folder
    inner = {path.name for path in (ROOT / "scripts").iterdir() if path.is_dir()}
    assert not inner & set(PACKAGES)


def test_the_reference_shares_no_code_with_what_it_checks():
    """Or a mistake would be on both sides of a claim, and of a test."""
    module = "train.chain.reference"
    assert foreign(module) <= {"numpy", "jaxtyping"} and not ours(module), imported(module)


def test_nothing_here_can_unpickle():
    """No module of the project names pickle, or what rests on it; numpy is never allowed to."""
    dangerous = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in [p for package in ("model", "data", "train") for p in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & dangerous, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
