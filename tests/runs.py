"""Run directories written by hand, for what reads them."""

import json
from pathlib import Path

import numpy as np

from train.report.groups import Group
from train.report.page import compare


def write_run(
    root: Path, name: str, seed: int = 0, *, loss: float = 2.0, slope: float = 0.0, done: bool = True, **config
) -> Path:
    """A run of 100 steps, watched every 10: |δ| falls by 10^slope from the loss down to the embedding, over 4 blocks.

    `config`: keys of model, such as `residual`. Without `done` it stands at step 50 and has no summary.
    """
    folder = root / name
    folder.mkdir(parents=True)
    lines = [f"name: {root.name}", f"seed: {seed}", f"runs_dir: {root.parent}", "model:"]
    lines += [f"  {key}: {value}" for key, value in ({"layers": 4} | config).items()]
    lines += ["data:", "  kind: text", f"  seed: {seed}", "train:", "  steps: 100"]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = []
    for step in range(0, 101 if done else 51, 10):
        row: dict = {"step": step}
        if step:
            row |= {"loss/train": loss + 3 * np.exp(-step / 20), "perf/steps_per_s": 10.0}
        if step % 50 == 0:
            row |= {"loss/val": loss + 0.1 + 3 * np.exp(-step / 20), "accuracy/val": 0.25}
        if step < 100:
            for depth in range(5):
                row[f"delta/norm_log10/layer_{depth:03d}"] = -1.0 + slope * (1 - depth / 4) * (1 + step / 100)
                row[f"delta_without/norm_log10/layer_{depth:03d}"] = -1.0 - 3 * (1 - depth / 4)
            row |= {f"update/ratio_log10/layer_{block:03d}": -3.0 + block / 10 for block in range(4)}
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if done:
        summary = {
            **{"variant": name, "task": "lm", "steps": 100, "steps_per_s": 10.0, "exit_reason": "done"},
            **{"platform": "1 x cpu (cpu)", "versions": {"jax": "0.0"}},
            "verdict": {"state": "healthy", "why": f"because of {name}"},
        }
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def groups_of(*folders: Path) -> list[Group]:
    """The groups of a report on run directories and experiments."""
    return compare(folders).groups
