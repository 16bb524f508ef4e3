"""Pages hold their content as text and load nothing; the page and the markdown of a comparison; the command."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from pages import Reader
from runs import write_run
from train.cli import main
from train.report.comparison import as_html, as_markdown, compare
from train.report.groups import gather
from train.report.lines import Axes, Curve, Panel, line_charts
from train.report.page import Html, folded, formula, items, markup, page, paragraph, picture, section, table
from train.report.pictures import pictures
from train.report.read import read_run
from train.report.tables import final_table
from train.text import command, duration

HOSTILE = "<script>alert(1)</script>&\"'\u2028<!--"
CHART = line_charts([Panel(HOSTILE, [Curve(HOSTILE, np.arange(3), np.arange(3.0))])], Axes(HOSTILE, HOSTILE))
PARTS = {
    "paragraph": paragraph(HOSTILE),
    "formula": formula(HOSTILE),
    "items": items(HOSTILE),
    "table": table([HOSTILE], [[HOSTILE]]),
    "section": section(HOSTILE, paragraph(HOSTILE)),
    "picture": picture(CHART, HOSTILE, HOSTILE),
    "folded": folded(HOSTILE, paragraph(HOSTILE)),
}


@pytest.mark.parametrize("part", PARTS)
def test_text_stays_text_and_a_page_loads_nothing(part):
    text = page(HOSTILE, PARTS[part])
    read = Reader(text)
    assert HOSTILE in read.text
    for tag, attrs in read.tags:
        assert not attrs.keys() & {"href", "src", "srcset", "onclick"} and tag not in ("link", "img", "iframe")
    scripts = [attrs["type"] for tag, attrs in read.tags if tag == "script"]
    assert scripts == (["application/json", "application/json", "module"] if part == "picture" else [])
    assert not re.search(r"url\(|@import", re.sub("<script.*?</script>", "", text, flags=re.S))


def test_the_policy_forbids_all_but_the_pages_own_script():
    (policy,) = (attrs["content"] for tag, attrs in Reader(page("t", PARTS["picture"])).tags if "http-equiv" in attrs)
    digest = re.fullmatch(
        r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-(.{44})'", policy
    )
    script = re.search('<script type="module">(.*?)</script>', page("t", PARTS["picture"]), re.S)
    assert digest and script
    assert digest[1] == base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert "<script" not in page("t", PARTS["table"]) and "script-src" not in page("t", PARTS["table"])


def test_a_chart_in_a_page_is_the_same_data_whatever_its_text():
    content = re.search('<figure.*?<script type="application/json">(.*?)</script>', PARTS["picture"], re.S)
    assert content and json.loads(content[1]) == json.loads(json.dumps(CHART | {"description": HOSTILE}))
    assert not re.search("[<\u2028\u2029]", content[1])


def test_markup_is_not_escaped_again():
    assert paragraph("a & ", Html("<b>b</b>")) == "<p>a &amp; <b>b</b></p>"
    assert markup(markup("<")) == "&lt;"


def test_columns_of_numbers_are_right_aligned_and_rows_complete():
    read = Reader(table(["run", "loss"], [["a", "1.5"], ["b", "-"]]))
    assert [attrs.get("class") for tag, attrs in read.tags if tag in ("th", "td")] == [None, "right"] * 3
    assert [attrs["data-label"] for tag, attrs in read.tags if tag == "td"] == ["run", "loss"] * 2
    with pytest.raises(ValueError):
        table(["a", "b"], [["1"]])


def test_one_run_that_was_never_watched_is_a_page_too(tmp_path):
    run = write_run(tmp_path / "a", "x", done=False)
    (run / "metrics.jsonl").write_text('{"step":1,"loss/train":2.0}\n')
    comparison = compare([run])
    assert [figure.key for figure in pictures(comparison.groups)] == ["loss"]
    text = as_html(comparison, refresh_s=7)
    assert "no verdict yet: unfinished" in text
    assert "Unfinished: x at step 1; this page loads itself again every 7 s." in text
    assert '<meta http-equiv="refresh" content="7">' in text and "refresh" not in as_html(comparison)


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
    read = Reader(text)
    assert all(f"because of {run.name}" in read.text for run in gather([sweep])[0])
    assert "with, seed 2" in read.text and "±" in read.text and "fresh: left out" in read.text
    assert len([tag for tag, _ in read.tags if tag == "figure"]) == 7
    assert len([tag for tag, _ in read.tags if tag == "figcaption"]) == 7
    assert [attrs["data-group"] for tag, attrs in read.tags if tag == "button"] == ["with", "without"]


def test_the_first_lines_are_the_finding_and_what_was_run(trained):
    _, run = trained
    text = Reader(as_html(compare([run]))).text
    summary = read_run(run).summary
    places = [text.index(part) for part in ("held-out loss", "Where the gradient goes", "Final figures", "Verdicts")]
    assert places == sorted(places)
    first = text[: places[1]]
    assert summary["command"] in first and summary["ended"] in first and "device cpu, " in first
    assert "computed in float32" in first and f"trained for {duration(summary['wall_s'])}" in first


def test_a_run_is_never_written_over(sweep, capsys, wording):
    with pytest.raises(SystemExit) as error:
        main(["compare", "--html", str(sweep / "with,seed=0" / "config.yaml"), str(sweep)])
    assert error.value.code == 2
    wording(capsys.readouterr().err.splitlines()[-1], "argument --html")
