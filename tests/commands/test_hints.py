"""Every stumble of a command line that we know of, and the line or two that help, of tests/messages.txt."""

import contextlib
import io
import shlex
import sys
import time
from pathlib import Path

import pytest

from tests.messages import COMMANDS, RECORDED
from tests.runs import write_run
from train.cli import EXAMPLES, main


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


@pytest.mark.parametrize("block", COMMANDS)
def test_a_stumble_is_answered_in_a_line_or_two(tmp_path, monkeypatch, wording, block):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["deltaflow"])
    monkeypatch.setattr(time, "sleep", lambda _: None)  # of watch, before it looks again
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    answered = answer(block.removeprefix("$ "))
    wording(answered)
    assert answered.count("\n") <= 1
    assert sorted(tmp_path.rglob("*")) == before


def test_every_command_with_required_words_has_an_example():
    answers = ["\n".join(RECORDED[command]) for command in COMMANDS]
    unanswered = [each for each in answers if "arguments are required" in each and "for example" not in each]
    assert len(answers) > 80 and not unanswered and len(EXAMPLES) >= 7
