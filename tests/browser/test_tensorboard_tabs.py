"""TensorBoard's pages, as somebody sees them who pastes the address that `deltaflow tensorboard` prints."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from train.cli import main
from train.commands.tensorboard import PINNED

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def link(corpus, tmp_path_factory):
    """The address for an experiment of two variants of twelve blocks."""
    folder = tmp_path_factory.mktemp("runs")
    config = folder / "config.yaml"
    config.write_text(
        f"""
name: twelve
runs_dir: {folder}
model: {{layers: 12, width: 16, heads: 2}}
data: {{path: {corpus}, context: 8, batch: 4}}
train: {{steps: 20, eval_every: 10, eval_batches: 4, steps_per_call: 5, unroll: 1}}
watch: {{every: 5}}
variants:
  with: {{}}
  without_skip: {{model.residual: none}}
""",
        encoding="utf-8",
    )
    assert main(["train", str(config)]) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "train", "tensorboard", str(folder / "twelve"), "--no-browser"]
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        stack.callback(process.communicate)
        stack.callback(process.terminate)
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield next(line for line in lines if line.startswith("http://")).strip()


def test_the_address_opens_with_the_headline_scalars_pinned_and_step_0_as_it_is(chromium, link):
    chromium.open(link)
    pinned = "metrics-pinned-view scalar-card"
    chromium.wait(f"document.querySelectorAll('{pinned}').length === {len(PINNED)}")
    names = chromium.value(f"[...document.querySelectorAll('{pinned} tb-truncated-path')].map(path => path.title)")
    assert names == list(PINNED)
    assert (
        chromium.value("document.querySelector('[type=number][aria-labelledby=scalars-smoothing-label]').value") == "0"
    )


def test_at_most_120_scalars_are_shown(chromium, link):
    chromium.open(link)
    chromium.shows("Pinned", "4 cards")
    tags = chromium.value("fetch('data/plugin/timeseries/tags').then(answer => answer.json())")
    for run in ("with", "without_skip"):
        assert 100 < len(tags["scalars"]["runTagInfo"][run]) <= 120


def test_custom_scalars_open_with_the_overview_and_nothing_else(chromium, link):
    chromium.open(link)
    tab = "[...document.querySelectorAll('.plugin-name')].find(tab => tab.innerText.trim() === 'CUSTOM SCALARS')"
    chromium.wait(f"!!{tab}")
    chromium.value(f"{tab}.click()")
    titles = ["overview", "held-out loss", "log10 |delta_0|/|delta_L|; 0: all arrives"]
    titles += [f"log10 |delta| {place}" for place in ("at the first block", "in the middle", "after the last block")]
    chromium.shows(*titles, "delta: gradient at the residual stream")
    panes = chromium.each("tf-category-paginated-view", "[element.category.name, element.opened]")
    assert panes[0] == ["overview", True] and not any(opened for _, opened in panes[1:]) and len(panes) > 4
    assert chromium.each("tf-smoothing-input", "element.weight") == [0]


def test_the_final_losses_are_on_the_first_screen_of_hparams(chromium, link):
    chromium.open(re.sub("#.*", "#hparams", link))
    chromium.shows("Trial ID", "rule", "layers", "lr", "loss/val", "loss/train")
    place = "[element.matches('.table-header') && element.innerText.trim(), element.getBoundingClientRect().left]"
    left = dict(chromium.each("div", place))
    assert 0 < left["rule"] < left["loss/val"] < left["loss/train"] <= 1280 - 80  # a number is 80 wide


@pytest.mark.parametrize(
    ("tab", "pieces"),
    [
        ("text", ["finding", "verdict", "versus", "yaml"]),
        ("images", ["twelve/with: δ as trained", "twelve/without_skip: δ as trained"]),
    ],
)
def test_the_other_tabs_have_the_point_first(chromium, link, tab, pieces):
    chromium.open(re.sub("#.*", f"#{tab}", link))
    chromium.shows(*pieces)
