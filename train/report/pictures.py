"""The pictures of a comparison, each with instructions for reading it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from .charts import Chart, evenly
from .groups import SEEDS, Group, depths_over_seeds, estimate, over_seeds
from .heatmaps import DELTA_SCALE, Field, heatmaps
from .lines import Axes, Curve, Guide, Panel, line_charts
from .tables import FIGURES, loss_unit

MAX_GROUPS = 8  # with a colour and a heatmap
MAX_GREY = 100  # drawn without a colour
MAX_FRAMES = 60  # steps of a slider
_FLOORS = {"floor": "ideal predictor", "floor_unigram": "token frequencies only"}
_FLOORS |= {"floor_zero": "always predicting 0"}

Depths = tuple[np.ndarray, np.ndarray]  # steps [S], and values [n, S, layers] of n seeds
DEPTH = "depth l  (0: embedding, last: output)"
_BLOCK = "block  (0: next to the embedding)"


@dataclass(frozen=True)
class Picture:
    """`key`: the name of a file. `alt`: the text in place of the picture."""

    key: str
    title: str
    caption: str
    alt: str
    chart: Chart


def pictures(groups: Sequence[Group]) -> Iterator[Picture]:
    """Yields every picture that there is data for, in the order in which they explain each other."""
    colours, everyone, count = group_colours(groups), groups, len(groups)
    groups = [group for group in groups if group.name in colours]
    delta = {group.name: depths_over_seeds(group, "delta/norm_log10") for group in groups}
    update = {group.name: depths_over_seeds(group, "update/ratio_log10") for group in groups}
    watched = any(len(steps) for name, (steps, _) in delta.items() if colours[name] is not None)
    notes = ""
    if any(len(group.counted) > 1 for group in groups):
        notes += " Lines are means over seeds, bands their 95 % intervals (Student's t)."
    if grey := sum(index is None for index in colours.values()):
        notes += (
            f" Of {count} runs {MAX_GROUPS} have a colour: the best and the worst held-out loss and others evenly "
            f"between; {'the other ' if grey + MAX_GROUPS == count else ''}{grey} are grey, and all are in the tables."
        )
    if watched:
        yield Picture(
            "delta",
            "Where the gradient goes",
            "|δ_l|, the size of the gradient of the loss at the input of block l, on a logarithmic scale. The gradient "
            "is computed from right (the output) to left (the embedding): a level line is a gradient that arrives as "
            "it left, a line that falls to the left one that vanishes, one that rises to the left one that grows."
            + notes,
            "Norm of the gradient at every depth, at the start and at the end",
            line_charts(_by_depth(delta, colours, (0.0, 1.0)), Axes(DEPTH, "|δ_l|", powers=True)),
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
    yield from sweeps(everyone)
    if watched:
        yield Picture(
            "steps",
            "Gradient by depth, step by step",
            "Drag the slider to follow |δ_l| through training. A run without a measurement at that step is not drawn"
            + (", nor is a grey one." if grey else "."),
            "Norm of the gradient at every depth at the last watched step",
            line_charts(_frames(delta, colours), Axes(DEPTH, "|δ_l|", powers=True, slider=True)),
        )
        blocks = np.arange(max(2, *(values.shape[2] for _, values in delta.values())))
        yield Picture(
            "gain",
            "Gain of each block, step by step",
            "The gain |δ_l| / |δ_(l+1)| is what passing back through block l does to the size of the gradient: 1 "
            "leaves it as it is. The gains of all blocks multiply.",
            "Gain of every block at the last watched step",
            line_charts(
                _frames(delta, colours, gains_log10),
                Axes("block l", "gain |δ_l| / |δ_l+1|", powers=True, slider=True),
                [Guide("gain 1", blocks[:-1], np.zeros(len(blocks) - 1))],
            ),
        )
        yield Picture(
            "chain",
            "The chain rule at work: gains multiplied up",
            "How much of the gradient is left after passing back through 1, 2, 3 ... blocks, starting at the loss: the "
            "product of the gains |δ_l| / |δ_(l+1)|. In an ideal chain every block multiplies by the same number: with "
            "1 nothing is lost (dotted), with 0.9 a third is left after 10 blocks and 1/38,000 after 100 "
            "(dash-dotted). The step from one mark to the next is what one block does." + notes,
            "Running product of the gains from the loss downwards against ideal chains",
            line_charts(
                _by_depth(delta, colours, (0.0, 1.0), gain_product),
                Axes("blocks passed, from the loss down", "what is left: |δ_l| / |δ_L|", powers=True),
                [
                    Guide("ideal: gain 1 a block", blocks, np.zeros(len(blocks))),
                    Guide("ideal: gain 0.9 a block", blocks, np.log10(0.9) * blocks),
                ],
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
            line_charts(
                _by_depth(update, colours, (0.0, 0.5, 1.0)), Axes(_BLOCK, "update / weight: |ΔW| / |W|", powers=True)
            ),
        )


def group_colours(groups: Sequence[Group]) -> dict[str, int | None]:
    """Returns group -> index of its colour, in the order given; None for a grey one.

    Of more than `MAX_GROUPS` the best and the worst by held-out loss have one, and others evenly between them; of the
    rest `MAX_GREY` are drawn, chosen in the same way.
    """

    def final_loss(group: Group) -> float:
        """The mean final loss; infinity, which sorts last, where it is not finite."""
        mean = float(np.mean(final_losses(group) or [np.inf]))
        return mean if np.isfinite(mean) else np.inf

    ranked = [group.name for group in sorted(groups, key=final_loss)]
    chosen = {ranked[place] for place in evenly(len(ranked), MAX_GROUPS)}
    others = [name for name in ranked if name not in chosen]
    grey = {others[place] for place in evenly(len(others), MAX_GREY)}
    colours = iter(range(MAX_GROUPS))
    shown = [group.name for group in groups if group.name in chosen | grey]
    return {name: next(colours) if name in chosen else None for name in shown}


def final_losses(group: Group) -> list[float]:
    """The final held-out loss of each run that has one, or else the training loss."""
    for title in ("loss/val", "loss/train"):
        if values := [value for run in group.counted if (value := FIGURES[title](run)) is not None]:
            return values
    return []


def _losses(groups: Sequence[Group], colours: dict[str, int | None]) -> Chart:
    """Draws the losses, and the reference losses that are the same for all runs."""
    panels = []
    for tag, title in (("loss/train", "on training batches (loss/train)"), ("loss/val", "held out (loss/val)")):
        series = [(group.name, *over_seeds(group, tag)) for group in groups]
        curves = [Curve(name, at, *estimate(values), colours[name]) for name, at, values in series]
        panels.append(Panel(title, curves))
    runs = [run for group in groups for run in group.runs]
    last = max((int(curve.x[-1]) for panel in panels for curve in panel.curves if len(curve.x)), default=1)
    guides = []
    for tag in sorted({tag for run in runs for tag in run.steps if tag.startswith("loss/floor")}):
        values, name = {run.last(tag) for run in runs}, tag.removeprefix("loss/")
        if len(values) == 1 and (value := values.pop()) is not None and np.isfinite(value):
            label = f"{_FLOORS.get(name, name)}: {value:.3f}"
            guides.append(Guide(label, np.array([0, last]), np.full(2, value)))
    unit = loss_unit(groups)
    return line_charts(panels, Axes("training step", f"loss ({unit})" if unit else "loss"), guides)


def gains_log10(delta_log10: np.ndarray) -> np.ndarray:
    """Returns log10 of the gain of each block, [..., L] of log10 |δ_l| [..., L+1]."""
    with np.errstate(invalid="ignore"):
        return delta_log10[..., :-1] - delta_log10[..., 1:]


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
            title, missing = "same weights, skips removed", "not measured (watch.counterfactual is off, or no skip)"
            steps, values = without[group.name]
            fields.append(Field(f"{group.name}: {title}", steps, estimate(values).mean, missing))
    low, high = DELTA_SCALE
    caption = (
        "The same gradient at every watched step: time runs to the right, depth downwards from the embedding, and the "
        f"colour is log10 |δ_l| from {low:g} (dark) to {high:g} (bright), the same scale on every picture of this "
        "project; beyond it the colour stays. Grey is zero, not finite or not measured."
    )
    if paired:
        caption += (
            " Right: the same weights and batches with the skips taken out for the measurement (skip scale 0), so that "
            "the difference is what the skips do for the gradient; of a run without skips both are the same. Brighter "
            "on the right is no better flow: without skips the stream is smaller, and a norm, which divides by its "
            "size, multiplies the gradient by as much. Compare the change from bottom to top."
        )
    if any(len(group.counted) > 1 for group in chosen):
        caption += " Means over seeds of log10."
    if len(chosen) < len(groups):
        caption += f" {len(chosen)} of {len(groups)} runs are shown, those that have a colour above."
    alt = "Heatmaps of the gradient by depth and step"
    return Picture("heat", "Gradient by depth and step", caption, alt, heatmaps(fields))


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
        curves = [_curve(name, None, colours[name]) for name in depths if name not in at]
        curves += [_curve(name, change(watched[name][1][:, index]), colours[name]) for name, index in at.items()]
        panels.setdefault(tuple(at.values()), Panel(title, curves))
    return list(panels.values())


def _curve(name: str, values: np.ndarray | None, colour: int | None) -> Curve:
    """A group's curve over depth, of [n, layers]; without values its place in the legend and among the colours."""
    values = np.zeros((1, 0)) if values is None else values
    return Curve(name, np.arange(values.shape[1]), *estimate(values), colour)


