"""The report as a browser shows it: finding, charts, toggles, slider, dark, phone, no script; nothing is loaded."""

import numpy as np
import pytest
from PIL import Image

from runs import write_run, write_sweep
from train.report.charts import THEMES
from train.report.comparison import as_html, compare
from train.report.lines import Axes, Curve, Panel, line_charts
from train.report.page import page, picture

pytestmark = pytest.mark.browser

DRAWN = "await until(() => doc.documentElement.dataset.drawn);"
LOOK = (
    DRAWN
    + """
const lines = (group) => [...doc.querySelectorAll(`figure svg .mark-line.role-mark path`)]
  .filter((path) => path.getAttribute("stroke") === group).length;
const marks = [...doc.querySelectorAll("figure")].map((each) =>
  each.querySelector("canvas") ? "canvas" : each.querySelectorAll("svg .mark-line path").length);
const look = {
  drawn: doc.documentElement.dataset.drawn, marks, lead: doc.querySelector(".lead").innerText,
  loaded: page.performance.getEntriesByType("resource").map((each) => each.name),
  wide: doc.documentElement.scrollWidth, frame: page.innerWidth,
  charts: [...doc.querySelectorAll("figure")].map((each) => {
    const drawn = each.querySelector("svg, canvas").getBoundingClientRect();
    return [drawn.left - each.getBoundingClientRect().left, each.clientWidth - drawn.width];
  }),
  ground: page.getComputedStyle(doc.body).backgroundColor,
  ink: doc.querySelector("figure svg .role-axis-label text").getAttribute("fill"),
  top: doc.querySelector("figure").getBoundingClientRect().bottom,
  lines: [...doc.querySelectorAll("figcaption .whole, p .whole")].map((each) => each.getClientRects().length),
};
"""
)


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(as_html(compare([write_sweep(tmp_path / "sweep")])), encoding="utf-8")
    return path


def test_the_first_screen_and_every_chart(browser, report):
    shown = browser(report, LOOK + "return look;")
    look = shown.answer
    assert look["drawn"] == "7" and len(look["marks"]) == 7
    assert look["marks"].count("canvas") == 1 and all(each == "canvas" or each >= 2 for each in look["marks"])
    assert look["top"] < 900  # the first chart is on the first screen, below the finding
    assert not look["loaded"] and not shown.console
    colours = {tuple(colour) for colour in np.asarray(Image.open(shown.picture).convert("RGB")).reshape(-1, 3).tolist()}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in THEMES["light"]["range"]["category"][:2]} <= colours


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_no_width_overflows_and_every_chart_fits(browser, report, width):
    look = browser(report, LOOK + "return look;", width=width, height=3000).answer
    assert look["frame"] == width and look["wide"] <= width
    assert all(left >= 0 and 0 <= room < 60 for left, room in look["charts"]), look["charts"]  # nor lost in its place
    assert set(look["lines"]) == {1}  # no line ends within |δ_0|/|δ_L|


def test_dark_is_dark_in_the_charts_too(browser, report):
    shown = browser(report, LOOK + "return look;", dark=True)
    assert shown.answer["ground"] == "rgb(13, 17, 23)"
    assert shown.answer["ink"].lower() == THEMES["dark"]["axis"]["labelColor"]
    pixels = np.asarray(Image.open(shown.picture).convert("L"))
    assert np.median(pixels) < 40 and (pixels > 200).mean() < 0.1


def test_a_click_on_the_legend_leaves_a_run_out_of_all_charts_and_brings_it_back(browser, report):
    blue, orange = THEMES["light"]["range"]["category"][:2]
    answer = browser(
        report,
        LOOK
        + f"""
const count = () => [lines("{blue}"), lines("{orange}")];
const button = doc.querySelector('button[data-group="with"]'), counts = [count()];
for (let i = 0; i < 2; i++) {{
  button.click();
  await new Promise((done) => setTimeout(done, 500));
  counts.push(count());
}}
return {{ counts, pressed: button.getAttribute("aria-pressed") }};""",
    ).answer
    (before, others), (left_out, still), (after, _) = answer["counts"]
    assert before == others == still == after > 5 and left_out == 0 and answer["pressed"] == "true"


def test_the_slider_moves_through_the_steps(browser, report):
    answer = browser(
        report,
        LOOK
        + """
const slider = doc.querySelector("input[type=range]"), chart = slider.closest("figure"), seen = [];
for (const at of [slider.max, 0, 4]) {
  slider.value = at;
  slider.dispatchEvent(new page.Event("input"));
  await new Promise((done) => setTimeout(done, 500));
  const path = chart.querySelector("svg .mark-line path").getAttribute("d");
  seen.push([chart.querySelector(".role-column-header text, .role-header text, .role-title text").textContent, path]);
}
return seen;""",
    ).answer
    assert [title for title, _ in answer] == ["step 90", "step 0", "step 40"]
    assert len({path for _, path in answer}) > 1


def test_a_value_is_under_the_pointer(browser, report):
    answer = browser(
        report,
        LOOK
        + """
const points = doc.querySelector("figure svg").querySelectorAll(".mark-symbol.role-mark path");
const target = points[points.length - 1], box = target.getBoundingClientRect();
const at = { bubbles: true, clientX: box.left + box.width / 2 + 6, clientY: box.top + box.height / 2 + 6 };
for (const kind of ["pointerover", "pointermove", "mousemove"]) {
  target.dispatchEvent(new page[kind.startsWith("pointer") ? "PointerEvent" : "MouseEvent"](kind, at));
  await new Promise((done) => setTimeout(done, 300));
}
return doc.getElementById("vg-tooltip-element")?.innerText ?? "";""",
    ).answer
    assert "with" in answer and "|δ_l|" in answer and "95 % interval" in answer


def test_without_javascript_finding_and_tables_remain(browser, report):
    script = 'return [doc.body.innerText, doc.querySelectorAll("figure svg, figure canvas").length];'
    text, drawn = browser(report, script, javascript=False).answer
    assert "The charts need JavaScript" in text and "2.12 ± 0.25" in text and drawn == 0


def test_hostile_names_are_text_in_charts_and_run_nothing(browser, tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>\u2028'\"\\"
    chart = line_charts([Panel(hostile, [Curve(hostile, np.arange(3), np.arange(3.0))])], Axes("x", "y", own=True))
    path = tmp_path / "hostile.html"
    path.write_text(page(hostile, picture(chart, hostile, hostile)), encoding="utf-8")
    script = DRAWN + 'return [doc.images.length, doc.querySelector(".chart").textContent];'
    shown = browser(path, script)
    images, text = shown.answer
    assert images == 0 and text.count("<img src=x") == 2 and not shown.console


def test_one_run_that_was_never_watched(browser, tmp_path):
    run = write_run(tmp_path / "a", "x", done=False)
    (run / "metrics.jsonl").write_text('{"step":1,"loss/train":2.0}\n')
    path = tmp_path / "one.html"
    path.write_text(as_html(compare([run])), encoding="utf-8")
    shown = browser(path, DRAWN + 'return doc.querySelector("figure svg").textContent;')
    assert "training step" in shown.answer and "no finite values" in shown.answer and not shown.console
