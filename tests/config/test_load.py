"""Experiments from files, overrides and mappings, and the way back to YAML."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from problems import lines
from train.config.load import ConfigError, flatten, from_mapping, load, to_yaml

QUIET = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def test_many_problems_are_counted_not_all_printed(wording):
    with pytest.raises(ConfigError) as caught:
        from_mapping({"name": "a", **{f"zz{index}": 1 for index in range(70)}})
    assert len(caught.value.problems) == 70
    *lines, last = str(caught.value).splitlines()
    assert len(lines) == 50 and "20" in last
    wording(last)


def test_a_path_of_the_command_line_takes_the_place_of_the_files_corpus(tmp_path, wording):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\ndata: {corpus: shakespeare}")
    data = load(path, ["data.path=x.txt"]).variants[0].config.data
    assert (data.corpus, data.path) == (None, "x.txt")
    for overrides in (["data.path=null"], ["data.path=x.txt", "data.path=null"]):
        assert load(path, overrides).variants[0].config.data.corpus == "shakespeare"
    path.write_text("name: a\ndata: {path: x.txt}")
    data = load(path, ["data.corpus=shakespeare"]).variants[0].config.data
    assert (data.corpus, data.path) == ("shakespeare", None)
    wording(lines(tmp_path, "name: a", "data.corpus=shakespeare", "data.path=x.txt")[0], "command line: data.path")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nruns_dir: ~/runs\ntrain: {init_from: ~/runs/b/main}")
    config = load(path).variants[0].config
    assert (config.runs_dir, config.train.init_from) == (f"{tmp_path}/runs", f"{tmp_path}/runs/b/main")


def test_overrides_set_values_and_the_last_one_wins(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nmodel: {layers: 2, norm: none}\ndata: {path: x}\n")
    overrides = [
        "optimizer.lr=3e-4",
        "data.path=null",
        "model={layers: 3}",
        "seed=1",
        "seed=2",
        "optimizer.betas=[0, .5]",
    ]
    config = load(path, overrides).variants[0].config
    assert config.optimizer.lr == 3e-4 and config.optimizer.betas == (0.0, 0.5)
    assert config.data.path is None
    assert (config.model.layers, config.model.norm) == (3, "none")
    assert (config.seed, config.data.seed) == (2, 2)


def test_a_rule_of_the_command_line_leaves_the_files_options_out_and_keeps_its_own_in_any_order(tmp_path, wording):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nmodel: {residual: {rule: mhc, streams: 2}}\nvariants: {x: {model.residual.rounds: 3}}")

    def rule(*overrides):
        return load(path, overrides).variants[0].config.model.residual.model_dump(exclude_none=True)

    for of in ("", "variants.x."):
        chosen = [f"{of}model.residual=attnres", f"{of}model.residual.block=2", "variants.x.model.residual.rounds=null"]
        assert rule(*chosen) == rule(*chosen[::-1]) == {"rule": "attnres", "block": 2}
    assert rule("model.residual={rule: keel, alpha: 2.0}", "model.residual.rule=keel", "variants={}")["alpha"] == 2.0
    assert rule("model={residual: rezero}", "model.residual=none", "variants={}") == {"rule": "none"}
    assert rule("model={}", "model.residual=rezero", "variants={}") == {"rule": "rezero"}
    assert rule("model.residual.bias=0.5", "model.residual={}", "variants={}") == {"rule": "pre_ln"}
    with wording.raises(ConfigError, "command line: model.residual.gate"):
        rule("model.residual.gate=2.0", "model={residual: rezero, layers: 3}", "variants={}")
    assert [
        v.name for v in load(path, ["variants={}", "variants.y={}", "variants.y.model.residual=none"]).variants
    ] == ["y"]
    swept = load(path, ["variants={}", "sweep={}", "sweep.seed=[1, 2]", "sweep.model.residual=[none]"]).variants
    assert [variant.name for variant in swept] == ["main,seed=1,rule=none", "main,seed=2,rule=none"]


def test_an_int_for_a_float_becomes_one():
    config = from_mapping({"name": "a", "optimizer": {"lr": 1, "clip": 2, "betas": [0, 0]}}).variants[0].config
    assert [type(x) for x in (config.optimizer.lr, config.optimizer.clip, *config.optimizer.betas)] == [float] * 4
    assert (config.optimizer.lr, config.optimizer.clip) == (1.0, 2.0)


def test_data_seed_follows_the_seed_unless_set():
    assert from_mapping({"name": "a", "seed": 7}).variants[0].config.data.seed == 7
    assert from_mapping({"name": "a", "seed": 7, "data": {"seed": 3}}).variants[0].config.data.seed == 3


def refusal(path: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_what_is_not_a_readable_file(tmp_path, wording):
    (tmp_path / "quickstart.yaml").write_text("name: a\n")
    near, far = tmp_path / "quikstart.yaml", tmp_path / "zzz"
    inside = tmp_path / "quickstart.yaml" / "x.yaml"
    for path, place in ((near, near), (far, far), (inside, inside), ("a\0b", "a\\x00b"), (tmp_path, tmp_path)):
        wording(refusal(path), place, volatile="(stat: )?embedded null .*")
    wording(refusal("x" * 5000 + ".yaml"), volatile="x{3,}")


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with a name")
def test_a_pipe_or_device_is_refused_without_waiting(tmp_path, wording):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        wording(refusal(path), path)


def test_a_file_without_permission(tmp_path, monkeypatch, wording):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\n")

    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    wording(refusal(path), path)


def test_a_mapping_is_held_to_the_same_rules():
    loop: list[Any] = []
    loop.append(loop)
    for mapping, key in [
        ({"name": "a", "model": {"hedas": 1}}, "model.hedas"),
        ({"name": "a", 3: 1}, ""),
        ({"name": "a", "data": {"path": Path("x")}}, "data.path"),
        ({"name": "a", "data": {"path": "a\0b"}}, "data.path"),
        ({"name": "a", "seed": 2**64}, "seed"),
        ({"name": "a", "optimizer": {"betas": loop}}, ""),
        ([], ""),
    ]:
        with pytest.raises(ConfigError) as caught:
            from_mapping(mapping)  # pyright: ignore[reportArgumentType]
        assert [(str(problem.place), problem.key) for problem in caught.value.problems] == [("mapping", key)]


def test_a_shipped_config_is_found_by_its_bare_name_and_the_users_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("quickstart", ["seed=3"]).variants[0].config.seed == 3
    for name in ("quikstart", "zzz", "z" * 252):  # with .yaml a name too long for a file
        with pytest.raises(ConfigError) as caught:
            load(name)
        assert caught.value.problems[0].place.source == name and "quickstart" in str(caught.value)
    (tmp_path / "quickstart").write_text("name: mine\n")
    assert load("quickstart").name == "mine"


def test_flatten_gives_scalars_by_dotted_key():
    flat = flatten(from_mapping({"name": "a", "optimizer": {"eps": 1e-6}}).variants[0].config)
    assert list(flat)[:4] == ["name", "seed", "runs_dir", "model.layers"]
    assert flat["optimizer.betas"] == "[0.9, 0.99]"
    assert flat["optimizer.eps"] == 1e-6 and flat["data.path"] is None and flat["data.seed"] == 0
    assert all(isinstance(item, bool | int | float | str | None) for item in flat.values())


def test_to_yaml_is_stable_and_plain():
    text = to_yaml(from_mapping({"name": "no", "optimizer": {"min_lr": 1e-6}}).variants[0].config)
    assert text.startswith('name: "no"\nseed: 0\nruns_dir: runs\nmodel:\n  layers: 8\n')
    assert "  min_lr: 1.0e-06\n" in text and "  betas: [0.9, 0.99]\n" in text and "  path: null\n" in text


# Any text a config can hold: no control characters but tab and newline, and no surrogates.
TEXT = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff") | st.sampled_from("\t\n"),
    min_size=1,
)


ODD = ["a\u2028b", "\ufeffa", "a\tb ", "\n a", *"null no ~ 1e5 0x1 # \" \\ ' {} % ... .inf".split(), "a: b", "- a"]


@given(
    TEXT | st.sampled_from(ODD),
    st.floats(0, 1e300),
    st.integers(0, 2**32 - 1),
    st.none() | st.floats(1e-300, 1),
)
@QUIET
def test_to_yaml_reads_back_as_the_same_config(tmp_path_factory, text, lr, seed, clip):
    optimizer = {"lr": lr, "clip": clip, "schedule": "constant"}
    mapping = {"name": "a", "seed": seed, "runs_dir": text[:60], "data": {"path": text}, "optimizer": optimizer}
    mapping["train"] = {"dtype": "float64"}  # or lr and clip have float32's range
    config = from_mapping(mapping).variants[0].config
    path = tmp_path_factory.getbasetemp() / "back.yaml"
    path.write_text(to_yaml(config), encoding="utf-8", newline="\n")
    assert load(path).variants[0].config == config
