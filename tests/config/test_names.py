"""Runs stay in the runs folder, whatever they are called and whatever is there already."""

import os
from pathlib import Path

import pytest

from train.cli import main
from train.config.load import ConfigError, Variant, from_mapping, load
from train.config.variants import unsafe
from train.errors import UserError
from train.store.rundir import own_directory_of

RULE = "expected a folder name (letters, digits and _ . , = + -, the first a letter or digit, no '..')"


@pytest.mark.parametrize("name", ["a", "with,seed=0", "1e-4", "A.b_c+d-e", "a" * 120, "con1", "aux_loss", "ckpt2"])
def test_names_that_are_folders_anywhere(name):
    assert safe(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(
            (name, RULE)
            for name in ("", ".", "..", "../x", "a/../b", "a..b", "/a", "-a", "a/b", "a\\b", "C:\\a", "a b")
        ),
        *((name, RULE) for name in ("a b", "é", "a\n", "a\0", "a:b", "~", ".lock", "with@mean", "a\u202eb")),
        ("a" * 121, "expected a folder name of at most 120 characters, got 121: 'aaaaaaaaa"),
        ("a.", "expected a folder name (without a dot at its end), got 'a.'"),
        *((n, "which is a device on Windows") for n in ("CON", "nul", "com1", "LPT9", "aux.txt", "prn.a.b", "COM0")),
        *((n, "which is a name that runs use for their own files") for n in ("ckpt", "CKPT", "report.html")),
        ("events.out.tfevents.1", "which is what TensorBoard takes for a file of events"),
    ],
)
def test_names_that_are_not(name, said):
    assert not safe(name) and said in unsafe(name) and unsafe(name).isprintable()


@pytest.mark.parametrize("name", ["..", "../../etc", "/etc", "ckpt", "nul", "-rf", "a" * 90 + "/b", "a."])
def test_the_line_that_named_it_is_told(tmp_path, name):
    """Of the run, of a variant, of a value that is swept; and on the command line."""
    file = tmp_path / "a.yaml"
    for text, line in ((f'name: "{name}"', 1), (f'name: a\n\nvariants: {{"{name}": {{}}}}', 3)):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load(file)
        assert str(caught.value).startswith(f"{file}:{line}: ") and "folder name" in str(caught.value)
    file.write_text("name: a")
    with pytest.raises(ConfigError, match="^command line: name: expected "):
        load(file, [f'name="{name}"'])


def test_a_swept_value_cannot_climb():
    (variant,) = from_mapping({"name": "a", "sweep": {"data.path": ["../../../etc/passwd"]}}).variants
    assert variant.name == "main,path=.-.-.-etc-passwd"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("runs/" + "a" * 256, "at most 255 bytes, got 256"),
        ("é" * 128, "at most 255 bytes, got 256"),
        ("a/" * 1501, "at most 3000 bytes, got 3002"),
    ],
)
def test_runs_dir_is_a_path_that_can_be(path, said):
    assert said in str(wrong_path(path))
    with pytest.raises(ConfigError, match=f"^mapping: runs_dir: expected .*{said}"):
        from_mapping({"name": "a", "runs_dir": path})
    with pytest.raises(ConfigError, match=r"^mapping: runs_dir: control character U\+0000"):
        from_mapping({"name": "a", "runs_dir": "a\0b"})
    assert all(wrong_path(good) is None for good in ("runs", "/tmp/runs", "../runs", "a b/é", "a" * 255))


def variant_in(root: Path) -> Variant:
    return from_mapping({"name": "tiny", "runs_dir": str(root)}).variants[0]


@pytest.mark.parametrize("link", ["tiny", "tiny/main", "tiny/main/ckpt"])
def test_links_that_lead_out_are_refused(tmp_path, link, capsys, corpus):
    root, outside = tmp_path / "runs", tmp_path / "outside"
    outside.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside)
    with pytest.raises(UserError, match=f"{link}: is a link that leads out of .*runs, to .*outside; remove it"):
        own_directory_of(variant_in(root))
    keys = [f"runs_dir={root}", "train.steps=1", "model={layers: 1, width: 8, heads: 1}", "data.context=8"]
    config = tmp_path / "tiny.yaml"
    config.write_text(f"name: tiny\ndata: {{path: {corpus}, batch: 2}}\n")
    assert main(["train", str(config), *keys]) == 1
    err = capsys.readouterr().err
    assert "is a link that leads out of" in err and err.count("\n") == 1
    assert list(outside.iterdir()) == []


def test_links_that_stay_and_a_linked_runs_dir_are_fine(tmp_path):
    (tmp_path / "disk" / "tiny" / "other").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "tiny" / "main").symlink_to("other")
    assert own_directory_of(variant_in(tmp_path / "runs")) == tmp_path / "runs" / "tiny" / "main"


def test_loops_and_files_in_the_way_are_one_line(tmp_path):
    (tmp_path / "tiny").symlink_to(tmp_path / "tiny")
    with pytest.raises(UserError, match="tiny: cannot be used: "):
        own_directory_of(variant_in(tmp_path))
    os.unlink(tmp_path / "tiny")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "main").write_text("")
    with pytest.raises(UserError, match="main: expected a folder, got a file; choose another name"):
        own_directory_of(variant_in(tmp_path))
