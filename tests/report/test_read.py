"""Runs are read back while they are written, and as a crash left them."""

import json

import pytest

from runs import write_run
from train.errors import UserError
from train.report.page import as_html, as_markdown, compare
from train.report.read import read_run

LAST = '{"step":60,"loss/train":2.5,"naïve":1.0}'


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        *(LAST.encode()[:cut] for cut in range(1, len(LAST.encode()), 7)),
        "é".encode()[:1],
        b"\0" * 512,
        b"[" * 99_999,
    ],
)
def test_a_log_that_ends_anywhere_is_read_up_to_there(tmp_path, tail):
    run = write_run(tmp_path, "with", done=False)
    before = read_run(run)
    with open(run / "metrics.jsonl", "ab") as log:
        log.write(tail)
    after = read_run(run)
    assert after.step == before.step == 50
    assert {tag: at.tolist() for tag, (at, _) in after.steps.items()} == {
        tag: at.tolist() for tag, (at, _) in before.steps.items()
    }


def test_each_prefix_of_a_log_is_a_run_that_can_be_compared(tmp_path):
    """As a report sees runs that are still going on, one of which has not logged yet."""
    whole = (write_run(tmp_path, "a") / "metrics.jsonl").read_bytes()
    write_run(tmp_path, "b", seed=1, done=False)
    for size in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a" / "metrics.jsonl").write_bytes(whole[:size])
        comparison = compare([tmp_path])
        runs = [run.name for group in comparison.groups for run in group.runs]
        assert runs == (["a", "b"] if b"\n" in whole[:size] else ["b"]) and "unfinished" in as_markdown(comparison)
    assert as_html(comparison).rstrip().endswith("</html>")


@pytest.mark.parametrize(
    "line",
    [
        "[" * 99_999,
        '{"step":1e999}',
        '{"step":' + "9" * 30 + "}",
        '{"step":1,"x":' + "9" * 400 + "}",
        '{"step":1,"x":[]}',
        "7",
    ],
)
def test_a_line_in_the_middle_that_is_no_row_is_named(tmp_path, line):
    run = write_run(tmp_path, "with")
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([rows[0], line, *rows[1:]]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: expected an object with step and numbers") as caught:
        read_run(run)
    assert len(str(caught.value)) < 400 + len(str(run))


def test_a_summary_that_is_no_summary_is_one_line(tmp_path):
    run = write_run(tmp_path, "with")
    for text in ("", "[" * 99_999, "[]", json.dumps(1)):
        (run / "summary.json").write_text(text)
        with pytest.raises(UserError, match="summary.json: (not JSON|expected an object)"):
            read_run(run)
