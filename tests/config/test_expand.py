"""Variants and sweeps: names, order, who wins, and where an error in one of them is reported."""

import time
from typing import Any

import pytest

from train.config.load import ConfigError, Experiment, from_mapping, load
from train.config.schema import STATES
from train.config.variants import MAX_VARIANTS, label, short


def names(**keys: Any) -> list[str]:
    return [variant.name for variant in from_mapping({"name": "a", **keys}).variants]


def refusal(**keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        from_mapping({"name": "a", **keys})
    return str(caught.value)


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


def test_a_sweep_may_be_nested_too():
    assert names(sweep={"optimizer": {"lr": [1e-4]}}) == ["main,lr=0.0001"]


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


RULE = "expected a folder name (letters, digits and _ . , = + -, the first a letter or digit, no '..')"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"variants": {"a/b": {}}}, f"mapping: variants.a/b: {RULE}, got 'a/b'"),
        ({"variants": {"": {}}}, f"mapping: variants.: {RULE}, got ''"),
        (
            {"variants": {"A": {}, "a": {}}},
            "mapping: variants.a: expected names that differ in more than case, got 'A' and 'a'",
        ),
        ({"variants": {"x,seed=0": {}, "X": {}}, "sweep": {"seed": [0], "optimizer.lr": [1.0]}}, ""),
        ({"variants": {"x": {}, "x,seed=0": {}}, "sweep": {"seed": [0]}}, ""),
        ({"variants": {"x": None}}, "mapping: variants.x: expected a mapping of overrides, got null"),
        ({"variants": ["x"]}, "mapping: variants: expected a mapping of names and their overrides, got ['x']"),
        ({"variants": {"x": {"name": "b"}}}, "mapping: variants.x.name: variants and sweeps cannot set name"),
        (
            {"variants": {"x": {"runs_dir": "b"}}},
            "mapping: variants.x.runs_dir: variants and sweeps cannot set runs_dir",
        ),
        (
            {"variants": {"x": {"sweep.seed": [1]}}},
            "mapping: variants.x.sweep.seed: variants and sweeps cannot set sweep",
        ),
        ({"sweep": {"name": ["x", "y"]}}, "mapping: sweep.name: variants and sweeps cannot set name"),
        ({"sweep": {"expect": []}}, "mapping: sweep.expect: variants and sweeps cannot set expect"),
        (
            {"variants": {"x": {"model.hedas": 1}}},
            "mapping: variants.x.model.hedas: unknown key; did you mean model.heads?",
        ),
        ({"variants": {"x": {"lr": 1}}}, "mapping: variants.x.lr: unknown key; optimizer.lr is where lr lives"),
        (
            {"variants": {"x": {"model.layers": 1, "model": {"layers": 2}}}},
            "mapping: variants.x.model.layers: given twice",
        ),
        ({"variants": {"x": {"model": 3}}}, "mapping: variants.x.model: expected a mapping of keys, got 3"),
        ({"sweep": {"sede": [1]}}, "mapping: sweep.sede: unknown key; did you mean seed?"),
        ({"sweep": {"seed": 3}}, "mapping: sweep.seed: expected a list of values for seed, got 3"),
        ({"sweep": {"seed": []}}, "mapping: sweep.seed: expected a list of values for seed, got []"),
        ({"sweep": None}, "mapping: sweep: expected a mapping of keys and their values, got null"),
        ({"sweep": {"seed": [0, -1]}}, "mapping: sweep.seed[1]: expected a whole number >= 0 and < 4294967296, got -1"),
        (
            {"sweep": {"optimizer.lr": [1.0, 1.0]}},
            "mapping: sweep.optimizer.lr[1]: 1.0 has the same name as a value before it",
        ),
        (
            {"sweep": {"data.path": ["a/b", "a b"]}},
            "mapping: sweep.data.path[1]: 'a b' has the same name as a value before it",
        ),
        (
            {"variants": {"x": {"seed": 1}}, "sweep": {"seed": [0]}},
            "mapping: variants.x.seed: the sweep sets seed too; keep one of them",
        ),
        (
            {"sweep": {"seed": list(range(501)), "optimizer.lr": [1.0, 2.0]}},
            f"mapping: sweep: expected at most {MAX_VARIANTS} variants, got 1 * 501 * 2 = 1002",
        ),
        (
            {"sweep": {"data.path": ["x" * 120]}},
            f"mapping: sweep: expected a folder name of at most 120 characters, got 130: "
            f"'main,path={'x' * 36}...{'x' * 9}'",
        ),
    ],
)
def test_variants_and_sweeps_that_are_refused(keys, expected):
    if expected:
        assert refusal(**keys) == expected
    else:  # odd, and harmless: all folders differ
        assert len(set(names(**keys))) == len(names(**keys)) > 1