def _frames(
    depths: dict[str, Depths],
    colours: dict[str, int | None],
    change: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> list[Panel]:
    """Returns a panel for each of `MAX_FRAMES` steps, evenly spaced among the watched ones."""
    steps = np.unique(np.concatenate([at for name, (at, _) in depths.items() if colours[name] is not None]))
    frames = []
    for step in steps[evenly(len(steps), MAX_FRAMES)].tolist():
        curves = []
        for name, (at, values) in depths.items():
            if colours[name] is not None:
                place = np.flatnonzero(at == step)[:1]
                curves.append(_curve(name, change(values[:, place[0]]) if place.size else None, colours[name]))
        frames.append(Panel(f"step {step}", curves))
    return frames


def sweeps(groups: Sequence[Group]) -> Iterator[Picture]:
    """Yields the final loss against each swept key, a line for each setting of everything else.

    The keys are those in the names of a sweep's points, such as `with,lr=0.001`.
    """
    settings = {}
    for group in groups:
        parts = (part.partition("=") for part in group.name.split(","))
        settings[group.name] = {key: value for key, equals, value in parts if equals and key not in SEEDS}
    unit = loss_unit(groups)
    for key in dict.fromkeys(key for each in settings.values() for key in each):
        lines: dict[str, list[tuple[str, Group]]] = {}
        for group in groups:
            if key in settings[group.name]:
                value = settings[group.name][key]
                rest = ",".join(part for part in group.name.split(",") if part != f"{key}={value}")
                lines.setdefault(rest, []).append((value, group))
        values = list(dict.fromkeys(value for line in lines.values() for value, _ in line))
        if len(values) < 2:
            continue
        places: dict[str, float] = {}
        with suppress(ValueError):
            places = {value: float(value) for value in values}
        decades = places and 0 < 10 * min(places.values()) <= max(places.values())
        curves = []
        for index, (rest, line) in enumerate(lines.items()):
            line = [(value, losses) for value, group in line if (losses := final_losses(group))]
            line.sort(key=lambda point: places.get(point[0], 0.0))
            means = [estimate(np.array(losses)) for _, losses in line]
            half = np.array([np.nan if each.half is None else float(each.half) for each in means])
            at = np.array([places.get(value, value) for value, _ in line])
            y = np.array([float(each.mean) for each in means])
            intervals = half if np.isfinite(half).any() else None
            curves.append(Curve(rest, at, y, intervals, index if index < MAX_GROUPS else None))
        kind = "nominal" if not places else "log" if decades else "linear"
        title = f"Final loss against {key}"
        yield Picture(
            f"sweep_{key}",
            title,
            "The final held-out loss of every run of the sweep: lower is better."
            + (
                " Bars: 95 % intervals over the seeds (Student's t)." if any(c.half is not None for c in curves) else ""
            ),
            title,
            line_charts(
                [Panel("", curves)], Axes(key, f"final loss ({unit})" if unit else "final loss", x_type=kind, own=True)
            ),
        )
