"""Variants and sweeps: names, order, precedence, and what is expected of each."""

import re
import time
from typing import Any

import pytest

from train.config.load import ConfigError, Experiment, from_mapping, load
from train.config.variants import MAX_VARIANTS, label, short, unsafe


def names(**keys: Any) -> list[str]:
    return [variant.name for variant in from_mapping({"name": "a", **keys}).variants]


def loaded(folder, text: str, *overrides: str) -> Experiment:
    path = folder / "a.yaml"
    path.write_text(text)
    return load(path, overrides)


def test_without_variants_there_is_one():
    assert names() == ["main"]
    assert names(variants={}, sweep={}) == ["main"]


def test_variants_keep_their_order_and_take_dotted_and_nested_keys():
    found = from_mapping(
        {
            "name": "a",
            "model": {"layers": 3},
            "variants": {
                "z": {},
                "dotted": {"model.residual": "none", "seed": 4},
                "nested": {"model": {"residual": "none"}, "optimizer": {"lr": 1, "betas": [0, 0.5]}},
            },
        }
    )
    plain, dotted, nested = [variant.config for variant in found.variants]
    assert [variant.name for variant in found.variants] == ["z", "dotted", "nested"]
    assert [config.model.residual.rule for config in (plain, dotted, nested)] == ["pre_ln", "none", "none"]
    assert [config.model.layers for config in (plain, dotted, nested)] == [3, 3, 3]
    assert [config.data.seed for config in (plain, dotted, nested)] == [0, 4, 0]
    assert (nested.optimizer.lr, nested.optimizer.betas) == (1.0, (0.0, 0.5))


def test_a_sweep_multiplies_the_variants_and_its_last_key_turns_fastest():
    keys: dict[str, Any] = {
        "variants": {"with": {}, "without": {"model.residual": "none"}},
        "sweep": {"seed": [0, 1], "optimizer.lr": [1e-3, 1e-2]},
    }
    assert names(**keys) == [
        f"{variant},seed={seed},lr={lr}"
        for variant in ("with", "without")
        for seed in (0, 1)
        for lr in ("0.001", "0.01")
    ]
    last = from_mapping({"name": "a", **keys}).variants[-1].config
    assert (last.seed, last.data.seed, last.optimizer.lr, last.model.residual.rule) == (1, 1, 1e-2, "none")


def test_a_sweep_may_be_nested_too_and_its_values_cannot_climb():
    assert names(sweep={"optimizer": {"lr": [1e-4]}}) == ["main,lr=0.0001"]
    assert names(sweep={"data.path": ["../../../etc/passwd"]}) == ["main,path=.-.-.-etc-passwd"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [("seed", "seed"), ("data.seed", "data.seed"), ("optimizer.lr", "lr"), ("optimizer.name", "optimizer.name")],
)
def test_a_swept_key_is_named_by_its_last_part_when_that_says_which(key, expected):
    assert short(key) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e-4, "0.0001"),
        (1e-5, "1e-5"),
        (2.5e20, "2.5e20"),
        (1.0, "1.0"),
        (7, "7"),
        (None, "null"),
        (True, "true"),
        ("pre_ln", "pre_ln"),
        ([0.9, 0.99], "0.9+0.99"),
        ("../some folder/x.txt", ".-some-folder-x.txt"),
    ],
)
def test_labels_of_values(value, expected):
    assert label(value) == expected


def test_a_thousand_variants_take_no_time(wording):
    start = time.perf_counter()
    assert len(names(sweep={"seed": list(range(MAX_VARIANTS))})) == MAX_VARIANTS
    assert time.perf_counter() - start < 5
    with wording.raises(ConfigError, "mapping: variants") as caught:
        names(variants={f"v{index}": {} for index in range(MAX_VARIANTS + 1)})
    assert re.findall(r"\d+", str(caught.value)) == [str(MAX_VARIANTS), str(MAX_VARIANTS + 1)]


def test_a_name_that_looks_like_a_sweep_point_is_harmless():
    assert names(variants={"x": {}, "x,seed=0": {}}, sweep={"seed": [0]}) == ["x,seed=0", "x,seed=0,seed=0"]
    assert len(names(variants={"x,seed=0": {}, "X": {}}, sweep={"seed": [0], "optimizer.lr": [1.0]})) == 2


def test_a_variant_wins_over_an_override_of_the_base_unless_it_is_named(tmp_path):
    text = "name: a\nvariants:\n  with: {}\n  deep: {model: {layers: 9}}\n"

    def layers(*overrides):
        return [variant.config.model.layers for variant in loaded(tmp_path, text, *overrides).variants]

    assert layers("model.layers=4") == [4, 9]
    assert layers("model.layers=4", "variants.deep.model.layers=5") == [4, 5]
    assert layers("variants.with.model.layers=5", "variants.with.seed=1") == [5, 9]
    assert layers("variants={}", "model.layers=4") == [4]
    assert layers("variants.deeper={model.layers: 12}") == [8, 9, 12]
    assert layers("variants.deep={}") == [8, 8]


