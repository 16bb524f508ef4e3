"""A run directory whose files were edited to nonsense: one line from whoever reads it, and nothing of it is used."""

import json
import os
import pickle
import shutil

import pytest

from train.cli import main

DEEP = b"[" * 100_000
HUGE = b'{"steps": ' + b"9" * 5000 + b"}"
NONSENSE = {
    "empty": b"",
    "list": b"[1, 2]",
    "text": b'"a"',
    "number": b"1e999",
    "cut": b'{"a": ',
    "not JSON": b"\x80\x04nonsense",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NUL": b"\0" * 99,
    "deep": DEEP,
    "huge number": HUGE,
    "pickle": pickle.dumps({"a": 1}),
}


@pytest.fixture
def run(trained, tmp_path):
    """(config, run directory) of a copy of the finished run."""
    config, there = trained
    shutil.copytree(there.parent.parent, tmp_path / "runs")
    copied = tmp_path / "config.yaml"
    text = config.read_text(encoding="utf-8").replace(str(there.parent.parent), str(tmp_path / "runs"))
    copied.write_text(text, encoding="utf-8")
    return copied, tmp_path / "runs" / "tiny" / "with"


def call(capsys, *arguments) -> tuple[int, str]:
    """(exit code, stderr): one line, or one a problem of a config."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == (1 if code else 0) or (code == 2 and "config.yaml:" in err), err
    return code, err


def commands(config, directory) -> dict[str, list]:
    return {
        "train": ["train", config],
        "sample": ["sample", directory, "--tokens", 1, "--prompt", "the"],
        "probe": ["probe", config, "variants={}", "--checkpoint", directory],
        "compare": ["compare", directory],
    }


# File -> the commands that read it.
READERS = {
    "config.yaml": ("train", "sample", "probe", "compare"),
    "tokenizer.json": ("train", "sample"),
    "data.json": ("train",),
    "choices.json": ("train",),
    "summary.json": ("train", "compare"),
    "metrics.jsonl": ("compare",),
}


@pytest.mark.parametrize(("name", "command"), [(name, c) for name, found in READERS.items() for c in found])
def test_nonsense_in_a_file_is_one_line_of_whoever_reads_it(run, capsys, name, command):
    config, directory = run
    for what, content in NONSENSE.items():
        (directory / name).write_bytes(content)
        code, err = call(capsys, *commands(config, directory)[command])
        assert code == 2, (what, err)
        cut_short = ("empty", "cut", "list", "text", "number", "NUL", "deep", "huge number")
        if name != "metrics.jsonl" or what not in cut_short:  # a last line alone, so nothing to show
            assert name in err, (what, err)
            assert str(directory) in err or "variant" in err


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run, capsys, name):
    config, directory = run
    (directory / name).unlink()
    os.mkfifo(directory / name)
    for command in READERS[name]:
        code, err = call(capsys, *commands(config, directory)[command])
        assert code in (1, 2) and str(directory) in err, command


EDITED = [
    ({"verdict": 3}, "verdict"),
    ({"verdict": {"state": "healthy"}}, "verdict.why"),
    ({"verdict": {"state": "healthy", "why": 3}}, "verdict.why"),
    ({"verdict_end": {"state": "a", "why": "b", "ratio": "x"}}, "verdict_end.ratio"),
    ({"steps": "forty"}, "steps"),
    ({"steps_per_s": [1]}, "steps_per_s"),
    ({"steps_per_s": 10**400}, "steps_per_s"),
    ({"versions": {"jax": 3}}, "versions.jax"),
    ({"floors": [1]}, "floors"),
    ({"variant": ["x"]}, "variant"),
    ({"first_nonfinite_step": "x"}, "first_nonfinite_step"),
]


@pytest.mark.parametrize(("change", "key"), EDITED, ids=lambda x: str(x)[:30])
def test_a_summary_with_other_values_is_named(run, capsys, change, key, wording):
    config, directory = run
    path = directory / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(summary | change), encoding="utf-8")
    for command in READERS["summary.json"]:
        code, err = call(capsys, *commands(config, directory)[command])
        assert code == 2
        wording(err, f"{path}: {key}", volatile="(?<=dictionary) or instance of \\w+")


def test_a_summary_that_is_gone_or_another_variant_s_is_rewritten(run, capsys, wording):
    config, directory = run
    path = directory / "summary.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(before | {"variant": "without_skip"}), encoding="utf-8")
    code, err = call(capsys, "train", config)
    assert code == 2
    wording(err, f"{path}: variant")
    path.unlink()
    assert call(capsys, "train", config)[0] == 0
    again = json.loads(path.read_text(encoding="utf-8"))
    assert {key: again[key] for key in ("variant", "steps", "loss_train", "loss_val")} == {
        key: before[key] for key in ("variant", "steps", "loss_train", "loss_val")
    }


@pytest.mark.parametrize("content", ["", '{"steps_per', '{"steps_per_call": 0}', '{"steps_per_call": true}', "[8]"])
def test_steps_of_a_dispatch_that_cannot_be_read_are_chosen_again_where_that_file_is_gone(
    run, capsys, content, wording
):
    config, directory = run
    path = directory / "choices.json"
    path.write_text(content, encoding="utf-8")
    code, err = call(capsys, "train", config)
    assert code == 2
    wording(err, path)
    path.unlink()
    assert call(capsys, "train", config)[0] == 0


@pytest.mark.parametrize(
    "row",
    [
        '{"step": "1", "loss/train": 2}',
        '{"step": 1.5, "loss/train": 2}',
        '{"step": true, "loss/train": 2}',
        '{"step": -1, "loss/train": 2}',
        '{"step": 9223372036854775808, "loss/train": 2}',
        '{"step": 41, "loss/train": [2]}',
        '{"step": 41, "loss/train": 1' + "0" * 400 + "}",
        '{"step": 41, "nonfinite": 3}',
        '{"step": 40, "loss/train": 2}',
    ],
)
def test_a_row_that_is_none_is_named_by_its_line(run, capsys, row, wording):
    _, directory = run
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["step"] == 40
    path.write_text("\n".join([*lines, row, '{"step": 50}']) + "\n", encoding="utf-8")
    code, err = call(capsys, "compare", directory)
    assert code == 2 and " 40," in err
    wording(err, f"{path}:{len(lines) + 1}", volatile="(?<=got ).*")
