"""The canvas of every picture: matplotlib's file backends without windows or global state, and reproducible bytes.

Colours: Okabe and Ito's set without its yellow, told apart by colour-blind readers, with a marker for each line so
that nothing rests on colour alone.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SMALL = (5.0, 3.4)  # for TensorBoard, which shows pictures at three quarters of their size
DPI = 100
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C564B", "#7F7F7F")
MARKERS = "osD^vPX<>*hp"
LABEL = 28  # characters on a line of the legend


def to_rgb(figure: Figure) -> UInt8[np.ndarray, "H W 3"]:
    """The picture's pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with styled():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_svg(figure: Figure) -> str:
    return _encoded(figure, "svg", {"Date": None}).decode()


def save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG; the same figure gives the same bytes."""
    Path(path).write_bytes(_encoded(figure, "png", {"Software": None}))


def _encoded(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Applies matplotlib's defaults and ours, independent of the user's matplotlibrc."""
    from matplotlib import style

    ours = {
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "font.size": 10,
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "legend.frameon": False,
        "svg.hashsalt": "deltaflow",
    }
    with style.context(["default", ours]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def wrapped(title: str, letters: int) -> str:
    """Returns a title in at most two lines, without its middle where it is too long."""
    return "\n".join(textwrap.wrap(plain(title, 2 * letters), letters))


def look(index: int, points: int) -> dict[str, Any]:
    """Returns colour and marker of the variant `index`, the same on every picture."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 5,
        "markevery": max(1, points // 12),
        "linewidth": 1.8,
    }


def ruled(axes: Axes) -> None:
    """Draws faint horizontal lines behind everything."""
    axes.grid(True, axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def folded(label: str) -> list[str]:
    """Returns the lines of a legend entry, two for a long one: `with_rope,optimizer.lr=0.001,` and `seed=0`."""
    label = " ".join(label.split())
    if len(label) <= LABEL:
        return [plain(label, LABEL)]
    places = (label.rfind(mark, 0, LABEL) + 1 for mark in ", _/")
    at = next((place for place in places if place > LABEL // 4), LABEL)
    return [plain(label[:at], LABEL), plain(label[at:], LABEL)]


def whole(axis: Axis, most: int = 9) -> None:
    """Sets ticks at whole numbers only, about `most` of them."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def powers_of_ten(axes: Axes, values: Sequence[np.ndarray]) -> None:
    """Sets a y axis for log10 values, labelled 10^k and at least two decades high, so that a flat line looks flat."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    numbers = np.concatenate([gaps(each) for each in values] or [np.zeros(0)])
    low, high = (np.nanmin(numbers), np.nanmax(numbers)) if np.isfinite(numbers).any() else (0.0, 1.0)
    margin = max(0.05 * (high - low), (2.0 - (high - low)) / 2)
    axes.set_ylim(low - margin, high + margin)
    whole(axes.yaxis)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda power, _: f"$10^{{{power:.0f}}}$"))
    bottom, top = axes.get_ylim()
    if top - bottom < 7:
        powers = np.arange(np.floor(bottom), np.ceil(top))
        fine = np.add.outer(powers, np.log10(np.arange(2, 10))).ravel()
        axes.yaxis.set_minor_locator(FixedLocator(fine[(bottom <= fine) & (fine <= top)].tolist()))


def plain(text: str, limit: int) -> str:
    """Returns text that matplotlib takes literally, on one line, without its middle where it is too long."""
    text = " ".join(text.split())
    if len(text) > limit:
        text = f"{text[: limit - limit // 2 - 1]}…{text[-(limit // 2) :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend leaves out what begins with _


def say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=14, color="0.25")


def gaps(values: np.ndarray) -> np.ndarray:
    """Returns values with NaN, which matplotlib leaves out, in place of infinities."""
    values = np.asarray(values, float)
    return np.where(np.isfinite(values), values, np.nan)
