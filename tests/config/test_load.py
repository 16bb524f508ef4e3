"""Reading a config: files, the exact text of every error, overrides, and the way back to YAML."""

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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["a.yaml:1: expected a mapping of keys, got nothing"]),
        ("- 1\n", ["a.yaml:1: expected a mapping of keys, got [1]"]),
        ("name: a\nmodel: {layers: 1}\nmodel.layers: 2\n", ["a.yaml:3: model.layers: given twice; first on line 2"]),
        ("name: a\nseed: 1\nseed: x\n", ["a.yaml:3: seed: given twice; first on line 2"]),
        (
            "name: *n\nseed: x\n",
            [
                "a.yaml:1: name: aliases are not supported; write the value of *n out",
                "a.yaml:2: seed: expected a whole number >= 0 and < 4294967296, got 'x'",
            ],
        ),
        (b"name: a\n# caf\xe9\n", ["a.yaml:2: expected UTF-8 text, got byte 0xe9 at offset 13"]),
        (b"\xef\xbb\xbfname: \xff\n", ["a.yaml:1: expected UTF-8 text, got byte 0xff at offset 9"]),
        ("name: a\n".encode("utf-16"), ["a.yaml:1: expected UTF-8 text, got byte 0xff at offset 0"]),
        ("# " + "x" * 2**18, ["a.yaml: expected at most 262144 bytes"]),
        (b"\xef\xbb\xbfname: a\r\nseed: 3\r\n", []),
    ],
)
def test_files_that_hold_no_config(tmp_path, text, expected):
    assert lines(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {layers: 1}", ["a.yaml: name: missing; expected text of 1 to 100 characters"]),
        ("name: 8", ["a.yaml:1: name: expected text of 1 to 100 characters, got 8; put quotes around it"]),
        (
            "name: ../x",
            [
                "a.yaml:1: name: expected a folder name (letters, digits and _ . , = + -, the first a letter or "
                "digit, no '..'), got '../x'"
            ],
        ),
        (
            "name: a..b",
            [
                "a.yaml:1: name: expected a folder name (letters, digits and _ . , = + -, the first a letter or "
                "digit, no '..'), got 'a..b'"
            ],
        ),
        ("name: a\nmodel:", ["a.yaml:2: model: expected a mapping of keys, got null"]),
        ("name: a\nmodel:\n  hedas: 8", ["a.yaml:3: model.hedas: unknown key; did you mean heads?"]),
        ("name: a\nmodel: {lr: 8}", ["a.yaml:2: model.lr: unknown key; optimizer.lr is where lr lives"]),
        ("name: a\nlayers: 8", ["a.yaml:2: layers: unknown key; model.layers is where layers lives"]),
        ("name: a\nmodel: {seed: 8}", ["a.yaml:2: model.seed: unknown key; seed and data.seed are where seed lives"]),
        ("name: a\noptimzer: {lr: 1}", ["a.yaml:2: optimzer: unknown key; did you mean optimizer?"]),
        (
            "name: a\nwatch: {zzz: 8}",
            ["a.yaml:2: watch.zzz: unknown key; watch has every, counterfactual, instruments, curvature_batches"],
        ),
        ("name: a\nseed.x: 1", ["a.yaml:2: seed.x: unknown key; seed expects a whole number >= 0 and < 4294967296"]),
        (
            'name: a\nmodel: {layers: "8"}',
            ["a.yaml:2: model.layers: expected a whole number >= 1 and <= 10000, got '8'"],
        ),
        (
            "name: a\nmodel: {layers: true}",
            ["a.yaml:2: model.layers: expected a whole number >= 1 and <= 10000, got true"],
        ),
        (
            "name: a\nmodel: {layers: 8.0}",
            ["a.yaml:2: model.layers: expected a whole number >= 1 and <= 10000, got 8.0"],
        ),
        ("name: a\nmodel: {layers: 0}", ["a.yaml:2: model.layers: expected a whole number >= 1 and <= 10000, got 0"]),
        ("name: a\nmodel: {kv_heads: 0}", ["a.yaml:2: model.kv_heads: expected a whole number >= 1 or null, got 0"]),
        ("name: a\nmodel: {norm_gain: yes}", ["a.yaml:2: model.norm_gain: expected true or false, got 'yes'"]),
        (
            "name: a\nmodel: {activation: gleu}",
            [
                "a.yaml:2: model.activation: expected one of gelu, relu, relu2, silu, swiglu, geglu, linear, "
                "got 'gleu'; did you mean gelu?"
            ],
        ),
        ("name: a\nmodel: {norm: null}", ["a.yaml:2: model.norm: expected one of rms, layer, none, got null"]),
        (
            "name: a\ndata: {corpus: shakespear}",
            [
                "a.yaml:2: data.corpus: expected one of python-docs, shakespeare, null, got 'shakespear'; "
                "did you mean shakespeare?"
            ],
        ),
        ("name: a\noptimizer: {lr: fast}", ["a.yaml:2: optimizer.lr: expected a number >= 0, got 'fast'"]),
        ("name: a\noptimizer: {lr: .inf}", ["a.yaml:2: optimizer.lr: expected a number >= 0, got .inf"]),
        ("name: a\noptimizer: {lr: 1e999}", ["a.yaml:2: optimizer.lr: expected a number >= 0, got .inf"]),
        ("name: a\nmodel: {dropout: .nan}", ["a.yaml:2: model.dropout: expected a number >= 0 and < 1, got .nan"]),
        (
            "name: a\noptimizer:\n  betas:\n  - 1\n  - x",
            ["a.yaml:3: optimizer.betas: expected a list of 2 numbers, got [1, 'x']"],
        ),
        ("name: a\noptimizer: {betas: [0.9]}", ["a.yaml:2: optimizer.betas: expected a list of 2 numbers, got [0.9]"]),
        (
            "name: a\ntrain: {steps_per_call: 1.5}",
            ["a.yaml:2: train.steps_per_call: expected auto or a whole number, got 1.5"],
        ),
        ("name: a\nmesh: {fsdp: true}", ["a.yaml:2: mesh.fsdp: expected 1, got true"]),
        (
            "name: a\ndata: {path: 3}",
            ["a.yaml:2: data.path: expected text of 1 or more characters or null, got 3; put quotes around it"],
        ),
    ],
)
def test_fields_that_are_refused(tmp_path, text, expected):
    assert lines(tmp_path, text) == expected


