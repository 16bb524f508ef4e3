"""Pictures of gradient flow. Only matplotlib's file backends: no window, no global state, the same bytes each time.

Colours: Okabe and Ito's set without its yellow, told apart by colour-blind readers, with a marker for each line so
that nothing rests on colour alone; viridis, perceptually uniform, for heatmaps.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SIZE = (8.0, 4.5)  # inches; at DPI, what a README shows without scaling
DPI = 100
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C564B", "#7F7F7F")
MARKERS = "osD^vPX<>*hp"
MAX_CELLS = 1000  # columns of a heatmap; more than there are pixels show nothing
NO_VALUE = "0.75"
LABEL = 28  # characters on a line of the legend
DELTA_UNIT = r"$\log_{10}\Vert\delta_\ell\Vert$"


def heatmap(
    steps: Int[np.ndarray, " S"],
    values: Float[np.ndarray, "S layers"],
    title: str,
    unit: str,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Figure:
    """Depth against training step, the embedding's output at the top; grey where there is no finite value.

    Args:
      unit: what the colours mean, such as `DELTA_UNIT`; matplotlib's math is understood here.
      vmin, vmax: fixed ends of the colour scale, so that pictures compare; from the data when None.
    """
    with _style():
        import matplotlib

        figure, axes = _figure(title, measured=False)
        # Where things stand is known here, and a layout that measures every text takes three times as long to draw.
        lines = axes.get_title(loc="left").count("\n") + 1
        figure.subplots_adjust(left=0.09, right=1.04, bottom=0.12, top=0.97 - 0.05 * lines)
        if not len(steps):
            steps, values = np.zeros(1, int), np.full((1, values.shape[1]), np.nan)
        if len(steps) > MAX_CELLS:
            shown = np.unique(np.linspace(0, len(steps) - 1, MAX_CELLS).round().astype(int))
            steps, values = steps[shown], values[shown]
        finite = np.ma.masked_invalid(np.asarray(values, float).T)
        low, high = _limits(finite.compressed(), vmin, vmax)
        colors = matplotlib.colormaps["viridis"].with_extremes(bad=NO_VALUE)
        depths = np.arange(values.shape[1] + 1) - 0.5
        mesh = axes.pcolormesh(_edges(steps), depths, finite, cmap=colors, vmin=low, vmax=high, rasterized=True)
        axes.invert_yaxis()
        _whole(axes.xaxis)
        _whole(axes.yaxis)
        axes.set_xlabel("training step")
        axes.set_ylabel(r"depth $\ell$  (top: the embedding's output)")
        beyond = {(True, False): "min", (False, True): "max", (True, True): "both"}
        outside = (bool((finite < low).any()), bool((finite > high).any()))
        if finite.count() or (vmin is not None and vmax is not None):
            figure.colorbar(mesh, ax=axes, label=unit, extend=beyond.get(outside, "neither"), pad=0.02)
        if not finite.count():
            _say(axes, "no finite values")
        elif finite.count() < finite.size:
            axes.set_xlabel("training step  (grey: zero, not finite, or not measured)")
    return figure


def delta_by_depth(
    series: Mapping[str, tuple[str, Float[np.ndarray, " layers"]]],
    title: str,
    without: Mapping[str, Float[np.ndarray, " layers"]] | None = None,
) -> Figure:
    """The gradient at the residual stream against depth, a line for each variant.

    Args:
      series: variant -> (label, log10 |δ_l| for l = 0 to L).
      without: variant -> log10 |δ_l| of the same weights with skip scale 0; dashed, in the variant's colour.
    """
    without = without or {}
    with _style():
        from matplotlib.ticker import FixedLocator, FuncFormatter

        figure, axes = _figure(title)
        lines, everything = [], []
        # The legend lists the variants as their lines lie at the embedding, where they differ most.
        order = sorted(series, key=lambda variant: _first_finite(series[variant][1]), reverse=True)
        for variant in order:
            label, values = series[variant]
            look = _look(list(series).index(variant), len(values))
            lines.append(_line(axes, np.arange(len(values)), values, label, **look))
            everything.append(values)
            if variant in without:
                values = without[variant]
                look |= {"linestyle": (0, (4, 2)), "linewidth": 1.2, "markerfacecolor": "white"}
                axes.plot(np.arange(len(values)), _finite(values), **look)
                everything.append(values)
        if without:
            lines.append(
                axes.plot([], [], color="0.35", linestyle=(0, (4, 2)), label="dashed: same weights,\nskips removed")[0]
            )
        _legend(axes, lines)
        finite = np.concatenate([_finite(values) for values in everything] or [np.zeros(0)])
        low, high = _limits(finite[np.isfinite(finite)], None, None)
        # Two decades at least, so that a flat line looks flat.
        margin = max(0.05 * (high - low), (2.0 - (high - low)) / 2)
        axes.set_ylim(low - margin, high + margin)
        _whole(axes.yaxis)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda power, _: f"$10^{{{power:.0f}}}$"))
        bottom, top = axes.get_ylim()
        if top - bottom < 7:
            powers = np.arange(np.floor(bottom), np.ceil(top))
            fine = np.add.outer(powers, np.log10(np.arange(2, 10))).ravel()
            axes.yaxis.set_minor_locator(FixedLocator(fine[(bottom <= fine) & (fine <= top)].tolist()))
        last = max((len(values) for values in everything), default=2) - 1
        axes.set_xlim(-0.04 * last - 0.02, 1.04 * last + 0.02)
        _whole(axes.xaxis)
        axes.set_xlabel(r"depth $\ell$  (0: the embedding's output, last: the final block's output)")
        axes.set_ylabel(r"$\Vert\delta_\ell\Vert$, norm of $\partial$loss/$\partial x_\ell$")
        if not np.isfinite(finite).any():
            _say(axes, "no finite values")
    return figure


def loss_curves(
    series: Mapping[str, tuple[str, Int[np.ndarray, " S"], Float[np.ndarray, " S"]]], title: str = "Loss"
) -> Figure:
    """Loss against step: variant -> (label, steps, loss in nats a token). Logarithmic when it spans a factor of 50."""
    with _style():
        figure, axes = _figure(title)
        lines = []
        for index, (label, steps, values) in enumerate(series.values()):
            bad = np.asarray(steps)[~np.isfinite(values)]
            notes = []
            if 0 < len(bad) < len(values):
                notes = [f"(not finite at step {bad[0]})"]
            lines.append(_line(axes, np.asarray(steps), values, label, *notes, **_look(index, len(values))))
        _legend(axes, lines)
        finite = np.concatenate([_finite(values) for _, _, values in series.values()] or [np.zeros(0)])
        finite = finite[np.isfinite(finite)]
        axes.set_xlabel("training step")
        _whole(axes.xaxis)
        axes.set_ylabel("loss (nats per token)")
        if len(finite) and finite.min() > 0 and finite.max() > 50 * finite.min():
            axes.set_yscale("log")
            axes.set_ylabel("loss (nats per token, logarithmic)")
        if not len(finite):
            _say(axes, "no finite values")
    return figure


def predicted_and_measured(
    series: Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]], title: str, xlabel: str, ylabel: str
) -> Figure:
    """Curves over 0, 1, 2 ...: label -> (predicted, measured), the one a line and the other markers. Logarithmic."""
    with _style():
        figure, axes = _figure(title)
        lines = []
        for index, (label, (predicted, measured)) in enumerate(series.items()):
            look = _look(index, len(measured))
            x = np.arange(len(measured))
            axes.plot(x, _finite(predicted), color=look["color"], linewidth=1.2)
            lines.append(_line(axes, x, measured, label, **(look | {"linestyle": "none"})))
        lines.append(axes.plot([], [], color="0.35", label="lines: predicted,\nmarkers: measured")[0])
        _legend(axes, lines)
        axes.set_yscale("log")
        _whole(axes.xaxis)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    return figure


def to_rgb(figure: Figure) -> UInt8[np.ndarray, "H W 3"]:
    """The picture's pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with _style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_svg(figure: Figure) -> str:
    return _encode(figure, "svg").decode()


