"""The wording of all errors and warnings: messages.txt, which the fixture `wording` of conftest.py reads.

A block is what provokes messages, and they follow, a line each: a config (>) with its overrides ($), a command
($ deltaflow ...), or a test, by its id, with its parameters where they change the words. Of a new config or command the
first lines are written by hand. After a change of wording, and with an eye on the difference:
python -m tests.messages [pytest's options, and files, by default all that use the fixture]
"""

import re
import sys
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import ClassVar

import pytest

from train.text import command

GOLDEN = Path(__file__).with_name("messages.txt")
ROOT = GOLDEN.parents[1]


def _split(block: str) -> tuple[str, list[str]]:
    lines = block.splitlines()
    count = sum(line.startswith((">", "$")) for line in lines) if block[0] == ">" else 1
    return "\n".join(lines[:count]), lines[count:]


_BLOCKS = GOLDEN.read_text(encoding="utf-8").removesuffix("\n").split("\n\n")
RECORDED = dict(_split(block) for block in _BLOCKS if block[0] != "#")
CONFIGS, COMMANDS, TESTS = ([each for each in RECORDED if each[0] == kind] for kind in (">", "$", "t"))

STALE = pytest.StashKey[list[str]]()


def lines_of(source: str) -> list[str]:
    """The messages of a block; of an id with parameters that has none, those of the test."""
    return RECORDED.get(source, RECORDED.get(source.partition("[")[0], []))


class Wording:
    """The messages of one test, compared with the recorded ones in the order of the calls.

    Args:
        source: the block's first lines, or the id of a test.
        folder: the test's own, TMP in the messages, as is the one of all tests above it.
    """

    output: ClassVar[dict[str, list[str]] | None] = None  # messages by source, filled instead of a comparison

    def __init__(self, source: str, folder: Path) -> None:
        self.source, self.folder, self.lines = source, folder, list[str]()
        self.expected = lines_of(source)

    def __call__(self, message: object, key: object = None, *, volatile: str | None = None) -> None:
        """Compares an exception or a text, each of its lines a message; `volatile`, a regex, becomes *.

        `key`: the place, the config's key, or both, that the message begins with.
        """
        text = str(message).removesuffix("\n")
        assert text and (key is None or text.removeprefix("deltaflow: ").startswith(f"{key}: ")), (key, text)
        text = text.replace(str(self.folder), "TMP").replace(command(), "deltaflow")
        text = re.sub(rf"{re.escape(str(self.folder.parent))}(?:(/[\w-]+?)\d*\b)?", r"TMP\1", text)
        lines = (re.sub(volatile, "*", text) if volatile else text).split("\n")
        assert all(lines), text  # an empty one would end the block
        expected = self.expected[len(self.lines) : len(self.lines) + len(lines)]
        self.lines += lines
        if self.output is None and lines != expected:
            pytest.fail("\n".join(["recorded:", *expected, "now (python -m tests.messages):", *lines]))

    @contextmanager
    def raises(self, kind: type[Exception], key: object = None, *, volatile: str | None = None):
        """`pytest.raises`, and a call with the error."""
        with pytest.raises(kind) as caught:
            yield caught
        self(caught.value, key, volatile=volatile)

    def finish(self) -> None:
        """Fails if more messages are recorded; when rewriting, records those of the test."""
        if self.output is not None:
            self.output[self.source] = self.lines
        elif len(self.lines) < len(self.expected):
            pytest.fail("\n".join(["recorded, and not provoked:", *self.expected[len(self.lines) :]]))


class Rewriting:
    """A pytest plugin: runs only tests that use the fixture, and collects their messages."""

    def __init__(self) -> None:
        self.ids, self.output = set[str](), dict[str, list[str]]()
        Wording.output = self.output

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "wording" in getattr(item, "fixturenames", ())]
        self.ids = {item.nodeid for item in items}

    def records(self) -> dict[str, list[str]]:
        """All records: those of tests that did not run stay, as long as there is such a test."""
        files = {source.partition("::")[0] for source in self.ids}
        elsewhere = [source for source in TESTS if source.partition("::")[0] not in files]
        records_of_tests = {
            source: RECORDED[source] for source in elsewhere if (ROOT / source.partition("::")[0]).exists()
        }
        for function, sources in groupby(sorted(self.ids), lambda source: source.partition("[")[0]):
            cases = {source: self.output.get(source, lines_of(source)) for source in sources}
            first, *others = cases.values()
            records_of_tests |= {function: first} if all(lines == first for lines in others) else cases
        blocks = {source: self.output.get(source, RECORDED[source]) for source in [*CONFIGS, *COMMANDS]}
        return blocks | {
            source: records_of_tests[source] for source in sorted(records_of_tests) if records_of_tests[source]
        }


def rewrite(arguments: list[str]) -> int:
    """Runs tests of whole files in this process and writes their messages; returns pytest's exit code."""
    arguments = [argument.partition("::")[0] for argument in arguments]
    plugin = Rewriting()
    users = [str(path) for path in sorted(GOLDEN.parent.rglob("test_*.py")) if "wording" in path.read_text("utf-8")]
    has_files = any((ROOT / argument).exists() for argument in arguments)
    code = pytest.main([*arguments, *([] if has_files else users)], plugins=[plugin])
    blocks = [heading for heading in _BLOCKS if heading[0] == "#"]
    for place, kind in enumerate("t$>"):
        part = ["\n".join([source, *lines]) for source, lines in plugin.records().items() if source[0] == kind]
        blocks[3 - place : 3 - place] = part
    GOLDEN.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    from tests import messages

    sys.exit(messages.rewrite(sys.argv[1:]))
