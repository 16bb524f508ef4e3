"""The canvas of every picture: matplotlib's file backends without windows or global state, and reproducible bytes."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SMALL = (5.0, 3.4)  # for TensorBoard, which shows pictures at three quarters of their size
DPI = 100
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


def plain(text: str, limit: int) -> str:
    """Returns text that matplotlib takes literally, on one line, without its middle where it is too long."""
    text = " ".join(text.split())
    if len(text) > limit:
        text = f"{text[: limit - limit // 2 - 1]}…{text[-(limit // 2) :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend leaves out what begins with _


def say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=14, color="0.25")
