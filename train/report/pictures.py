"""The pictures of a comparison, each with instructions for reading it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import charts
from .charts import Curve, Field, Guide, Panel
from .groups import Group, depths_over_seeds, estimate, over_seeds
from .tables import FIGURES, loss_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_GROUPS = 8  # with a colour and a heatmap
_FLOORS = {"floor": "best possible", "floor_unigram": "token frequencies only"}
_FLOORS |= {"floor_zero": "always predicting 0"}

Depths = tuple[np.ndarray, np.ndarray]  # steps [S], and values [n, S, layers] of n seeds


@dataclass(frozen=True)
class Picture:
    """`key`: the name of a file. `alt`: the text in place of the picture."""

    key: str
    title: str
    caption: str
    alt: str
    figure: Figure


def pictures(groups: Sequence[Group]) -> Iterator[Picture]:
    """Yields every picture that there is data for, in the order in which they explain each other."""
    colours = picked(groups)
    delta = {group.name: depths_over_seeds(group, "delta/norm_log10") for group in groups}
    update = {group.name: depths_over_seeds(group, "update/ratio_log10") for group in groups}
    notes = ""
    if any(len(group.counted) > 1 for group in groups):
        notes += " Lines are means over seeds, bands their 95 % intervals (Student's t)."
    if grey := sum(index is None for index in colours.values()):
        notes += (
            f" Of {len(groups)} runs {MAX_GROUPS} have a colour: the best and the worst held-out loss and others "
            f"evenly between; the other {grey} are grey, and all are in the tables."
        )
    yield Picture(
        "loss",
        "Loss",
        "The loss against the number of optimizer steps: lower is better. Left on the batches that are trained on, "
        "right on data that is never trained on; where the right one is far above the left one, the model remembers "
        "instead of learning." + notes,
        "Loss curves, training and held out",
        _losses(groups, colours),
    )
    if any(len(steps) for steps, _ in delta.values()):
        yield Picture(
            "delta",
            "Gradient by depth",
            "|δ_l|, the norm of the gradient of the loss at the residual stream entering block l, on a logarithmic "
            "scale. The gradient is computed from right (the output) to left (the embedding): a level line is a "
            "gradient that arrives as it left, a line that falls to the left one that vanishes, one that rises to the "
            "left one that explodes." + notes,
            "Norm of the gradient at every depth at three steps",
            charts.line_charts(
                _by_depth(delta, colours, (0.0, 0.5, 1.0)),
                "depth l  (0: embedding, last: output)",
                r"gradient norm $\Vert\delta_\ell\Vert$",
                powers=True,
            ),
        )
        blocks = np.arange(max(2, *(values.shape[2] for _, values in delta.values())))
        yield Picture(
            "chain",
            "The chain rule at work: gains multiplied up",
            "How much of the gradient is left after passing back through 1, 2, 3 ... blocks, starting at the loss: the "
            "product of the gains |δ_l| / |δ_(l+1)|. In an ideal chain every block multiplies by the same number: with "
            "1 nothing is lost (dotted), with 0.9 a third is left after 10 blocks and 1/38,000 after 100 "
            "(dash-dotted). The step from one mark to the next is what one block does." + notes,
            "Running product of the gains from the loss downwards against ideal chains",
            charts.line_charts(
                _by_depth(delta, colours, (0.0, 1.0), gain_product),
                "blocks passed, from the loss down",
                r"what is left: $\Vert\delta_\ell\Vert\,/\,\Vert\delta_L\Vert$",
                [
                    Guide("ideal: gain 1 a block", blocks, np.zeros(len(blocks))),
                    Guide("ideal: gain 0.9 a block", blocks, np.log10(0.9) * blocks),
                ],
                powers=True,
            ),
        )
        yield _heat(groups, delta, colours)
    if any(len(steps) for steps, _ in update.values()):
        yield Picture(
            "update",
            "How much each block learns",
            "The size of a block's update over the size of its weights, |ΔW| / |W|, as the optimizer makes it. Adam "
            "and its kin normalize the gradient's size, so a block with a tiny gradient may change as much as the "
            "others: this chart shows how much each block changes, those above how much gradient it received." + notes,
            "Ratio of update to weight by block at three steps",
            charts.line_charts(
                _by_depth(update, colours, (0.0, 0.5, 1.0)),
                "block (0: next to the embedding)",
                r"update / weight: $\Vert\Delta W\Vert\,/\,\Vert W\Vert$",
                powers=True,
            ),
        )


def picked(groups: Sequence[Group]) -> dict[str, int | None]:
    """Returns group -> index of its colour, in the order given; None for a grey one.

    The coloured of more than `MAX_GROUPS` are the best and the worst by held-out loss, and others evenly between them.
    """

    def final_loss(group: Group) -> float:
        """The mean final held-out loss, or training loss; infinity, which sorts last, where neither is finite."""
        for title in ("loss/val", "loss/train"):
            values = [value for run in group.counted if (value := FIGURES[title](run)) is not None]
            if values:
                mean = float(np.mean(values))
                return mean if np.isfinite(mean) else np.inf
        return np.inf

    ranked = sorted(groups, key=final_loss)
    places = np.linspace(0, len(groups) - 1, min(len(groups), MAX_GROUPS)).round().astype(int)
    chosen = {ranked[place].name for place in places}
    colours = iter(range(MAX_GROUPS))
    return {group.name: next(colours) if group.name in chosen else None for group in groups}


def _losses(groups: Sequence[Group], colours: dict[str, int | None]) -> Figure:
    """Draws the losses, and the reference losses that are the same for all runs."""
    panels = []
    for tag, title in (("loss/train", "on training batches (loss/train)"), ("loss/val", "held out (loss/val)")):
        series = [(group.name, *over_seeds(group, tag)) for group in groups]
        curves = [Curve(name, at, *estimate(values), colours[name]) for name, at, values in series if len(at)]
        panels.append(Panel(title, curves))
    runs = [run for group in groups for run in group.runs]
    last = max((int(curve.x[-1]) for panel in panels for curve in panel.curves), default=1)
    guides = []
    for tag in sorted({tag for run in runs for tag in run.steps if tag.startswith("loss/floor")}):
        values, name = {run.last(tag) for run in runs}, tag.removeprefix("loss/")
        if len(values) == 1 and (value := values.pop()) is not None and np.isfinite(value):
            label = f"{_FLOORS.get(name, name)}: {value:.3f}"
            guides.append(Guide(label, np.array([0, last]), np.full(2, value)))
    unit = loss_unit(groups)
    return charts.line_charts(panels, "training step", f"loss ({unit})" if unit else "loss", guides)


def gain_product(delta_log10: np.ndarray) -> np.ndarray:
    """Returns log10 of the product of the gains of the last k blocks, k = 0 to L: log10 |δ_(L-k)| - log10 |δ_L|.

    delta_log10: [..., L+1].
    """
    with np.errstate(invalid="ignore"):
        return (delta_log10 - delta_log10[..., -1:])[..., ::-1]


def _heat(groups: Sequence[Group], delta: dict[str, Depths], colours: dict[str, int | None]) -> Picture:
    chosen = [group for group in groups if colours[group.name] is not None]
    without = {group.name: depths_over_seeds(group, "delta_without/norm_log10") for group in chosen}
    paired = any(len(steps) for steps, _ in without.values())
    fields = []
    for group in chosen:
        steps, values = delta[group.name]
        fields.append(Field(group.name + ": as trained" * paired, steps, estimate(values).mean, "not watched"))
        if paired:
            title, missing = "same weights, skips removed", "not measured (watch.counterfactual is off,\nor no skip)"
            steps, values = without[group.name]
            fields.append(Field(f"{group.name}: {title}", steps, estimate(values).mean, missing))
    low, high = charts.DELTA_SCALE
    caption = (
        "The same gradient at every watched step: time runs to the right, depth downwards from the embedding, and the "
        f"colour is log10 |δ_l| from {low:g} (dark) to {high:g} (bright), the same scale on every picture of this "
        "project; beyond it the colour stays (pointed end of the bar). Grey is zero, not finite or not measured."
    )
    if paired:
        caption += (
            " Right: the same weights and batches with the skips taken out for the measurement (skip scale 0), so that "
            "the difference is what the skips do for the gradient; of a run without skips both are the same."
        )
    if any(len(group.counted) > 1 for group in chosen):
        caption += " Means over seeds of log10."
    if len(chosen) < len(groups):
        caption += f" {len(chosen)} of {len(groups)} runs are shown, those that have a colour above."
    alt = "Heatmaps of the gradient by depth and step"
    return Picture("heat", "Gradient by depth and step", caption, alt, charts.heatmaps(fields))


def _by_depth(
    depths: dict[str, Depths],
    colours: dict[str, int | None],
    parts: Sequence[float],
    change: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> list[Panel]:
    """Returns a panel at each part of the way from the first watched step to the last; `change` maps [n, layers]."""
    names = {0.0: "first watched", 0.5: "half-way", 1.0: "last watched"}
    watched = {name: (steps, values) for name, (steps, values) in depths.items() if len(steps)}
    panels: dict[tuple[int, ...], Panel] = {}
    for part in parts:
        at = {name: int(part * (len(steps) - 1) + 0.5) for name, (steps, _) in watched.items()}
        steps = {int(watched[name][0][index]) for name, index in at.items()}
        where = f"step {min(steps)}" if len(steps) == 1 else f"steps {min(steps)} to {max(steps)}"
        title = f"{names[part]} ({where})" if steps != {0} else "step 0: the initial weights"
        curves = []
        for name, index in at.items():
            values = change(watched[name][1][:, index])
            curves.append(Curve(name, np.arange(values.shape[1]), *estimate(values), colours[name]))
        panels.setdefault(tuple(at.values()), Panel(title, curves))
    return list(panels.values())
