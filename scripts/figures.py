"""Draws the pictures of the README and the docs from the runs of the quickstart, and one of a sweep over seeds.

deltaflow train configs/quickstart.yaml
deltaflow train configs/attnres.yaml
deltaflow chain --json chain.json
deltaflow probe configs/quickstart.yaml 'variants={}' --checkpoint runs/quickstart/with \\
    --instruments landscape --json p.json
python scripts/figures.py runs/quickstart docs/img --seeds runs/attnres --chain chain.json --probe p.json
"""

import argparse
import json
from pathlib import Path

import numpy as np

from train.config.instruments import lines
from train.report import charts
from train.report.chain import curves_of
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


def chain(found: Path, target: Path) -> None:
    """The curves of `deltaflow chain`: chain_GROUP_CLAIM.png."""
    for result in json.loads(found.read_text(encoding="utf-8"))["claims"]:
        if result.get("curves"):
            charts.save(curves_of(result), target / f"chain_{result['id'].replace('/', '_')}.png")


def landscape(probe: Path, target: Path) -> None:
    """The loss along two lines through the weights of a probe."""
    found = json.loads(probe.read_text(encoding="utf-8"))["instruments"]
    for name, what in lines().items():
        curve = {key: np.asarray(values, float) for key, values in found[name].items()}
        figure = charts.loss_along(curve["at"], curve["loss"], f"The loss along {what} (quickstart)")
        charts.save(figure, target / f"{name.replace('/', '_')}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="the folder that holds the variants' run directories")
    parser.add_argument("target", type=Path, help="where the PNG files go")
    parser.add_argument("--seeds", type=Path, help="an experiment with several seeds, for pictures with intervals")
    parser.add_argument("--chain", type=Path, help="what `deltaflow chain --json` wrote")
    parser.add_argument("--probe", type=Path, help="what `deltaflow probe --instruments landscape --json` wrote")
    parsed = parser.parse_args()
    parsed.target.mkdir(parents=True, exist_ok=True)
    single(parsed.experiment, parsed.target)
    report(parsed.experiment, parsed.target, "report")
    if parsed.seeds is not None:
        report(parsed.seeds, parsed.target, "seeds")
    if parsed.chain is not None:
        chain(parsed.chain, parsed.target)
    if parsed.probe is not None:
        landscape(parsed.probe, parsed.target)


if __name__ == "__main__":
    main()
