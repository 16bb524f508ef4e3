"""Pages hold what they are given, as text, and ask nothing of anyone."""

import re

import pytest

from pages import Reader
from train.report.html import (
    Html,
    code,
    folded,
    formula,
    items,
    markup,
    page,
    paragraph,
    picture,
    section,
    side_by_side,
    table,
)

HOSTILE = "<script>alert(1)</script>&\"'"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


@pytest.mark.parametrize(
    "part",
    [
        paragraph(HOSTILE),
        code(HOSTILE),
        formula(HOSTILE),
        folded(HOSTILE, paragraph(HOSTILE)),
        items(HOSTILE),
        table([HOSTILE], [[HOSTILE]]),
        section(HOSTILE, paragraph(HOSTILE)),
        picture(SVG, HOSTILE, HOSTILE),
    ],
)
def test_text_stays_text(part):
    read = Reader(page(HOSTILE, part))
    assert "script" not in {tag for tag, _ in read.tags}
    assert HOSTILE in read.text


def test_markup_is_not_escaped_again():
    assert paragraph("a & ", code("b")) == "<p>a &amp; <code>b</code></p>"
    assert markup(markup("<")) == "&lt;"
    assert isinstance(markup("x"), Html)


def test_numbers_are_right_aligned():
    read = Reader(table(["run", "loss"], [["a", "1.5"], ["b", "-"]]))
    assert [attrs.get("class") for tag, attrs in read.tags if tag in ("th", "td")] == [None, "right"] * 3


def test_a_page_loads_nothing():
    text = page("t", side_by_side(picture(SVG, "a"), picture(SVG, "b")), table(["a"], [["1"]]))
    for _, attrs in Reader(text).tags:
        assert not attrs.keys() & {"href", "srcset", "onclick"}
        assert attrs.get("src", "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text


def test_an_uneven_row_is_a_mistake():
    with pytest.raises(ValueError):
        table(["a", "b"], [["1"]])
