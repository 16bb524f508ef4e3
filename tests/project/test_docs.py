"""The docs say what the code does."""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml

from train.core.evaluate import Scores
from train.run.metrics import evaluation_row

ROOT = Path(__file__).parents[2]


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_config_reference_is_current():
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == _module(ROOT / "scripts" / "config_reference.py").reference()


def test_every_key_has_a_meaning():
    rows = [line for line in (ROOT / "docs" / "config.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.endswith("|  |")] == []


def test_links_of_the_docs_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readmes_config_is_valid():
    from train.config.load import from_mapping

    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert [
        v.name for v in from_mapping(yaml.safe_load(block.replace("1e-3", "0.001").replace("1e-4", "0.0001"))).variants
    ]


def test_every_config_names_its_command_and_itself():
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert f"deltaflow train configs/{path.name}" in text
        assert re.search(rf"^name: {path.stem}\b", text, re.M)


def test_the_tensorboard_command_keeps_the_custom_scalars():
    """`scalars=0` means all to the Scalars page and none at all to Custom Scalars, whose charts then stay empty."""
    said = [ROOT / "scripts" / "colab_tpu.ipynb", ROOT / "train" / "commands" / "tensorboard.py"]
    for path in said:
        assert re.findall(r"scalars=(\d+)", path.read_text(encoding="utf-8")) == ["100000"], path.name


def test_every_tag_and_every_key_of_a_summary_is_explained(trained):
    """And what is explained of a plain run is there."""
    _, run = trained
    page = (ROOT / "docs" / "tags.md").read_text(encoding="utf-8")
    cells = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    explained = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}

    def general(tag: str) -> str:
        tag = re.sub(r"layer_\d{3}", "layer_NNN", tag).replace("grad_without/", "grad/")
        return re.sub(r"(layer_NNN)/.+", r"\1/MATRIX", re.sub(r"floor_.+", "floor_NAME", tag))

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {general(tag) for row in rows for tag in row if tag not in ("step", "nonfinite")}
    summary = json.loads((run / "summary.json").read_text())
    assert len(logged) > 20 and not logged - explained and not summary.keys() - explained
    floors = SimpleNamespace(form=SimpleNamespace(task="lm"), floors={"": 1.0})
    optional = set(evaluation_row(Scores(np.float32(1), np.float32(0.5)), floors, "lm", "val_ema"))
    assert len(optional) == 4 and optional <= explained
    optional |= {"loss_val_ema", "verdict", "verdict/spike"}
    # Of steps that are not finite: tests/run/test_nonfinite.py.
    optional |= {"verdict/nonfinite", "optim/nonfinite", "optim/skipped"}
    optional |= {"skipped_steps", "perf/mfu"}  # the last of trainings that take their time
    pictures = {"delta/heatmap", "delta_without/heatmap"}
    missing = {name for name in explained if not name.startswith("grad_without")} - logged - summary.keys()
    assert missing <= optional | pictures
