"""Every stumble of a command line that we know of, and the line or two that help: hints.txt.

After a change of wording: python -m tests.commands.test_hints
"""

import contextlib
import io
import shlex
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.runs import write_run
from train.cli import EXAMPLES, main

GOLDEN = Path(__file__).with_name("hints.txt")
BLOCKS = GOLDEN.read_text(encoding="utf-8").removesuffix("\n").split("\n\n")


def prepare(folder: Path) -> None:
    """A folder with two configs, runs of one of them and a report, as a user's may be."""
    for name in ("mine", "other"):
        (folder / f"{name}.yaml").write_text(f"name: {name}\nmodel: {{layers: 2}}\n", encoding="utf-8")
    run = write_run(folder / "runs" / "mine", "with")
    (run / "ckpt").mkdir()
    (folder / "runs" / "mine" / "report.html").write_text("<!doctype html>\n<p>a: b\n", encoding="utf-8")


def answer(line: str) -> str:
    """The exit code of a command, and what it prints, in the current folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(shlex.split(line)[1:])
        except SystemExit as error:  # argparse
            code = error.code
    assert out.getvalue() == "", line
    return f"{code} {err.getvalue()}".removesuffix("\n")


@pytest.mark.parametrize("block", BLOCKS[1:], ids=lambda block: block.splitlines()[0])
def test_a_stumble_is_answered_in_a_line_or_two(tmp_path, monkeypatch, block):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["deltaflow"])
    monkeypatch.setattr(time, "sleep", lambda _: None)  # of watch, before it looks again
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    line, expected = block.split("\n", 1)
    assert answer(line.removeprefix("$ ")) == expected and len(expected.splitlines()) <= 2
    assert sorted(tmp_path.rglob("*")) == before


def test_every_command_with_required_words_has_an_example():
    unanswered = [block for block in BLOCKS if "arguments are required" in block and "for example" not in block]
    assert len(BLOCKS) > 80 and not unanswered and len(EXAMPLES) >= 7


if __name__ == "__main__":
    sys.argv = ["deltaflow"]
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare(Path(folder))
        lines = [block.splitlines()[0] for block in BLOCKS[1:]]
        answers = [f"{line}\n{answer(line.removeprefix('$ '))}" for line in lines]
    GOLDEN.write_text("\n\n".join([BLOCKS[0], *answers]) + "\n", encoding="utf-8")
