"""The console, on terminals and elsewhere."""

import io
import math
from itertools import count

from runs import Terminal
from train.log.console import Console


def test_plain_progress_is_rare_and_ends_with_the_last():
    stream = io.StringIO()
    with Console(stream, clock=(100 + step * 0.1 for step in count()).__next__) as out:
        for step in range(0, 100):
            out.progress("with", step, 99, 2.5, 1234.4, 9.9 - step * 0.1)
    assert stream.getvalue().splitlines() == [
        "with:  step  0/99  loss 2.500  1234 tokens/s  10s left",
        "with:  step 50/99  loss 2.500  1234 tokens/s  5s left",
        "with:  step 99/99  loss 2.500  1234 tokens/s",
    ]


def test_plain_output_has_no_colour_and_no_wrapping():
    stream = io.StringIO()
    with Console(stream) as out:
        out.block("quickstart", [("device", "cpu"), ("why", "x" * 200)])
        out.note("[bold]as is[/bold]")
        out.warn("careful")
        out.table("results", ["variant", "loss"], [["with", "1.5"], ["without", "10.25"]])
    assert stream.getvalue() == (
        f"quickstart\n  device  cpu\n  why     {'x' * 200}\n[bold]as is[/bold]\nwarning: careful\n"
        "results\nvariant   loss\nwith       1.5\nwithout  10.25\n"
    )


def test_a_stream_that_cannot_write_greek():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    Console(stream).note("|δ_l|")
    assert raw.getvalue() == b"|?_l|\n"


def test_a_narrow_terminal_gets_the_table_in_pieces(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "linux")
    stream = Terminal()
    with Console(stream) as out:
        out.table("", ["name", "aaaaaa", "bbbbbb", "cccccc"], [["x", "1", "2", "3"]])
    lines = [line.rstrip() for line in stream.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()]
    assert lines == ["name  aaaaaa  bbbbbb", "x          1       2", "", "name  cccccc", "x          3"]


def test_a_terminal_is_redrawn_at_most_four_times_a_second(monkeypatch):
    monkeypatch.setenv("TERM", "linux")
    stream, drawn = Terminal(), []
    with Console(stream, clock=(100 + step / 32 for step in count()).__next__) as out:
        for step in range(0, 101):
            before = stream.tell()
            out.progress("with", step, 100, None, math.nan, math.inf)
            drawn += [step] if stream.tell() > before else []
    assert drawn == [*range(0, 100, 8), 100]


def test_the_bars_of_a_terminal_end_with_the_last_that_trains(monkeypatch):
    """Also when that one stops before its end: what is printed next follows them, and is not above them."""
    monkeypatch.setenv("TERM", "linux")
    stream = Terminal()
    out = Console(stream, clock=iter([0.0, 0.1, 0.2]).__next__)
    for variant, step in (("with", 5), ("without", 5), ("without", 10)):
        out.progress(variant, step, 10, 2.5)
    assert "\x1b[?25h" not in stream.getvalue()  # the cursor is shown again at the end
    out.stopped("with")
    bars = stream.getvalue()
    assert bars.endswith("\x1b[?25h") and "step 10/10" in bars
    out.note("next")
    assert stream.getvalue() == f"{bars}next\n"
