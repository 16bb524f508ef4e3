"""One chart of lines a picture: the gradient by depth, and the loss by step, of a few variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from . import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    with canvas.styled():
        figure, axes = canvas.single(title)
        lines, everything = [], []
        # The legend lists the variants as their lines lie at the embedding, where they differ most.
        order = sorted(series, key=lambda variant: _first_finite(series[variant][1]), reverse=True)
        for variant in order:
            label, values = series[variant]
            look = canvas.look(list(series).index(variant), len(values))
            lines.append(canvas.line(axes, np.arange(len(values)), values, label, **look))
            everything.append(values)
            if variant in without:
                values = without[variant]
                look |= {"linestyle": (0, (4, 2)), "linewidth": 1.2, "markerfacecolor": "white"}
                axes.plot(np.arange(len(values)), canvas.gaps(values), **look)
                everything.append(values)
        if without:
            lines.append(
                axes.plot([], [], color="0.35", linestyle=(0, (4, 2)), label="dashed: same weights,\nskips removed")[0]
            )
        canvas.legend(axes, lines)
        known = canvas.powers_of_ten(axes, everything)
        last = max((len(values) for values in everything), default=2) - 1
        axes.set_xlim(-0.04 * last - 0.02, 1.04 * last + 0.02)
        canvas.whole(axes.xaxis)
        axes.set_xlabel(r"depth $\ell$  (0: the embedding's output, last: the final block's output)")
        axes.set_ylabel(r"$\Vert\delta_\ell\Vert$, norm of $\partial$loss/$\partial x_\ell$")
        if not known:
            canvas.say(axes, "no finite values")
    return figure


def loss_curves(
    series: Mapping[str, tuple[str, Int[np.ndarray, " S"], Float[np.ndarray, " S"]]], title: str = "Loss"
) -> Figure:
    """Loss against step: variant -> (label, steps, loss in nats a token). Logarithmic when it spans a factor of 50."""
    with canvas.styled():
        figure, axes = canvas.single(title)
        lines = []
        for index, (label, steps, values) in enumerate(series.values()):
            bad = np.asarray(steps)[~np.isfinite(values)]
            notes = []
            if 0 < len(bad) < len(values):
                notes = [f"(not finite at step {bad[0]})"]
            look = canvas.look(index, len(values))
            lines.append(canvas.line(axes, np.asarray(steps), values, label, *notes, **look))
        canvas.legend(axes, lines)
        axes.set_xlabel("training step")
        canvas.whole(axes.xaxis)
        _loss_axis(axes, [values for _, _, values in series.values()], "loss (nats per token)")
    return figure


def loss_along(at: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"], title: str) -> Figure:
    """The loss along a line through the weights, which are at 0. Logarithmic when it spans a factor of 50."""
    with canvas.styled():
        figure, axes = canvas.single(title, size=canvas.SMALL)
        axes.axvline(0, color="0.35", linestyle=(0, (1, 1.5)), linewidth=1.3)
        canvas.line(axes, at, loss, "loss", **canvas.look(0, len(at)))
        axes.set_xlabel("times this direction  (0: the weights as they are)")
        _loss_axis(axes, [loss], "loss of one batch")
    return figure


def predicted_and_measured(
    series: Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]], title: str, xlabel: str, ylabel: str
) -> Figure:
    """Curves over 0, 1, 2 ...: label -> (predicted, measured), the one a line and the other markers. Logarithmic."""
    with canvas.styled():
        figure, axes = canvas.single(title)
        lines = []
        for index, (label, (predicted, measured)) in enumerate(series.items()):
            look = canvas.look(index, len(measured))
            x = np.arange(len(measured))
            axes.plot(x, canvas.gaps(predicted), color=look["color"], linewidth=1.2)
            lines.append(canvas.line(axes, x, measured, label, **(look | {"linestyle": "none"})))
        lines.append(axes.plot([], [], color="0.35", label="lines: predicted,\nmarkers: measured")[0])
        canvas.legend(axes, lines)
        axes.set_yscale("log")
        canvas.whole(axes.xaxis)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    return figure


def _loss_axis(axes: Axes, lines: Sequence[np.ndarray], label: str) -> None:
    known = np.concatenate([np.asarray(values, float) for values in lines] or [np.zeros(0)])
    known = known[np.isfinite(known)]
    axes.set_ylabel(label)
    if spans_decades(known):
        axes.set_yscale("log")
        axes.set_ylabel(f"{label}, logarithmic")
    if not len(known):
        canvas.say(axes, "no finite values")


def spans_decades(finite: Float[np.ndarray, " N"]) -> bool:
    """Whether a logarithmic axis shows more of these values: all above 0, the largest 50 times the smallest."""
    return bool(len(finite) and finite.min() > 0 and finite.max() > 50 * finite.min())


def _first_finite(values: np.ndarray) -> float:
    return next((float(value) for value in values if np.isfinite(value)), -np.inf)
