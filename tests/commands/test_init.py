"""`deltaflow init`: what it writes trains as it is, alternatives included, and no file is lost."""

import re

import pytest

from tests.runs import contents
from train.config.load import load

SMALL = ["model.layers=2", "model.width=8", "model.heads=2", "data.context=8", "train.steps=4", "train.eval_every=2"]
SMALL += ["train.eval_batches=1", "train.checkpoint_every=4", "optimizer.warmup=1"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_what_it_writes_trains(folder, call):
    code, out, err = call("init")
    assert (code, err, [path.name for path in folder.iterdir()]) == (0, "", ["mine.yaml"])
    first, *commands = out.splitlines()
    assert first.startswith("written: mine.yaml")
    ends = [line.partition("  #")[0].rstrip() for line in commands]
    assert ends[0].endswith(" train mine.yaml --dry-run") and ends[1].endswith(" train mine.yaml")
    code, out, err = call("train", "mine.yaml", *SMALL)
    assert (code, err) == (0, "") and "warning: optimizer" not in out
    assert {path.parent.name for path in folder.glob("runs/mine/*/summary.json")} == {"with", "without_skip"}


def test_every_line_has_a_key_with_a_meaning_and_the_alternatives_are_valid(folder, call, corpus):
    call("init")
    text = (folder / "mine.yaml").read_text(encoding="utf-8")
    body = text[text.index("name:") :]
    leaves = [line for line in body.splitlines() if re.match(r"\s*(# )?\w+: \S", line)]
    assert len(leaves) > 25
    obvious = ("  heads:", "  init:", "  steps:", "  checkpoint_every:", "  with", "  # post_ln")
    assert [line for line in leaves if " # " not in line.lstrip("# ") and not line.startswith(obvious)] == []
    alternatives = re.sub(r"^(\s*)# (\w+:)", r"\1\2", body, flags=re.M).replace("  corpus:", "  # corpus:")
    assert len(re.findall(r"^\s*# \w+:", body, re.M)) == 5
    (folder / "other.yaml").write_text(alternatives.replace("texts/*.txt", corpus), encoding="utf-8")
    experiment = load("other.yaml")
    assert len(experiment.variants) == 9 and experiment.variants[0].config.data.path == corpus
    assert load("mine.yaml").variants[0].config.model == experiment.variants[0].config.model


@pytest.mark.parametrize("name", ["null", "1e5", "no", "a+b,c=1", "deep.yaml", "deep.yml"])
def test_a_name_is_the_file_s_and_the_experiment_s(name, call):
    assert call("init", name)[0] == 0
    stem = re.sub(r"\.ya?ml", "", name)
    assert load(f"{stem}.yaml").name == stem


def test_an_existing_file_is_left_as_it_is(folder, call, wording):
    (folder / "mine.yaml").write_text("kept", encoding="utf-8")
    (folder / "link.yaml").symlink_to("nowhere")
    before = contents(folder)
    for name in ("mine", "mine.yaml", "link"):
        code, out, err = call("init", name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        wording(err, f"{name.removesuffix('.yaml')}.yaml")
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "con", "ckpt", "a" * 101])
def test_a_name_that_no_run_can_have_is_refused(folder, call, name):
    code, out, err = call("init", name)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("deltaflow: command line: name: ")
    assert not list(folder.iterdir())