FLOAT32 = "expected 0 or a size from 1.2e-38 to 3.4e38 (float32's range)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {heads: 5}", ["a.yaml:2: model.heads: expected a divisor of width 128 (nearest: 2, 4, 8), got 5"]),
        ("model: {width: 6}", ["a.yaml:2: model.heads: expected a divisor of width 6 (nearest: 2, 3, 6), got 4"]),
        (
            "model: {width: 9223372036854775807}",
            ["a.yaml:2: model.width: expected at most 32768, got 9223372036854775807"],
        ),
        ("model: {mlp_ratio: 1e308}", ["a.yaml:2: model.mlp_ratio: expected at most 10000000 / width 128, got 1e308"]),
        (
            "data: {corpus: shakespeare, path: x}",
            ["a.yaml:2: data.path: give corpus or path, not both (corpus is 'shakespeare')"],
        ),
        (
            "optimizer: {lr: 1e-5}",
            [
                "a.yaml:2: optimizer.min_lr: expected at most optimizer.lr 1e-5 unless schedule is constant, "
                "got 0.0001 (its default): set both"
            ],
        ),
        ("optimizer: {lr: 1e-5, schedule: constant}", []),
        (
            "model: {attention: full}",
            [
                "a.yaml:2: model.attention: full would show each token the one it is to tell; "
                "data.kind text needs causal"
            ],
        ),
        ("model: {attention: full}\ndata: {kind: digits}", []),
        (
            "model: {residual: highway, skip_scale: 0.0}",
            ["a.yaml:2: model.skip_scale: highway has none; leave it at 1, got 0.0"],
        ),
        (
            "model: {residual: {rule: hyper_connections, gate: 0.1}}",
            ["a.yaml:2: model.residual.gate: an option of dynamic hyper_connections; residual.dynamic is false"],
        ),
        (
            "model: {init_gain: {mlp_gate: 2.0}}",
            ["a.yaml:2: model.init_gain.mlp_gate: activation gelu has no gate; it is for swiglu and geglu"],
        ),
        (
            "data: {kind: linear_regression}\ntask: {z_loss: 0.1}",
            ["a.yaml:3: task.z_loss: regression has no classes, got 0.1"],
        ),
        (
            "variants:\n  a: {train.device: cpu}\n  b: {}\n  c: {train.device: cpu, train.dtype: float64}",
            [
                "a.yaml:3: train.device: expected the same in all variants, got 'cpu' and 'auto'",
                "a.yaml:5: train.dtype: expected float64 in all variants or in none, got 'auto' and 'float64'",
            ],
        ),
        ("train: {steps: 99}", []),
        ("train: {steps: 100}", []),
        (
            "optimizer: {accumulate: 3}",
            ["a.yaml:2: optimizer.accumulate: expected a divisor of data.batch 16 (nearest: 2, 4), got 3"],
        ),
        (
            "optimizer: {accumulate: 17}",
            ["a.yaml:2: optimizer.accumulate: expected a divisor of data.batch 16 (nearest: 16), got 17"],
        ),
        (
            "optimizer: {betas: [0, 1]}",
            ["a.yaml:2: optimizer.betas: expected two numbers >= 0 and < 1, got [0.0, 1.0]"],
        ),
        ("train: {steps_per_call: 0}", ["a.yaml:2: train.steps_per_call: expected auto or a whole number >= 1, got 0"]),
        (
            "train: {steps_per_call: 20}",
            [
                "a.yaml:2: train.steps_per_call: expected a divisor of train.eval_every 250 and "
                "train.checkpoint_every 500 (the largest is 250), got 20"
            ],
        ),
        (
            "train: {steps_per_call: 20, eval_every: 30}\nwatch: {every: 0}",
            [
                "a.yaml:2: train.steps_per_call: expected a divisor of train.eval_every 30 and "
                "train.checkpoint_every 500 (the largest is 10), got 20"
            ],
        ),
        ("train: {steps_per_call: 250}\nwatch: {every: 0}", []),
        ("train: {steps_per_call: 50}", []),
        ("train: {steps_per_call: 5}", []),
        (
            "train: {steps_per_call: 25}",
            ["a.yaml:2: train.steps_per_call: expected a divisor or a multiple of watch.every 10, got 25"],
        ),
        ("train: {unroll: 0}", ["a.yaml:2: train.unroll: expected auto or a whole number >= 1, got 0"]),
        (
            "train: {dtype: float64, device: gpu}",
            ["a.yaml:2: train.dtype: float64 needs train.device auto or cpu, got gpu"],
        ),
        ("train: {dtype: float64, device: cpu}", []),
        ("task: {kind: regression}", ["a.yaml:2: task.kind: data.kind text is for lm, got regression"]),
        ("task: {kind: regression}\ndata: {kind: digits}", []),
        ("optimizer: {lr: 3.5e38}", [f"a.yaml:2: optimizer.lr: {FLOAT32}, got 3.5e38"]),
        ("model: {skip_scale: -1e39}", [f"a.yaml:2: model.skip_scale: {FLOAT32}, got -1e39"]),
        ("model: {init_gain: {attn_v: 1e-50}}", [f"a.yaml:2: model.init_gain.attn_v: {FLOAT32}, got 1e-50"]),
        ("model: {skip_scale: 3.4e38}", []),
        ("model: {skip_scale: 1e300, init_gain: {attn_v: 1e-50}}\ntrain: {dtype: float64}", []),
        ("mesh: {data: 1}", []),
        ("mesh: {data: 4}", ["a.yaml:2: mesh.data: expected one of -1, 1, got 4"]),
    ],
)
def test_keys_that_do_not_go_together(tmp_path, text, expected):
    assert lines(tmp_path, f"name: a\n{text}\n") == expected


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path):
    text = """name: a
model:
  hedas: 8
  width: 130            # not even looked at: hedas may have meant heads
optimizer: {lr: fast, betas: [0.9, 1.5]}
train:
  steps: 150
  dtype: float64
  device: tpu
extra: [1]
"""
    assert lines(tmp_path, text, "optimizer.eps=0") == [
        "a.yaml:3: model.hedas: unknown key; did you mean heads?",
        "a.yaml:5: optimizer.lr: expected a number >= 0, got 'fast'",
        "a.yaml:5: optimizer.betas: expected two numbers >= 0 and < 1, got [0.9, 1.5]",
        "a.yaml:8: train.dtype: float64 needs train.device auto or cpu, got tpu",
        "a.yaml:10: extra: unknown key; the top level has name, seed, runs_dir, model, data, task, "
        "optimizer, train, watch, "
        "mesh, variants, sweep, expect",
        "command line: optimizer.eps: expected a number > 0, got 0",
    ]