def save(figure: Figure, path: str | Path) -> None:
    """Writes an .svg or .png; the same figure gives the same bytes."""
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"{path}: expected a name that ends in .svg or .png")
    path.write_bytes(_encode(figure, path.suffix[1:]))


def _encode(figure: Figure, kind: str) -> bytes:
    buffer = BytesIO()
    with _style():
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's matplotlibrc says."""
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


def _figure(title: str, measured: bool = True) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(SIZE, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08) if measured else None)
    axes = figure.add_subplot()
    axes.set_title("\n".join(textwrap.wrap(_text(title, 160), 80)), loc="left")
    return figure, axes


def _look(index: int, points: int) -> dict:
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 5,
        "markevery": max(1, points // 12),
        "linewidth": 1.8,
    }


def _line(axes: Axes, x: np.ndarray, values: np.ndarray, label: str, *notes: str, **look):
    y = _finite(values)
    if not np.isfinite(y).any():
        notes = ("(no finite values)",)
    axes.grid(True, axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes.plot(x, y, label="\n".join([*_folded(label), *notes]), **look)[0]


def _folded(label: str) -> list[str]:
    """A legend entry, on two lines when it is long: `with_rope,optimizer.lr=0.001,` and `seed=0`."""
    label = " ".join(label.split())
    if len(label) <= LABEL:
        return [_text(label, LABEL)]
    places = (label.rfind(mark, 0, LABEL) + 1 for mark in ", _/")
    at = next((place for place in places if place > LABEL // 4), LABEL)
    return [_text(label[:at], LABEL), _text(label[at:], LABEL)]


def _whole(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def _legend(axes: Axes, lines: Sequence) -> None:
    if lines:
        labels = [line.get_label() for line in lines]
        size = min(9.0, 9.0 * 22 / sum(label.count("\n") + 1.3 for label in labels))
        axes.legend(lines, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, fontsize=size)


def _text(text: str, limit: int) -> str:
    """Text that matplotlib takes literally, on one line, its middle left out where it is too long."""
    text = " ".join(text.split())
    if len(text) > limit:
        text = f"{text[: limit - limit // 2 - 1]}…{text[-(limit // 2) :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend leaves out what begins with _


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=14, color="0.25")


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    return np.where(np.isfinite(values), values, np.nan)


def _first_finite(values: np.ndarray) -> float:
    finite = _finite(values)
    return next((float(value) for value in finite if np.isfinite(value)), -np.inf)


def _limits(finite: np.ndarray, low: float | None, high: float | None) -> tuple[float, float]:
    """The ends of a scale, given or taken from the data, apart from each other."""
    bottom = low if low is not None else float(finite.min()) if finite.size else 0.0 if high is None else high - 1
    top = high if high is not None else float(finite.max()) if finite.size else bottom + 1
    if bottom < top:
        return bottom, top
    if low is None and high is None:
        return bottom - 0.5, top + 0.5
    return (bottom, bottom + 1) if low is not None else (top - 1, top)


def _edges(steps: np.ndarray) -> np.ndarray:
    """Cell borders half-way between the steps; the outer cells are as wide as their neighbours."""
    steps = np.asarray(steps, float)
    if len(steps) < 2:
        return np.array([steps[0] - 0.5, steps[0] + 0.5]) if len(steps) else np.array([0.0])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])