def test_an_empty_mapping_resets_a_section_and_any_other_one_adds_to_it(tmp_path):
    text = """
name: a
model: {residual: {rule: attnres, block: 2}}
data: {path: x.txt, context: 7}
watch: {every: 5, instruments: {sharpness: 100}}
variants: {with: {}, plain: {watch.instruments: {}}}
"""

    def configs(*overrides):
        return [variant.config for variant in loaded(tmp_path, text, *overrides).variants]

    def instruments(*overrides):
        found = configs(*overrides)
        assert {config.watch.every for config in found} == {5}
        return [config.watch.instruments.model_dump(exclude_defaults=True) for config in found]

    assert instruments() == [{"sharpness": 100}, {}]
    assert instruments("watch.instruments={}") == [{}, {}]
    assert instruments("watch.instruments={noise: 50}") == [{"sharpness": 100, "noise": 50}, {}]
    assert instruments("watch.instruments={}", "watch.instruments.noise=50") == [{"noise": 50}, {}]
    assert instruments("watch.instruments.noise=50", "watch.instruments={}") == [{}, {}]
    rule = configs("model.residual={}")[0].model.residual
    assert (rule.rule, rule.block) == ("pre_ln", None)
    data = configs("data={}")[0].data
    assert (data.path, data.context) == (None, 64)


def test_an_override_finds_variants_with_dots_in_their_name(tmp_path):
    text = "name: a\nvariants:\n  v1: {}\n  v1.5: {}\n"
    found = loaded(tmp_path, text, "variants.v1.5.seed=3", "variants.v1.seed=2")
    assert [variant.config.seed for variant in found.variants] == [2, 3]


def test_overrides_of_the_sweep(tmp_path):
    text = "name: a\nsweep: {optimizer.lr: [1e-3, 1e-2]}\n"

    def found(*overrides):
        return [variant.name for variant in loaded(tmp_path, text, *overrides).variants]

    assert found("sweep={}") == ["main"]
    assert found("sweep.optimizer.lr=[1e-3]") == ["main,lr=0.001"]
    assert found("sweep.seed=[0,1]", "sweep.optimizer.lr=[1.0]") == ["main,lr=1.0,seed=0", "main,lr=1.0,seed=1"]


def test_what_is_expected_of_a_variant_holds_for_all_its_sweep_points():
    keys = {
        "variants": {"x": {}, "y": {}},
        "sweep": {"seed": [0, 1]},
        "expect": {"x": {"loss/val": [1, 2.5], "verdict": "healthy"}, "x,seed=1": {"loss/val": [0, 9]}},
    }
    assert from_mapping({"name": "a", **keys}).expect == {
        "x,seed=0": {"loss/val": [1, 2.5], "verdict": "healthy"},
        "x,seed=1": {"loss/val": [0, 9], "verdict": "healthy"},
    }


def test_overrides_of_variants_and_sweep_leave_out_what_was_expected_of_others(tmp_path, wording):
    text = "name: a\nvariants: {x: {}, y: {}}\nexpect: {x: {loss: [1, 2]}, y: {loss: [3, 4]}}\n"
    assert loaded(tmp_path, text, "variants={}").expect == {}
    assert loaded(tmp_path, text, "variants={x: {}}", "expect.x.acc=[0, 1]").expect == {
        "x": {"loss": [1, 2], "acc": [0, 1]}
    }
    with wording.raises(ConfigError, "command line: expect.z"):
        loaded(tmp_path, text, "variants={}", "expect.z={loss: [0, 1]}")


@pytest.mark.parametrize("name", ["a", "with,seed=0", "1e-4", "A.b_c+d-e", "a" * 120, "con1", "aux_loss", "ckpt2"])
def test_names_that_are_folders_anywhere(name):
    assert unsafe(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "a/../b", "a..b", "/a", "-a", "a/b", "a\\b", "C:\\a", "a b", "a.", "a" * 121),
        *("a\u00a0b", "é", "a\n", "a\0", "a:b", "~", ".lock", "with@mean", "a\u202eb"),
        *("CON", "nul", "com1", "LPT9", "aux.txt", "prn.a.b", "COM0"),  # devices on Windows
        *("ckpt", "CKPT", "report.html", "events.out.tfevents.1"),  # files of a run
    ],
)
def test_names_that_are_not(name):
    message = unsafe(name)
    assert message is not None and message.isprintable()
