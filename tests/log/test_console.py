"""The console, on terminals and elsewhere."""

import errno
import io
import time
from contextlib import closing
from itertools import count

import numpy as np
import pytest
from rich.console import Console as RichConsole

from runs import Terminal
from train.log.console import Console
from train.log.progress import PER_S


def test_plain_progress_is_rare_and_ends_with_the_last():
    stream = io.StringIO()
    with closing(Console(stream, clock=(100 + step * 0.1 for step in count()).__next__)) as out:
        out.plan(["with", "without"])
        out.compiling(["with"])
        for step in range(0, 100):
            out.progress("with", step, 99, 2.5, 1234.4, 9.9 - step * 0.1, np.array([1.672, 0.0]) if step else None)
    assert stream.getvalue().splitlines() == [
        "variant 1 of 2: compiling",
        "with:  step  0/99  loss 2.500  1234 tokens/s  10s left",
        "with:  step 50/99  loss 2.500  |δ_0|/|δ_L| 47  1234 tokens/s  5s left",
        "with:  step 99/99  loss 2.500  |δ_0|/|δ_L| 47  1234 tokens/s",
    ]


def test_plain_output_has_no_colour_and_no_wrapping():
    stream = io.StringIO()
    with closing(Console(stream)) as out:
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
    with closing(Console(stream)) as out:
        out.table("", ["name", "aaaaaa", "bbbbbb", "cccccc"], [["x", "1", "2", "3"]])
    lines = [line.rstrip() for line in stream.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()]
    assert lines == ["name  aaaaaa  bbbbbb", "x          1       2", "", "name  cccccc", "x          3"]


def test_a_column_of_text_wider_than_the_terminal_breaks_at_words(terminal):
    console, stream, _ = terminal(40)
    console.table("", ["run", "why"], [["with_a_skip", "no word of this is cut, and columns stay"], ["x", "-"]])
    lines = stream.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert lines == [
        "run          why",
        "with_a_skip  no word of this is cut, and",
        "             columns stay",
        "x            -",
    ]


@pytest.fixture
def terminal(monkeypatch):
    """Builds a console on a terminal of some columns, without colours; the time is `now[0]`."""
    consoles, now = [], [100.0]

    def build(columns: int = 80) -> tuple[Console, Terminal, list[float]]:
        for name, value in (("COLUMNS", str(columns)), ("NO_COLOR", "1"), ("TERM", "linux")):
            monkeypatch.setenv(name, value)
        consoles.append(Console(stream := Terminal(), clock=lambda: now[0]))
        return consoles[-1], stream, now

    yield build
    for console in consoles:
        console.close()


def shown(console: Console, columns: int) -> list[str]:
    """The lines at the bottom of a terminal, and that none is too long for it."""
    assert console._live is not None
    RichConsole(file=(out := io.StringIO()), width=columns).print(console._live.render())
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= columns
    return lines


FALLS = np.linspace(-8.0, -1.0, 8)  # from the loss (right) to the first block
FLAT = np.full(8, -1.0)


def train_three(console: Console) -> None:
    console.plan(["with", "without_skip", "without_skip_and_norm"])
    console.compiling(["with", "without_skip"])
    console.progress("with", 500, 500, 2.5124, 5000.0, 100.0, FLAT)
    console.progress("without_skip", 500, 500, 3.2371, 5000.0, 100.0, None)
    console.progress("without_skip_and_norm", 210, 500, 12.346, 4999.9, 85.0, FALLS)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            50,
            [
                "variant 3 of 3  step 210/500              1m 25s left",
                "variant                 loss  δ_0/δ_L  |δ_l|",
                "with                   2.512      1.0  ████████",
                "without_skip           3.237        -",
                "without_skip_and_norm  12.35  1.0e-07  ▁▂▃▄▅▆▇█",
                "|δ_l|, first block to loss (log): ▁ 1e-08, █ 0.1",
            ],
        ),
        (
            80,
            [
                "variant 3 of 3  step 210/500  5000 tokens/s  ━━━━━━━━━             1m 25s left",
                "variant                 loss  |δ_0|/|δ_L|  |δ_l|",
                "with                   2.512          1.0  ████████",
                "without_skip           3.237            -",
                "without_skip_and_norm  12.35      1.0e-07  ▁▂▃▄▅▆▇█",
                "|δ_l|, first block to loss (log): ▁ 1e-08, █ 0.1",
            ],
        ),
    ],
)
def test_a_terminal_shows_every_variant_with_its_gradient_by_depth(terminal, columns, expected):
    console, _, now = terminal(columns)
    train_three(console)
    now[0] += 85.0
    lines = shown(console, columns)
    assert lines[1:] == expected[1:]
    assert (
        lines[0].split() == expected[0].split()
        if columns == 50
        else lines[0].startswith("variant 3 of 3  step 210/500")
    )
    # What has passed is half of the whole.
    bar = lines[0].partition("5000 tokens/s")[2].partition("1m")[0]
    assert columns == 50 or 0.45 < bar.count("━") / (len(bar) - 4) < 0.55


