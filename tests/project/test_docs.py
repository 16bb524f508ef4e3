"""The docs against the code, and the words of both."""

import argparse
import ast
import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.messages import STALE, TESTS
from train.cli import COMMANDS
from train.config.load import load
from train.config.schema import STATES
from train.core.evaluate import Scores
from train.gradflow.verdict import PLAIN
from train.run.metrics import evaluation_row

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / ".github").glob("*.md"))]


def test_tables_that_scripts_write_are_current_and_every_key_has_a_meaning():
    references = runpy.run_path(str(ROOT / "scripts" / "config_reference.py"))
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == references["reference"]()
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == references["commands"]()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 50 and [row for row in rows if row.endswith("|  |")] == []
    instruments = runpy.run_path(str(ROOT / "scripts" / "instruments.py"))
    assert instruments["measured"]() in (ROOT / "docs" / "instruments.md").read_text(encoding="utf-8")


def test_links_of_the_docs_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_site_has_every_page_and_loads_nothing(tmp_path):
    """Its own build is strict: a page outside the navigation, a link or an anchor that leads nowhere is an error."""
    site = yaml.safe_load((ROOT / ".mkdocs.yml").read_text(encoding="utf-8"))
    paths = re.findall(r"[\w/]+\.md", str(site["nav"]))
    docs = ROOT / site["docs_dir"]
    assert sorted(paths) == sorted(path.relative_to(docs).as_posix() for path in PAGES if path.is_relative_to(docs))
    assert site["strict"] and site["theme"]["font"] is False
    pytest.importorskip("material", reason="the extra [docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(ROOT / ".mkdocs.yml"), "-d", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "howto" / "gpu.html").is_file()  # not gpu/index.html, whose links do not work from disk
    for path in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*", path.read_text(encoding="utf-8"))
        assert len(loaded) > 5 and not [tag for tag in loaded if "//" in tag], path.name


AVOIDED = re.compile(r"(?i)(?<![a-z])(?:[b]esides?|[a]new|[n]obody|[s]eldom|in [e]arnest)(?![a-z])")
OPENINGS = re.compile(r"(?:What|How|Why|Who|Whose|Whether|When|Where|Which|Of)\b")


def test_words_that_are_avoided_and_docstrings_that_open_with_a_noun_or_a_verb():
    """And no name has such a word. Docstrings that open as a question leave the reader to find the subject."""
    modules = [path for name in ("model", "data", "train", "scripts", "tests") for path in (ROOT / name).rglob("*.py")]
    assert len(modules) > 250
    for path in [ROOT / "CHANGELOG.md", *PAGES, *modules]:
        text = path.read_text(encoding="utf-8")
        assert AVOIDED.findall(text) == [], path
        if path.suffix == ".py":
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
            assert not [doc for doc in map(ast.get_docstring, nodes) if doc and OPENINGS.match(doc)], path


PROSE = re.compile(r"[A-Za-z]+(?:(?:'[a-z])?,? [A-Za-z]+){2,}")  # three words in a row
OTHERS = re.compile("No module named")  # of Python
MESSAGES = "err error message refusal warning warnings problems caught refused refused_file error_of message_of".split()


def is_message(node: ast.expr) -> bool:
    """Returns true for `err`, `message`, `str(caught.value)` and the like."""
    if isinstance(node, ast.Call):
        return any(map(is_message, [node.func, *node.args]))
    if isinstance(node, ast.Attribute):
        return node.attr in ("err", "message", "stderr", "value") or is_message(node.value)
    return isinstance(node, ast.Name) and node.id in MESSAGES


def pinned(node: ast.AST) -> list[ast.expr]:
    """Texts that a node of a test compares with a message, but for a single number or name."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return [side for side in sides if not is_message(side)] if any(map(is_message, sides)) else []
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return []
    if ast.unparse(node.func) in ("pytest.raises", "pytest.warns"):
        return [each.value for each in node.keywords if each.arg == "match"]
    return node.args if node.func.attr in ("startswith", "endswith", "count") and is_message(node.func.value) else []


def test_words_of_messages_are_in_one_file():
    """tests/messages.txt: tests say the place and the key. `match` is for words of others, two at most."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for text in pinned(node):
                words = [str(each.value) for each in ast.walk(text) if isinstance(each, ast.Constant)]
                prose = [each for each in words if PROSE.search(OTHERS.sub("", each))]
                variable = "match=" in ast.unparse(node) and not words and "strerror" not in ast.unparse(text)
                assert not prose and not variable, f"{path}:{text.lineno}: {ast.unparse(text)}"


def test_recorded_messages_are_of_tests_that_there_are(request):
    assert request.config.stash[STALE] == []
    for file in {source.partition("::")[0] for source in TESTS}:
        nodes = ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        names = {
            node.name for node in nodes if isinstance(node, ast.FunctionDef) and "wording" in ast.unparse(node.args)
        }
        recorded = {re.split(r"::|\[", source)[1] for source in TESTS if source.startswith(f"{file}::")}
        assert recorded <= names, file


def test_yaml_of_the_docs_is_valid(tmp_path):
    """Each block is a config, or a part of one."""
    counted = 0
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            path = tmp_path / "block.yaml"
            path.write_text(block if "name:" in block else f"name: block\n{block}", encoding="utf-8")
            assert load(path).variants, page.name
            counted += 1
    assert counted >= 5


def commands() -> list[tuple[str, list[str]]]:
    """(file, arguments) of each `deltaflow` command line in the pages' blocks and in the configs' headers."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            lines += [(page.name, line) for line in block.splitlines()]
    for config in sorted((ROOT / "configs").glob("*.yaml")):
        comments = [line[1:].strip() for line in config.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
        lines += [(config.name, line.rpartition("&& ")[2]) for line in comments]
    return [(name, shlex.split(line, comments=True)[1:]) for name, line in lines if line.startswith("deltaflow ")]


def test_commands_of_the_docs_are_accepted(monkeypatch):
    """The options exist, and shipped configs take the overrides."""
    monkeypatch.chdir(ROOT)
    assert len(commands()) >= 30
    for page, (name, *arguments) in commands():
        module = importlib.import_module(f"train.commands.{name}")
        parser = argparse.ArgumentParser(exit_on_error=False)
        module.arguments(parser)
        try:
            parsed, rest = parser.parse_known_args(arguments)  # positional overrides after an option are left over
        except (argparse.ArgumentError, SystemExit) as error:
            raise AssertionError(f"{page}: deltaflow {name} {' '.join(arguments)}") from error
        overrides = [*getattr(parsed, "overrides", []), *rest]
        assert all("=" in word and word[0] != "-" for word in overrides), page
        if (getattr(parsed, "config", None) or "").startswith("configs/"):
            assert load(parsed.config, overrides).variants, page


def test_commands_within_sentences_exist():
    texts = [(page.name, page.read_text(encoding="utf-8")) for page in PAGES]
    named = [(page, words) for page, text in texts for words in re.findall(r"`deltaflow ([a-z][^`]*)`", text)]
    assert len(named) > 30
    for page, words in named:
        name, *arguments = words.split()
        assert name in COMMANDS, f"{page}: deltaflow {words}"
        parser = argparse.ArgumentParser(add_help=False)
        importlib.import_module(f"train.commands.{name}").arguments(parser)
        options = {word.partition("=")[0] for word in arguments if word.startswith("--")} - {"--help"}
        assert options <= parser._option_string_actions.keys(), f"{page}: deltaflow {words}"


def test_the_glossary_has_every_state_and_its_plain_name():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert all(f"\n| `{state}` | {PLAIN.get(state, '')}".rstrip() in page for state in STATES)


def test_tags_of_the_charts_page_are_explained():
    charts, tags = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("howto/charts.md", "tags.md"))
    named = re.findall(r"`(\w+/\w+)[/`]", charts)
    assert len(named) >= 8 and not [tag for tag in named if f"`{tag}" not in tags and "floor_" not in tag]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_the_layout_names_every_room():
    layout = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Layout")[2]
    rooms = {path.parent.name for path in (ROOT / "train").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/", layout, re.M)) == rooms
    paths = re.findall(r"\b(?:model|train|tests|docs|scripts)/[\w/]+(?:\.\w+)?", layout)
    assert len(paths) > 20 and not [path for path in paths if not (ROOT / path).exists()]
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."} - {"runs", "build", "dist"}
    assert set(re.findall(r"^(\w+)/", layout, re.M)) == {name for name in top if any((ROOT / name).rglob("*.*"))}


def test_every_config_names_its_command_and_itself():
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert f"deltaflow train configs/{path.name}" in text
        assert re.search(rf"^name: {path.stem}\b", text, re.M)


def test_the_tensorboard_command_keeps_the_custom_scalars():
    """`scalars=0` means all to the Scalars page and none at all to Custom Scalars, whose charts then stay empty."""
    for path in (ROOT / "scripts" / "colab_tpu.ipynb", ROOT / "train" / "commands" / "tensorboard.py"):
        assert re.findall(r"scalars=(\d+)", path.read_text(encoding="utf-8")) == ["100000"], path.name


def test_every_tag_and_every_key_of_a_summary_is_explained(trained):
    """And what is explained of a plain run is there."""
    _, run = trained
    page = (ROOT / "docs" / "tags.md").read_text(encoding="utf-8")
    cells = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    explained = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}

    def general(tag: str) -> str:
        tag = re.sub(r"layer_\d{3}", "layer_NNN", tag).replace("grad_without/", "grad/")
        return re.sub(r"(layer_NNN)/.+", r"\1/MATRIX", re.sub(r"floor_.+", "floor_NAME", tag))

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {general(tag) for row in rows for tag in row if tag not in ("step", "nonfinite")}
    summary = json.loads((run / "summary.json").read_text())
    assert len(logged) > 20 and not logged - explained and not summary.keys() - explained
    optional = set(evaluation_row(Scores(np.float32(1), np.float32(0.5)), {"": 1.0}, "lm", "val_ema"))
    assert len(optional) == 4 and optional <= explained
    optional |= {"loss_val_ema", "verdict", "verdict/spike", "versus", "yaml"}
    # Of steps that are not finite: tests/run/test_recovery.py.
    optional |= {"verdict/nonfinite", "optim/nonfinite", "optim/skipped"}
    optional |= {"skipped_steps", "perf/mfu"}  # the last of trainings that take their time
    pictures = {"delta/heatmap", "delta_without/heatmap"}
    missing = {name for name in explained if not name.startswith("grad_without")} - logged - summary.keys()
    assert missing <= optional | pictures


OWN_MODEL = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
NUMBER = r"\d+\.?\d*(?:e[+-]\d+)?"
EXAMPLES = re.findall(r"```python\n(.*?)```\n.*?```text\n(.*?)```", OWN_MODEL, re.S)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "promised"), EXAMPLES, ids=["nnx", "linen", "equinox", "taps"])
def test_the_page_prints_what_it_says(code, promised, capsys):
    if "equinox" in code:
        pytest.importorskip("equinox")
    exec(compile(code, "docs/own_model.md", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    assert re.sub(NUMBER, "#", printed).split() == re.sub(NUMBER, "#", promised).split()
    numbers = [np.array(re.findall(NUMBER, text), float) for text in (printed, promised)]
    np.testing.assert_allclose(*numbers, rtol=0.03)
