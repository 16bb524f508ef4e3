"""Pictures of the README and the docs, from the runs of the quickstart and of a sweep over seeds.

deltaflow train configs/quickstart.yaml
deltaflow train configs/attnres.yaml
deltaflow chain --json chain.json
deltaflow probe configs/quickstart.yaml 'variants={}' --checkpoint runs/quickstart/with \\
    --instruments landscape --json p.json
deltaflow train configs/attnres.yaml 'variants={}' 'sweep={}' 'expect={}' model.residual=attnres train.steps=400 \\
    runs_dir=g
deltaflow probe configs/attnres.yaml 'variants={}' 'sweep={}' 'expect={}' model.residual=attnres train.steps=400 \\
    --checkpoint g/attnres/main --instruments residual,ledger,depth_loss --json g.json
python scripts/figures.py runs/quickstart docs/img --seeds runs/attnres --chain chain.json --probe p.json \\
    --gauges g.json --gallery runs
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from train.config.instruments import lines
from train.report.chain import curves_of
from train.report.charts import save
from train.report.comparison import compare
from train.report.heatmaps import Field, heatmaps, matrix_chart
from train.report.lines import Axes, Curve, Panel, line_charts, loss_along
from train.report.pictures import DEPTH, pictures
from train.report.read import depth_series, read_run

VARIANTS = {
    "with": "with residual connections",
    "without_skip": "skip removed, norm kept",
    "without_skip_and_norm": "skip and norm removed",
}
# docs/gallery.md: two variants of each experiment; one alone is shown with its counterfactual.
GALLERY = {
    "quickstart": ("with", "without_skip"),
    "residual_study": ("pre_ln,layers=16", "none,layers=16"),
    "deep_100": ("none", "rezero"),
    "norms_and_depth": ("skip_rms,layers=24", "skip_none,layers=24"),
    "attnres": ("pre_ln,seed=0", "attnres,seed=0"),
    "optimizers": ("sgd", "muon"),
    "markov": ("with", "without_skip"),
    "induction": ("one_block", "two_blocks"),
    "in_context_regression": ("with", "without_skip"),
    "digits": ("with", "without_skip_and_norm"),
    "sharpness": ("batch_128,lr=0.01", "batch_128,lr=0.2"),
    "grokking": ("decay", "no_decay"),
    "shakespeare_char_cpu": ("main",),
}
# The key whose chart the docs show, and a pattern of the names of the variants in it.
SWEEPS = {
    "rate_over_depth": ("lr", ""),
    "rules_and_depth": ("layers", "(pre_ln|completep|rezero|deepnorm|siamese|keel|none|skipinit),.*lr=0.004"),
}


def single(experiment: Path, target: Path) -> None:
    """Draws the README's charts of the quickstart's variants."""
    runs = {name: read_run(experiment / name) for name in VARIANTS}
    logged = {name: depth_series(run.steps, "delta/norm_log10") for name, run in runs.items()}
    axes = Axes(DEPTH, "|δ_l|, size of the gradient", powers=True, size=(700, 330))
    for which, name, title in ((0, "start", "before training"), (-1, "end", "after training")):
        panels = []
        for at in (which, -1 - which):  # both, for one scale; the first is drawn
            values = [(key, logged[key][1][at]) for key in runs]
            curves = [Curve(VARIANTS[k], np.arange(len(y)), y, None, i) for i, (k, y) in enumerate(values)]
            panels.append(Panel(f"The gradient at every depth, {title}", curves))
        chart = line_charts(panels, axes)
        chart["transform"].insert(0, {"filter": "datum.p === 0"})
        chart["spec"]["width"] = 2 * chart["spec"]["width"]
        save(chart, target / f"delta_by_depth_{name}.png")


def gallery(runs: Path, target: Path) -> None:
    """Draws a pair of heatmaps for each experiment of `GALLERY` that was trained: gallery_NAME.png."""
    for experiment, variants in GALLERY.items():
        if not all((runs / experiment / name).is_dir() for name in variants):
            print(f"not drawn: {experiment}, for want of {' and '.join(variants)} in {runs / experiment}")
            continue
        shown = [(name, "delta/norm_log10", name) for name in variants]
        if len(variants) == 1:
            shown += [(variants[0], "delta_without/norm_log10", f"{variants[0]}, same weights, skips removed")]
        series = [(title, depth_series(read_run(runs / experiment / name).steps, tag)) for name, tag, title in shown]
        chart = heatmaps([Field(f"{experiment}: {title}", *depths) for title, depths in series])
        save(chart, target / f"gallery_{experiment}.png")


def sweeps(runs: Path, target: Path) -> None:
    """Draws the final loss against the swept key of each experiment of `SWEEPS` that was trained: NAME.png."""
    for experiment, (key, pattern) in SWEEPS.items():
        if (runs / experiment).is_dir():
            groups = [group for group in compare([runs / experiment]).groups if re.match(pattern, group.name)]
            drawn = {each.key: each.chart for each in pictures(groups)}
            save(drawn[f"sweep_{key}"], target / f"{experiment}.png")


def report(experiment: Path, target: Path, prefix: str) -> None:
    """Draws every picture of a report: PREFIX_loss.png, PREFIX_delta.png, ..."""
    for each in pictures(compare([experiment]).groups):
        save(each.chart, target / f"{prefix}_{each.key}.png")


def chain(results: Path, target: Path) -> None:
    """Draws the curves of `deltaflow chain`: chain_GROUP_CLAIM.png."""
    for result in json.loads(results.read_text(encoding="utf-8"))["claims"]:
        if result.get("curves"):
            save(curves_of(result), target / f"chain_{result['id'].replace('/', '_')}.png")


def landscape(probe: Path, target: Path) -> None:
    """Draws the loss along two lines through the weights of a probe."""
    readings = json.loads(probe.read_text(encoding="utf-8"))["instruments"]
    for name, what in lines().items():
        curve = {key: np.asarray(values, float) for key, values in readings[name].items()}
        chart = loss_along(curve["at"], curve["loss"], f"The loss along {what} (quickstart)")
        save(chart, target / f"{name.replace('/', '_')}.png")


def gauges(probe: Path, target: Path) -> None:
    """Draws readings of a probe of attnres: gauge_attnres_mixing.png, gauge_ledger.png, gauge_depth_loss.png."""
    readings = json.loads(probe.read_text(encoding="utf-8"))["instruments"]
    title = "attnres after 400 steps: weight of each source (across) in what is read after each sublayer (down)"
    mixing = np.asarray(readings["residual/mixing/matrix"]["matrix"], float)
    save(matrix_chart(mixing, title), target / "gauge_attnres_mixing.png")
    read = {key: np.asarray(values, float) for key, values in readings.items() if not key.startswith("residual/")}
    ledger = {name: 10 ** read[f"ledger/{key}_ratio_log10"] for name, key in (("attention", "attn"), ("MLP", "mlp"))}
    losses = {"without block l": read["depth_loss/ablated"], "read at depth l": read["depth_loss/lens"]}
    for name, title, x, y, series in (
        ("ledger", "rms(F) / rms(x) of each sublayer", "block", "ratio", ledger),
        ("depth_loss", "loss without block l, and read at depth l", "depth l", "loss (nats per token)", losses),
    ):
        curves = [Curve(key, np.arange(len(v)), v, None, i) for i, (key, v) in enumerate(series.items())]
        chart = line_charts([Panel(title, curves)], Axes(x, y, size=(520, 260)))
        save(chart, target / f"gauge_{name}.png")


def screenshots(page: Path, target: Path, chromium: str) -> None:
    """Photographs a report: page_light.png, page_dark.png."""
    for name, scheme in (("light", 1), ("dark", 0)):
        with tempfile.TemporaryDirectory() as profile:
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            options += [f"--user-data-dir={profile}", "--hide-scrollbars", "--window-size=1280,1000"]
            options += [f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=8000"]
            picture = f"--screenshot={(target / f'page_{name}.png').resolve()}"
            subprocess.run([chromium, *options, picture, page.resolve().as_uri()], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="the folder that holds the variants' run directories")
    parser.add_argument("target", type=Path, help="where the PNG files go")
    parser.add_argument("--seeds", type=Path, help="an experiment with several seeds, for pictures with intervals")
    parser.add_argument("--chain", type=Path, help="what `deltaflow chain --json` wrote")
    parser.add_argument("--probe", type=Path, help="what `deltaflow probe --instruments landscape --json` wrote")
    parser.add_argument("--gauges", type=Path, help="what probe wrote of attnres: residual, ledger, depth_loss")
    parser.add_argument("--gallery", type=Path, help="the folder of all experiments: pairs of heatmaps, and sweeps")
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
    if parsed.gauges is not None:
        gauges(parsed.gauges, parsed.target)
    if parsed.gallery is not None:
        gallery(parsed.gallery, parsed.target)
        sweeps(parsed.gallery, parsed.target)
    if (chromium := shutil.which("chromium")) and (parsed.experiment / "report.html").exists():
        screenshots(parsed.experiment / "report.html", parsed.target, chromium)


if __name__ == "__main__":
    main()
