"""Every fault of a config: its place, its key and the words, of the configs in tests/messages.txt and of others."""

import pytest

from tests.messages import CONFIGS
from tests.problems import lines


@pytest.mark.parametrize("block", CONFIGS, ids=range(1, len(CONFIGS) + 1))
def test_each_fault_is_reported_at_its_place_and_key(tmp_path, wording, block):
    given = [line[1:].removeprefix(" ") for line in block.splitlines() if line[0] == ">"]
    overrides = [line[2:] for line in block.splitlines() if line[0] == "$"]
    wording("\n".join(lines(tmp_path, "\n".join([*given, ""]), *overrides)))


A_LIST = ", ".join(map(str, range(501)))
LONG = "expected names of at most 255 bytes, got 256: "


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "1: expected a mapping of keys, got nothing; {} is an empty one"),
        (b"name: a\n# caf\xe9\n", "2: expected UTF-8 text, got byte 0xe9 at offset 13"),
        (b"\xef\xbb\xbfname: \xff\n", "1: expected UTF-8 text, got byte 0xff at offset 9"),
        (b"\xff\xfen\x00a\x00m\x00e\x00:\x00 \x00a\x00\n\x00", "1: expected UTF-8 text, got byte 0xff at offset 0"),
        ("# " + "x" * 2**18, " expected at most 262144 bytes"),
        ("name: " + "[" * 5000, "1: expected at most 32 levels"),
        ("name: a\nx: [" + "1," * 60_000 + "]", "2: expected at most 10000 values"),
        (
            "name: a\nseed: " + "1" * 5000,
            f"2: seed: expected a whole number that fits in 64 bits, got {'1' * 27}...{'1' * 10}",
        ),
        (
            "name: a\nmodel:\n\tlayers: 1",
            "3: not valid YAML: while scanning for the next token, found character '\\t' that cannot start any token; "
            "write spaces, not tabs",
        ),
        ("name: a\nseed: \0", "2: control character U+0000; expected text"),
        (
            f"name: a\nsweep: {{seed: [{A_LIST}], optimizer.lr: [1.0, 2.0]}}",
            "2: sweep: expected at most 1000 variants, got 1 * 501 * 2 = 1002",
        ),
        (
            f"name: a\nsweep: {{data.path: [{'x' * 120}]}}",
            f"2: sweep: expected a folder name of at most 120 characters, got 130: 'main,path={'x' * 36}...{'x' * 9}'",
        ),
        ("name: a\nruns_dir: runs/" + "a" * 256, f"2: runs_dir: {LONG}'{'a' * 46}...{'a' * 9}'"),
        ("name: a\nruns_dir: " + "é" * 128, f"2: runs_dir: {LONG}'{'é' * 46}...{'é' * 9}'"),
        ("name: a\nruns_dir: " + "a/" * 1501, "2: runs_dir: expected a path of at most 3000 bytes, got 3002"),
    ],
)
def test_faults_of_files_that_are_long_or_no_text(tmp_path, text, line):
    assert lines(tmp_path, text) == [f"a.yaml:{line}"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.path=\udcff", "data.path: control character U+DCFF; expected text"),
        ("se\ned=1", "se\\ned: unknown key; did you mean seed?"),
    ],
)
def test_faults_of_overrides_that_are_no_text(tmp_path, override, line):
    assert lines(tmp_path, "name: a", override) == [f"command line: {line}"]


FINE = [
    b"\xef\xbb\xbfname: a\r\nseed: 3\r\n",
    "name: a\noptimizer: {lr: 1e-5, schedule: constant}",
    "name: a\nmodel: {attention: full}\ndata: {kind: digits}",
    "name: a\ntrain: {steps: 99}",
    "name: a\ntrain: {steps_per_call: 250}\nwatch: {every: 0}",
    "name: a\ntrain: {steps_per_call: 50}",
    "name: a\ntrain: {steps_per_call: 5}",
    "name: a\ntrain: {dtype: float64, device: cpu}",
    "name: a\ntask: {kind: regression}\ndata: {kind: digits}",
    "name: a\nmodel: {skip_scale: 3.4e38}",
    "name: a\nmodel: {skip_scale: 1e300, init_gain: {attn_v: 1e-50}}\ntrain: {dtype: float64}",
    "name: a\nmesh: {data: 1}",
    "name: a\ndata: {corpus: shakespeare}\nvariants: {x: {data.path: x.txt}}",
    "name: a\nmodel.residual: {rule: mhc, streams: 2}\nvariants: {x: {model.residual: rezero}}",
]


@pytest.mark.parametrize("text", FINE, ids=range(len(FINE)))
def test_configs_without_fault(tmp_path, text):
    assert lines(tmp_path, text) == []
