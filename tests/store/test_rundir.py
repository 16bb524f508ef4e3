"""Runs stay in the runs folder, whatever is there already."""

import os
import re
from pathlib import Path

import pytest

from train.cli import main
from train.config.load import Variant, from_mapping
from train.config.schema import CHANGEABLE
from train.errors import UserError
from train.store.rundir import own_directory_of


def variant_in(root: Path) -> Variant:
    return from_mapping({"name": "tiny", "runs_dir": str(root)}).variants[0]


def test_the_page_on_checkpoints_names_every_key_that_may_change():
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"(?m)^\| (`train\.steps`, .*?) \|", page)
    keys = [key.removesuffix(".*") for key in re.findall("`(.*?)`", row)]
    assert sorted(keys) == sorted({*CHANGEABLE, "expect"})  # expect: is no part of a run's config


@pytest.mark.parametrize("link", ["tiny", "tiny/main", "tiny/main/ckpt"])
def test_links_that_lead_out_are_refused(tmp_path, link, capsys, corpus, wording):
    root, outside = tmp_path / "runs", tmp_path / "outside"
    outside.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside)
    with wording.raises(UserError, root / link):
        own_directory_of(variant_in(root))
    keys = [f"runs_dir={root}", "train.steps=1", "model={layers: 1, width: 8, heads: 1}", "data.context=8"]
    config = tmp_path / "tiny.yaml"
    config.write_text(f"name: tiny\ndata: {{path: {corpus}, batch: 2}}\n")
    assert main(["train", str(config), *keys]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    wording(err, root / link)
    assert list(outside.iterdir()) == []


def test_links_that_stay_and_a_linked_runs_dir_are_fine(tmp_path):
    (tmp_path / "disk" / "tiny" / "other").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "tiny" / "main").symlink_to("other")
    assert own_directory_of(variant_in(tmp_path / "runs")) == tmp_path / "runs" / "tiny" / "main"


def test_loops_and_files_in_the_way_are_one_line(tmp_path, wording):
    (tmp_path / "tiny").symlink_to(tmp_path / "tiny")
    with wording.raises(UserError, tmp_path / "tiny", volatile="(?<=cannot be used: ).*"):
        own_directory_of(variant_in(tmp_path))
    os.unlink(tmp_path / "tiny")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "main").write_text("")
    with wording.raises(UserError, tmp_path / "tiny" / "main"):
        own_directory_of(variant_in(tmp_path))