def test_compilation_is_shown_with_its_seconds(terminal):
    console, _, now = terminal()
    console.plan(["a", "b", "c"])
    console.compiling(["a", "b"])
    now[0] += 12.0
    (header,) = shown(console, 80)
    assert header.startswith("variants 1-2 of 3: compiling ") and "━" in header and header.endswith(" 12s")
    for name in "ab":
        console.progress(name, 10, 10, 2.5)
    now[0] += 30.0
    console.compiling(["c"])
    now[0] += 5.0
    header, _, *rows = shown(console, 80)
    assert header.startswith("variant 3 of 3: compiling") and header.endswith(" 5s")
    assert [row.split() for row in rows] == [["a", "2.500", "-"], ["b", "2.500", "-"]]


def test_zero_and_what_is_not_finite_have_marks_of_their_own(terminal):
    console, _, _ = terminal()
    console.progress("a", 1, 2, 2.5, delta_log10=np.array([-np.inf, -3.0, 0.0]))
    console.progress("b", 1, 2, 2.5, delta_log10=np.array([np.nan, np.inf, -1.5]))
    _, _, a, b, scale = shown(console, 80)
    assert a.split()[1:] == ["2.500", "0", "0▁█"] and b.split()[1:] == ["2.500", "not", "finite", "!!▅"]
    assert scale.endswith(": ▁ 0.001, █ 1, 0 zero, ! not finite")


def test_a_harmless_slope_looks_harmless_and_a_deep_model_fits(terminal):
    console, _, _ = terminal()
    console.progress("a", 1, 2, 2.5, delta_log10=np.linspace(-0.4, 0.0, 101))
    *_, row, scale = shown(console, 80)
    # 24 of 101 depths over three decades and 8 levels: the uppermost begins at -3/14, after 10.7 of 23 steps.
    assert row.split()[-1] == "▇" * 11 + "█" * 13 and scale.endswith(": ▁ 0.001, █ 1")


def test_a_terminal_without_unicode_shows_the_ratio_alone(terminal, monkeypatch):
    monkeypatch.setattr(Terminal, "encoding", "ascii", raising=False)
    console, _, _ = terminal()
    console.progress("a", 1, 2, 2.5, delta_log10=FALLS)
    assert [line.split() for line in shown(console, 80)[1:]] == [
        ["variant", "loss", "|d_0|/|d_L|"],
        ["a", "2.500", "1.0e-07"],
    ]


def test_the_rows_stay_when_training_has_ended_and_the_rest_follows_them(terminal):
    console, stream, _ = terminal()
    train_three(console)
    console.stopped("without_skip_and_norm", 217)
    assert "\x1b[?25h" not in stream.getvalue()  # the cursor is shown again at the end
    console.close()
    *_, last = stream.getvalue().split("\x1b[2K")  # each redrawing clears the lines of the one before
    assert "variant 3 of 3" not in last and "left" not in last
    assert "2.512" in last and "without_skip_and_norm, stopped at step 217" in last and last.endswith("\x1b[?25h")
    console.note("next")
    assert stream.getvalue().endswith("\x1b[?25hnext\n")


def test_a_notice_is_the_last_of_the_live_lines_and_goes_with_them(terminal):
    console, stream, _ = terminal()
    assert not console.notice("before")
    train_three(console)
    assert console.notice("stopping") and shown(console, 80)[-1] == "stopping"
    console.close()
    assert "stopping" not in stream.getvalue().split("\x1b[2K")[-1]
    assert not console.notice("after")


def test_a_terminal_breaks_lines_at_words_and_no_command(terminal):
    console, stream, _ = terminal(20)
    console.note("a sentence of several words")
    console.finding(["The gradient arrives at 1/1000."])
    console.note("report: file:///tmp/runs/quickstart/report.html")
    console.command("python -m train tensorboard runs/quickstart", "TensorBoard: ")
    assert stream.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines() == [
        *("a sentence of", "  several words", ""),
        *("The gradient arrives", "  at 1/1000.", ""),
        *("report:", "  file:///tmp/runs/quickstart/report.html"),
        "TensorBoard: python -m train tensorboard runs/quickstart",
    ]


def test_a_terminal_that_was_closed_ends_nothing(terminal):
    console, stream, _ = terminal()
    train_three(console)

    def gone(text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    stream.write = gone
    console.progress("without_skip_and_norm", 220, 500, 2.0)
    time.sleep(1.2 / PER_S)  # the thread draws
    console.note("next")
    console.close()
