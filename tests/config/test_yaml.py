"""YAML 1.2 scalars, and the places of values."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config.yaml import BAD, Place, clean, float_text, read, show

QUIET = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def value(text: str) -> Any:
    node = read(text, Place("a", 1), problems := [])
    assert problems == []
    return node.plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1.5e+2", 150.0),
        ("010", 10),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'3e-4'", "3e-4"),
        ('"true"', "true"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("[1, [2.0, x], {a: b}]", [1, [2.0, "x"], {"a": "b"}]),
        ('{"a":1}', {"a": 1}),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_scalars_follow_yaml_1_2(text, expected):
    found = value(text)
    assert found == expected and type(found) is type(expected)


def test_nan_is_a_float():
    assert math.isnan(value(".nan"))


@given(st.floats(allow_nan=False))
@QUIET
def test_a_float_written_reads_back(x):
    assert value(float_text(x)) == x


def test_a_place_without_lines_says_none(wording):
    read("[{a: 1, a: 2}, *x]", Place("command line"), problems := [], "key")
    for problem, key in zip(problems, ("key[0].a", "key[1]"), strict=True):
        wording(problem, f"command line: {key}")


def test_a_refused_value_is_marked_and_the_rest_is_read():
    node = read("a: [1, *x]\nb: {c: !t 1, d: 2}\n", Place("a", 1), problems := [])
    assert len(problems) == 2
    assert node.value["a"].value is BAD and node.value["b"].value["c"].value is BAD
    assert node.value["b"].value["d"].plain == 2


def test_places_are_the_lines_of_keys_and_items():
    node = read("# first\na:\n  b: >\n    folded\n  c:\n    - 1\n    - [2,\n       3]\n", Place("a", 1), [])
    inner = node.value["a"].value
    assert [inner["b"].place.line, inner["c"].place.line] == [3, 5]
    assert [item.place.line for item in inner["c"].value] == [6, 7]
    assert inner["c"].value[1].value[1].place.line == 8 and inner["c"].value[1].value[1].path == "a.c[1][1]"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (0, "0"),
        (1.0, "1.0"),
        (1e-6, "1e-6"),
        (float("-inf"), "-.inf"),
        ("a'b", '"a\'b"'),
        ("a\nb\x1b", "'a\\nb\\x1b'"),
        ([1, None, "x"], "[1, null, 'x']"),
        ({"a": 1}, "a mapping"),
    ],
)
def test_values_are_shown_on_one_line(value, expected):
    assert show(value) == expected


def test_long_and_unprintable_text_is_cut_and_escaped():
    assert clean("a" * 50 + "b" * 50 + "c", 40) == "a" * 27 + "..." + "b" * 9 + "c"
    assert clean("a\ud800\u2028\n") == "a\\ud800\\u2028\\n"


def test_nesting_has_a_limit(wording):
    read("[" * 33 + "]" * 33, Place("a", 1), problems := [])
    assert problems == []
    read("[" * 34 + "]" * 34, Place("a", 1), problems)
    (problem,) = problems
    wording(problem, "a:1")
