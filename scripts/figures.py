"""Draws the pictures of the README and the docs from the runs of the quickstart, and one of a sweep over seeds.

deltaflow train configs/quickstart.yaml
deltaflow train configs/attnres.yaml
python scripts/figures.py runs/quickstart docs/img --seeds runs/attnres
"""

import argparse
from pathlib import Path

import numpy as np

from train.report import charts
from train.report.compare import compare
from train.report.pictures import pictures
from train.report.read import Run, depth_series, read_run

VARIANTS = {
    "with": "with residual connections",
    "without_skip": "skip removed, norm kept",
    "without_skip_and_norm": "skip and norm removed",
}


def _at(run: Run, tag: str, which: int) -> np.ndarray:
    """The [L+1] values of one watched step: 0 is the first, -1 the last."""
    return depth_series(run, tag)[1][which]


def single(experiment: Path, target: Path) -> None:
    """The README's: a chart each, of the quickstart's variants."""
    runs = {name: read_run(experiment / name) for name in VARIANTS}
    for which, name, title in ((0, "start", "at initialization"), (-1, "end", "at the end of training")):
        series = {key: (VARIANTS[key], _at(run, "delta/norm_log10", which)) for key, run in runs.items()}
        figure = charts.delta_by_depth(series, f"Gradient at the residual stream, {title} (quickstart)")
        charts.save(figure, target / f"delta_by_depth_{name}.png")
    losses = {key: (VARIANTS[key], *run.steps["loss/val"]) for key, run in runs.items()}
    charts.save(charts.loss_curves(losses), target / "loss_val.png")
    for key, run in runs.items():
        steps, values = depth_series(run, "delta/norm_log10")
        figure = charts.heatmap(steps, values, f"|δ|: {VARIANTS[key]}", charts.DELTA_UNIT, *charts.DELTA_SCALE)
        charts.save(figure, target / f"heatmap_{key}.png")


def report(experiment: Path, target: Path, prefix: str) -> None:
    """Every picture of a report: PREFIX_loss.png, PREFIX_delta.png, ..."""
    for each in pictures(compare([experiment]).groups):
        charts.save(each.figure, target / f"{prefix}_{each.key}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="the folder that holds the variants' run directories")
    parser.add_argument("target", type=Path, help="where the PNG files go")
    parser.add_argument("--seeds", type=Path, help="an experiment with several seeds, for pictures with intervals")
    parsed = parser.parse_args()
    parsed.target.mkdir(parents=True, exist_ok=True)
    single(parsed.experiment, parsed.target)
    report(parsed.experiment, parsed.target, "report")
    if parsed.seeds is not None:
        report(parsed.seeds, parsed.target, "seeds")


if __name__ == "__main__":
    main()