def test_a_misspelt_section_silences_only_checks_of_what_it_may_have_set(tmp_path):
    assert lines(tmp_path, "name: a\noptimzer: {min_lr: 1e-5}\noptimizer: {lr: 1e-5}\n") == [
        "a.yaml:2: optimzer: unknown key; did you mean optimizer?"
    ]
    assert lines(tmp_path, "name: a\noptimzer: {}\noptimizer: {betas: [2, 2]}\n") == [
        "a.yaml:2: optimzer: unknown key; did you mean optimizer?",
        "a.yaml:3: optimizer.betas: expected two numbers >= 0 and < 1, got [2.0, 2.0]",
    ]


def test_many_problems_are_counted_not_all_printed():
    with pytest.raises(ConfigError) as caught:
        from_mapping({"name": "a", **{f"zz{index}": 1 for index in range(70)}})
    assert len(caught.value.problems) == 70
    assert len(str(caught.value).splitlines()) == 51 and str(caught.value).endswith("\nand 20 more")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer.lr=fast"], ["command line: optimizer.lr: expected a number >= 0, got 'fast'"]),
        (["model.hedas=4"], ["command line: model.hedas: unknown key; did you mean model.heads?"]),
        (["optimzer.lr=1"], ["command line: optimzer.lr: unknown key; did you mean optimizer.lr?"]),
        (["layers=1"], ["command line: layers: unknown key; model.layers is where layers lives"]),
        (["optimizer.lr.x=1"], ["command line: optimizer.lr.x: unknown key; optimizer.lr expects a number >= 0"]),
        (["seed"], ["command line: expected key=value, such as optimizer.lr=3e-4, got 'seed'"]),
        (["=1"], ["command line: expected key=value, such as optimizer.lr=3e-4, got '=1'"]),
        (["model..layers=1"], ["command line: expected key=value, such as optimizer.lr=3e-4, got 'model..layers=1'"]),
        (["seed="], ["command line: seed: expected a whole number >= 0 and < 4294967296, got null"]),
        (["model=3"], ["command line: model: expected a mapping of keys, got 3"]),
        (
            ["optimizer.betas=[0.9"],
            [
                "command line: optimizer.betas: not valid YAML: while parsing a flow sequence, expected ',' or ']', "
                "but got '<stream end>'"
            ],
        ),
        (["variants.wiht.seed=1"], ["command line: variants.wiht.seed: no such variant; did you mean with?"]),
        (["variants.with.sede=1"], ["command line: variants.with.sede: unknown key; did you mean seed?"]),
        (["variants.with.name=b"], ["command line: variants.with.name: variants and sweeps cannot set name"]),
        (["data.path=\udcff"], ["command line: data.path: control character U+DCFF; expected text"]),
        (["se\ned=1"], ["command line: se\\ned: unknown key; did you mean seed?"]),
    ],
)
def test_overrides_that_are_refused(tmp_path, overrides, expected):
    assert lines(tmp_path, "name: a\nvariants: {with: {}}\n", *overrides) == expected


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("residual", "model.residual is where residual lives"),
        ("block_size", "did you mean data.context?"),
        ("model.n_embd", "did you mean model.width?"),
        ("model.depth", "did you mean model.layers?"),
        ("optimizer.type", "did you mean optimizer.name?"),
        ("train.epochs", "did you mean train.steps?"),
        ("learning_rate", "did you mean optimizer.lr?"),
    ],
)
def test_what_others_call_it(tmp_path, key, meant):
    (line,) = lines(tmp_path, "name: a", f"{key}=1")
    assert line.startswith(f"command line: {key}: unknown key; {meant}")


