"""Pages hold their content as text and load nothing; the page and the markdown of a comparison; the command."""

import json
import re

import pytest

from pages import Reader
from runs import write_run
from train.cli import main
from train.report.groups import gather
from train.report.page import (
    Html,
    as_html,
    as_markdown,
    compare,
    formula,
    items,
    markup,
    page,
    paragraph,
    picture,
    section,
    table,
)
from train.report.pictures import pictures
from train.report.tables import final_table
from train.text import command

HOSTILE = "<script>alert(1)</script>&\"'"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
PARTS = {
    "paragraph": paragraph(HOSTILE),
    "formula": formula(HOSTILE),
    "items": items(HOSTILE),
    "table": table([HOSTILE], [[HOSTILE]]),
    "section": section(HOSTILE, paragraph(HOSTILE)),
    "picture": picture(SVG, HOSTILE, HOSTILE),
}


@pytest.mark.parametrize("part", PARTS)
def test_text_stays_text_and_a_page_loads_nothing(part):
    text = page(HOSTILE, PARTS[part])
    read = Reader(text)
    assert "script" not in {tag for tag, _ in read.tags} and HOSTILE in read.text
    for _, attrs in read.tags:
        assert not attrs.keys() & {"href", "srcset", "onclick"}
        assert attrs.get("src", "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text


def test_markup_is_not_escaped_again():
    assert paragraph("a & ", Html("<b>b</b>")) == "<p>a &amp; <b>b</b></p>"
    assert markup(markup("<")) == "&lt;"


def test_columns_of_numbers_are_right_aligned_and_rows_complete():
    read = Reader(table(["run", "loss"], [["a", "1.5"], ["b", "-"]]))
    assert [attrs.get("class") for tag, attrs in read.tags if tag in ("th", "td")] == [None, "right"] * 3
    with pytest.raises(ValueError):
        table(["a", "b"], [["1"]])


def test_one_run_that_was_never_watched_is_a_page_too(tmp_path):
    run = write_run(tmp_path / "a", "x", done=False)
    (run / "metrics.jsonl").write_text('{"step":1,"loss/train":2.0}\n')
    comparison = compare([run])
    assert [figure.key for figure in pictures(comparison.groups)] == ["loss"]
    assert "no verdict yet: unfinished" in as_html(comparison)


def test_markdown_is_tables_with_as_many_cells_as_titles(sweep):
    text = as_markdown(compare([sweep]))
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) == 3
    for lines in map(str.splitlines, tables):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert re.fullmatch(r"(\| -{3}:? )+\|", lines[1])
    assert "| model.residual | pre_ln | none |" in text


def test_the_finding_is_told_of_runs_that_ended(sweep, capsys):
    def told(change):
        for path in sweep.glob("*/summary.json"):
            content = {
                **json.loads(path.read_text()),
                "loss_val": 2.0 + path.parent.name.startswith("without"),
                **change,
            }
            path.write_text(json.dumps(content))
        assert main(["compare", str(sweep)]) == 0
        return as_markdown(compare([sweep])).splitlines()[2:4], capsys.readouterr().out.splitlines()

    sentence = "The mean held-out loss ends lowest in 'with' (2.00; 3.00 in 'without')."
    markdown, printed = told({})
    assert markdown == [f"- {sentence}", ""] and printed[-5:-2] == ["", sentence, ""]
    assert printed[-1] == f"  {command('compare', sweep, '--html')}"
    markdown, printed = told({"exit_reason": "signal 2"})
    assert markdown[0] == "## Final figures" and sentence not in printed


NAME = '<img src=x onerror=alert(1)>"&|`'


def test_hostile_names_are_text(tmp_path):
    write_run(tmp_path / f"e{NAME}", NAME)
    comparison = compare([tmp_path / f"e{NAME}"])
    read = Reader(as_html(comparison))
    assert NAME in read.text and not [attrs for tag, attrs in read.tags if tag == "img" and "onerror" in attrs]
    assert "<img" not in as_markdown(comparison)
    assert (
        re.findall(r"(?<!\\)\|", as_markdown(comparison).splitlines()[6]).count("|")
        == len(final_table(comparison.groups)[0]) + 1
    )


def test_the_command_prints_tables_and_writes_a_page_that_holds_every_run(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (write_run(sweep, "fresh", done=False) / "metrics.jsonl").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", str(sweep)]) == 0
    out, _ = capsys.readouterr()
    assert "2.12 ± 0.25" in out and "model.residual" in out and "because of with,seed=1" in out
    assert "fresh: left out, nothing logged yet" in out
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["compare", str(sweep), "--html", "--markdown", "new/tables.md"]) == 0
    assert (tmp_path / "new" / "tables.md").read_text().startswith("# sweep: 6 runs in 2 groups\n")
    assert "written: compare.html\n" in capsys.readouterr().out
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert text == as_html(compare([sweep])) and text.startswith("<!doctype html>")
    assert not re.search(r"https?:|<script|<link|url\(", text)
    read = Reader(text)
    assert all(f"because of {run.name}" in read.text for run in gather([sweep])[0])
    assert "with, seed 2" in read.text and "±" in read.text and "fresh: left out" in read.text
    images = [attrs for tag, attrs in read.tags if tag == "img"]
    assert len(images) == 5 and all(attrs["src"].startswith("data:") and attrs["alt"] for attrs in images)
    assert len([tag for tag, _ in read.tags if tag == "figcaption"]) == 5


def test_a_run_is_never_written_over(sweep, capsys):
    with pytest.raises(SystemExit) as error:
        main(["compare", "--html", str(sweep / "with,seed=0" / "config.yaml"), str(sweep)])
    assert error.value.code == 2
    assert "--html: expected a name that ends in .html, got" in capsys.readouterr().err
