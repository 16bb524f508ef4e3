"""Pages hold their content as text and load nothing."""

import re

import pytest

from pages import Reader
from train.report.page import Html, formula, items, markup, page, paragraph, picture, section, table

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