def test_a_default_that_no_longer_fits_is_called_one(tmp_path):
    (line,) = lines(tmp_path, "name: a", "optimizer.lr=1e-5")
    assert line.endswith("got 0.0001 (its default): set both")
    (line,) = lines(tmp_path, "name: a\noptimizer: {min_lr: 1e-3}", "optimizer.lr=1e-5")
    assert line.endswith("got 0.001")


def test_a_path_of_the_command_line_takes_the_place_of_the_files_corpus(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\ndata: {corpus: shakespeare}")
    data = load(path, ["data.path=x.txt"]).variants[0].config.data
    assert (data.corpus, data.path) == (None, "x.txt")
    assert load(path, ["data.path=null"]).variants[0].config.data.corpus == "shakespeare"
    path.write_text("name: a\ndata: {path: x.txt}")
    data = load(path, ["data.corpus=shakespeare"]).variants[0].config.data
    assert (data.corpus, data.path) == ("shakespeare", None)
    both = ["data.corpus=shakespeare", "data.path=x.txt"]
    assert "give corpus or path, not both" in lines(tmp_path, "name: a", *both)[0]


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


def test_what_is_not_a_readable_file(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("name: a\n")
    near, far = tmp_path / "quikstart.yaml", tmp_path / "zzz"
    assert refusal(near) == f"{near}: no such file; did you mean {tmp_path / 'quickstart.yaml'}?"
    assert refusal(far) == f"{far}: no such file"
    assert refusal(tmp_path / "quickstart.yaml" / "x.yaml").endswith("x.yaml: no such file")
    assert refusal("a\0b") == "a\\x00b: cannot be read: " + ("embedded null byte" if os.name == "posix" else "")
    assert refusal("x" * 5000).endswith(": cannot be read: File name too long")
    assert refusal(tmp_path) == f"{tmp_path}: expected a file, got a folder"


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with a name")
def test_a_pipe_or_device_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == f"{tmp_path / 'pipe'}: expected a file, got a pipe"
    assert refusal("/dev/zero") == "/dev/zero: expected a file, got a device"


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\n")

    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    assert refusal(path) == f"{path}: cannot be read: Permission denied"


def test_a_mapping_is_held_to_the_same_rules():
    loop: list[Any] = []
    loop.append(loop)
    for mapping, expected in [
        ({"name": "a", "model": {"hedas": 1}}, "mapping: model.hedas: unknown key; did you mean heads?"),
        ({"name": "a", 3: 1}, "mapping: expected a key that is text, got 3"),
        (
            {"name": "a", "data": {"path": Path("x")}},
            f"mapping: data.path: expected a plain value, got {type(Path()).__name__}",
        ),
        ({"name": "a", "seed": 2**64}, "mapping: seed: expected a plain value, got a number beyond 64 bits"),
        ({"name": "a", "optimizer": {"betas": loop}}, "mapping: optimizer.betas[0]: expected at most 32 levels"),
        ([], "mapping: expected a mapping of keys, got []"),
    ]:
        with pytest.raises(ConfigError) as caught:
            from_mapping(mapping)  # pyright: ignore[reportArgumentType]
        assert str(caught.value) == expected


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


@given(
    TEXT
    | st.sampled_from(
        [
            "a\u2028b",
            "\ufeffa",
            "a\tb ",
            "\n a",
            "null",
            "no",
            "~",
            "1e5",
            "0x1",
            "a: b",
            "- a",
            "#",
            '"',
            "\\",
            "'",
            "{}",
            "%",
            "...",
            ".inf",
        ]
    ),
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


SEED = b"""name: a
model: {layers: 2, residual: "none"}
optimizer:
  lr: 3e-4
  betas: [0.9, 0.99]
variants:
  with: {}
  without: {model.residual: none}
sweep: {seed: [0, 1], optimizer.lr: [1e-4]}
expect: {with: {loss/val: [1.5, 2.1], verdict: healthy}}
"""
PIECES = st.binary(max_size=3) | st.sampled_from(
    [
        b": ",
        b"- ",
        b"? ",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\n",
        b"  ",
        b"&a ",
        b"*a",
        b"!!int ",
        b"<<: ",
        b"'",
        b'"',
        b"|",
        b">-",
        b"---\n",
        b"...",
        b"%YAML ",
        b"\\U",
        b"\t",
        b"1" * 30,
        b"\xff",
        b"null",
        b"\xc2\x85",
        b"name",
        b".",
        b"\r",
    ]
)


@given(
    st.binary(max_size=200) | st.lists(PIECES, max_size=30).map(b"".join), st.text(max_size=20), st.text(max_size=20)
)
@QUIET
def test_random_bytes_raise_nothing_but_config_errors(tmp_path_factory, content, key, text):
    _survives(tmp_path_factory, content, [f"{key}={text}", text])


@given(st.lists(st.tuples(st.integers(0, len(SEED)), st.integers(0, 6), PIECES), min_size=1, max_size=4))
@QUIET
def test_a_mutated_file_raises_nothing_but_config_errors(tmp_path_factory, edits):
    content = SEED
    for at, cut, piece in edits:
        content = content[:at] + piece + content[at + cut :]
    _survives(tmp_path_factory, content, [])


def _survives(factory: pytest.TempPathFactory, content: bytes, overrides: list[str]) -> None:
    path = factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    try:
        load(path, overrides)
    except ConfigError as error:
        assert error.problems
        assert str(error).encode("utf-8")
        assert all(str(problem).isprintable() for problem in error.problems)
