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


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "1"),
        (b"name: a\n# caf\xe9\n", "2"),
        (b"\xef\xbb\xbfname: \xff\n", "1"),
        (b"\xff\xfen\x00a\x00m\x00e\x00:\x00 \x00a\x00\n\x00", "1"),
        ("# " + "x" * 2**18, ""),
        ("name: " + "[" * 5000, "1"),
        ("name: a\nx: [" + "1," * 60_000 + "]", "2"),
        ("name: a\nseed: " + "1" * 5000, "2: seed"),
        ("name: a\nmodel:\n\tlayers: 1", "3"),
        ("name: a\nseed: \0", "2"),
        (f"name: a\nsweep: {{seed: [{A_LIST}], optimizer.lr: [1.0, 2.0]}}", "2: sweep"),
        (f"name: a\nsweep: {{data.path: [{'x' * 120}]}}", "2: sweep"),
        ("name: a\nruns_dir: runs/" + "a" * 256, "2: runs_dir"),
        ("name: a\nruns_dir: " + "é" * 128, "2: runs_dir"),
        ("name: a\nruns_dir: " + "a/" * 1501, "2: runs_dir"),
    ],
    ids=lambda x: ascii(x[:40])[1:-1] if len(x) > 9 else None,
)
def test_faults_of_files_that_are_long_or_no_text(tmp_path, wording, text, place):
    (line,) = lines(tmp_path, text)
    wording(line, f"a.yaml:{place}".removesuffix(":"))


@pytest.mark.parametrize(("override", "key"), [("data.path=\udcff", "data.path"), ("se\ned=1", "se\\ned")])
def test_faults_of_overrides_that_are_no_text(tmp_path, wording, override, key):
    (line,) = lines(tmp_path, "name: a", override)
    wording(line, f"command line: {key}")


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