def test_a_thousand_variants_take_no_time():
    start = time.perf_counter()
    assert len(names(sweep={"seed": list(range(MAX_VARIANTS))})) == MAX_VARIANTS
    assert time.perf_counter() - start < 5
    many = {f"v{index}": {} for index in range(MAX_VARIANTS + 1)}
    assert refusal(variants=many) == f"mapping: variants: expected at most {MAX_VARIANTS} variants, got 1001"


TEXT = """name: a
model: {heads: 4, width: 128}
variants:
  with: {}
  narrow: {model.width: 6}
  odd: {model.heads: 5}
"""


def problems(folder, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, *overrides)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


def test_a_conflict_in_a_variant_is_reported_there(tmp_path):
    expected = [
        "a.yaml:5: model.heads: expected a divisor of width 6 (nearest: 2, 3, 6), got 4 (variant narrow)",
        "a.yaml:6: variants.odd.model.heads: expected a divisor of width 128 (nearest: 2, 4, 8), got 5",
    ]
    assert problems(tmp_path, TEXT) == expected
    assert problems(tmp_path, TEXT + "sweep: {seed: [0, 1, 2]}\n") == expected


def test_a_conflict_in_the_base_is_reported_once(tmp_path):
    text = "name: a\nmodel: {heads: 5}\nvariants: {x: {}, y: {seed: 1}, z: {model.layers: 2}}\n"
    message = "a.yaml:2: model.heads: expected a divisor of width 128 (nearest: 2, 4, 8), got 5"
    assert problems(tmp_path, text) == [message]


def test_a_conflict_in_a_sweep_is_reported_at_its_value(tmp_path):
    text = "name: a\nvariants: {x: {}, y: {}}\nsweep:\n  optimizer.lr:\n  - 1e-2\n  - 1e-5\n"
    assert problems(tmp_path, text + "  optimizer.min_lr: [1e-6, 1e-3]\n") == [
        "a.yaml:7: sweep.optimizer.min_lr[1]: expected at most optimizer.lr 1e-5 unless schedule is constant, "
        "got 0.001",
    ]
    assert problems(tmp_path, text) == [
        "a.yaml:6: optimizer.min_lr: expected at most optimizer.lr 1e-5 unless schedule is constant, "
        "got 0.0001 (its default): set both (variant x,lr=1e-5 and 1 more)",
    ]


def test_a_wrong_value_in_the_base_counts_even_where_all_variants_replace_it(tmp_path):
    text = "name: a\nmodel: {layers: 0}\nvariants: {x: {model.layers: 1}}\n"
    message = "a.yaml:2: model.layers: expected a whole number >= 1 and <= 10000, got 0"
    assert problems(tmp_path, text) == [message]


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


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"mian": {"loss": [1, 2]}}, "expect.mian: no such variant; did you mean main?"),
        ({"main": 3}, "expect.main: expected a mapping of tags to [low, high], got 3"),
        ({"main": {"loss": [2, 1]}}, "expect.main.loss: expected low <= high, got [2, 1]"),
        ({"main": {"loss": [2]}}, "expect.main.loss: expected [low, high], two numbers, got [2]"),
        ({"main": {"loss": [True, 2]}}, "expect.main.loss: expected [low, high], two numbers, got [true, 2]"),
        ({"main": {"loss": [0, float("inf")]}}, "expect.main.loss: expected [low, high], two numbers, got [0, .inf]"),
        ({"main": {"loss": "low"}}, "expect.main.loss: expected [low, high], two numbers, got 'low'"),
        (
            {"main": {"verdict": [0, 1]}},
            f"expect.main.verdict: expected one of {', '.join(STATES)}, got [0, 1]",
        ),
        (
            {"main": {"verdict": "helthy"}},
            f"expect.main.verdict: expected one of {', '.join(STATES)}, got 'helthy'; did you mean healthy?",
        ),
        ([1], "expect: expected a mapping of variants and their results, got [1]"),
    ],
)
def test_expectations_that_are_refused(expect, message):
    assert refusal(expect=expect) == f"mapping: {message}"


def test_overrides_of_variants_and_sweep_leave_out_what_was_expected_of_others(tmp_path):
    text = "name: a\nvariants: {x: {}, y: {}}\nexpect: {x: {loss: [1, 2]}, y: {loss: [3, 4]}}\n"
    assert loaded(tmp_path, text, "variants={}").expect == {}
    assert loaded(tmp_path, text, "variants={x: {}}", "expect.x.acc=[0, 1]").expect == {
        "x": {"loss": [1, 2], "acc": [0, 1]}
    }
    message = "command line: expect.z: no such variant"
    assert problems(tmp_path, text, "variants={}", "expect.z={loss: [0, 1]}") == [message]
