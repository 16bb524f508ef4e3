"""The docs say what the code does."""

import importlib.util
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


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
    said = [ROOT / "README.md", ROOT / "scripts" / "colab_tpu.ipynb", ROOT / "train" / "run" / "experiment.py"]
    for path in said:
        assert re.findall(r"scalars=(\d+)", path.read_text(encoding="utf-8")) == ["100000"], path.name
