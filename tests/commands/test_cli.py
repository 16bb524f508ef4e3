"""The command line: exit codes, errors in one line, what `sample` and `probe` print and write."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from model.network import Network
from model.residual import RULES
from train.cli import COMMANDS, main
from train.core.loss import tapped_loss
from train.core.probe import _delta, _sizes, finite, numbers
from train.disk import write_atomically
from train.errors import UserError
from train.gradflow.delta import Flow, backward
from train.gradflow.gradients import weight_dot_grad
from train.gradflow.norms import Norm, named, value
from train.gradflow.verdict import number
from train.run.sample import Generator
from train.store.checkpoint import Checkpoints
from train.store.rundir import read_config

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "probe.schema.json").read_text(encoding="utf-8"))


def call(capsys, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `deltaflow ARGUMENTS`; anything raised but SystemExit is a failed test."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.fixture
def folder(tmp_path, monkeypatch, corpus):
    """The current folder, with configs and corpora of every kind of wrong."""
    monkeypatch.chdir(tmp_path)
    good = "name: t\nmodel: {layers: 2, width: 16, heads: 2}\ndata: {path: %s, context: 8, batch: 4}\n"
    files = {
        "good.yaml": good % corpus,
        "bad_key.yaml": "name: t\nmodel:\n  layrs: 2\n",
        "bad_value.yaml": "name: t\nmodel: {layers: two}\n",
        "two.yaml": "name: t\nmodel: {layers: two}\ntrain:\n  stepz: 3\n",
        "cut.yaml": "name: t\nmodel: {layers: 2\n",
        "empty.yaml": "",
        "lost.yaml": good.replace("data: {", "data: {\n  ") % "nowhere.txt",
        "tpu.yaml": good % corpus + "train:\n  device: tpu\n",
        "empty.txt": "",
        "short.txt": "too short",
        "same.txt": "a" * 1000,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "hollow").mkdir()
    return tmp_path


@pytest.mark.parametrize("command", ["train", "probe"])
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["god.yaml"], 2, ["god.yaml: no such file; did you mean good.yaml?"]),
        (["other.yaml"], 2, ["other.yaml: no such file\n"]),
        (["https://a.org/c.yaml"], 2, ["https://a.org/c.yaml: is a URL", "download it first"]),
        (["file:///c.yaml"], 2, ["file:///c.yaml: is a URL; give the path alone"]),
        (["C:\\x\\c.yaml"], 2, ["c.yaml: is a path of Windows"]),
        (["."], 2, [".: expected a file, got a folder"]),
        (["empty.yaml"], 2, ["empty.yaml"]),
        (["cut.yaml"], 2, ["cut.yaml:"]),
        (["bad_key.yaml"], 2, ["bad_key.yaml:3: model.layrs: unknown key; did you mean model.layers?"]),
        (["bad_value.yaml"], 2, ["bad_value.yaml:2: model.layers: expected a whole number", "got 'two'"]),
        (["good.yaml", "modle.layers=3"], 2, ["command line: modle.layers: unknown key; did you mean model.layers?"]),
        (["good.yaml", "model.layers=0"], 2, ["command line: model.layers: expected", "got 0"]),
        (["good.yaml", "model.heads=3"], 2, ["model.heads", "expected a divisor of width 16", "got 3"]),
        (["good.yaml", "model.layers"], 2, ["expected key=value", "got 'model.layers'"]),
        (["good.yaml", "data.path=shrt.txt"], 2, ["data.path: 'shrt.txt' does not exist", "did you mean 'short.txt'?"]),
        (["good.yaml", "data.path=empty.txt"], 2, ["data.path: 'empty.txt' is empty"]),
        (["good.yaml", "data.path=short.txt"], 2, ["data.path: 'short.txt' is too short", "data.context + 1 = 9"]),
        (["good.yaml", "data.path=binary.txt"], 2, ["'binary.txt' is not UTF-8 text: byte 0x80 at offset 128"]),
        (["good.yaml", "data.path=hollow"], 2, ["data.path: 'hollow' holds no .txt file"]),
        (["good.yaml", "data.path=same.txt"], 2, ["data.path: 'same.txt' holds no character but 'a'"]),
        (["lost.yaml"], 2, ["lost.yaml:4: data.path: 'nowhere.txt' does not exist"]),
        (["tpu.yaml"], 1, ["tpu.yaml:5: train.device: no tpu here; JAX sees cpu"]),
        (["good.yaml", "train.device=gpu"], 1, ["train.device: no gpu here; JAX sees cpu"]),
        (["good.yaml", "train.device=tpu"], 1, ["train.device: no tpu here; JAX sees cpu"]),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else None,
)
def test_what_a_user_gets_wrong_is_one_line_and_leaves_nothing(folder, capsys, command, arguments, code, said):
    before = sorted(folder.rglob("*"))
    got, out, err = call(capsys, command, *arguments)
    assert got == code
    assert err.startswith("deltaflow: ") and err.count("\n") == 1 and err.endswith("\n")
    for words in said:
        assert words in err
    assert out == ""
    assert sorted(folder.rglob("*")) == before


def test_all_that_is_wrong_is_said_at_once(folder, capsys):
    code, _, err = call(capsys, "train", "two.yaml")
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 2 and "two.yaml:2: model.layers" in lines[0] and "two.yaml:4: train.stepz" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["trian"], "no command 'trian'; did you mean train?"),
        (["good.yaml"], "no command 'good.yaml'; expected one of train, probe,"),
        (["train"], "required: config\n"),
        (["probe"], "required: config\n"),
        (["sample"], "required: RUN\n"),
        (["train", "good.yaml", "--wat"], "unrecognized arguments: --wat"),
        (
            ["train", "good.yaml", "--steps", "5"],
            "--steps is no option; a config key is set by key=value: train.steps=5 (see deltaflow train --help)",
        ),
        (["probe", "good.yaml", "--batch-size=8"], "by key=value: data.batch=8 (see deltaflow probe --help)"),
        (
            ["train", "--lr", "--x", "good.yaml"],
            "--lr is no option; a config key is set by key=value: optimizer.lr=VALUE",
        ),
        (["train", "good.yaml", "--residual", "rezero"], "by key=value: model.residual=rezero"),
        (["train", "good.yaml", "--train.steps", "5"], "by key=value: train.steps=5"),
        (["probe", "good.yaml", "--json", "p.json", "seed=1", "--wat"], "unrecognized arguments: --wat\n"),
        (["sample", ".", "more"], "unrecognized arguments: more"),
        (["sample", ".", "--top", "0"], "--top: expected a whole number of at least 1, got '0'"),
        (["sample", ".", "--top", "some"], "--top: expected a whole number of at least 1, got 'some'"),
        (["sample", ".", "--tokens", "-1"], "--tokens: expected a whole number of at least 0, got '-1'"),
        (
            ["sample", ".", "--temperature", "nan"],
            "--temperature: expected 0, or a number from 1e-30 to 1e30, got 'nan'",
        ),
        (
            ["sample", ".", "--temperature", "1e300"],
            "--temperature: expected 0, or a number from 1e-30 to 1e30, got '1e300'",
        ),
        (["sample", ".", "--prompt", ""], "--prompt: expected at least one character"),
        (["sample", ".", "--seed", "4294967296"], "--seed: expected a whole number from 0 to 4294967295"),
        (["probe", "good.yaml", "--json", ""], "--json: expected a file, got ''"),
        (["probe", "good.yaml", "--json", "."], "--json: expected a file, got a folder, '.'"),
        (["probe", "good.yaml", "--json", "/dev/null"], "--json: expected a file, got a device, '/dev/null'"),
        (["probe", "good.yaml", "--json", "good.yaml/p.json"], "--json: cannot write 'good.yaml/p.json'"),
        (["devices", "--size", "0"], "--size: expected a whole number from 1 to 32768, got '0'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_wrong_usage_is_2_in_one_line(folder, capsys, arguments, said):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("deltaflow: ") and said.rstrip("\n") in err
    assert err.count("\n") == 1 and err.endswith(" --help)\n")
    assert not (folder / "p.json").exists()


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(capsys, command):
    code, out, err = call(capsys, *([] if command is None else [command]), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: deltaflow {command or '[-h]'}")
    for name, summary in COMMANDS.items():
        if command is None:
            assert name in out and summary.split(",")[0] in " ".join(out.split())
    if command is not None:
        assert COMMANDS[command] in " ".join(out.split())


def test_version(capsys):
    code, out, _ = call(capsys, "--version")
    assert code == 0 and out.startswith("deltaflow ")


@pytest.mark.parametrize("arguments", [["sample"], ["probe", "good.yaml", "--checkpoint"]], ids=" ".join)
def test_a_folder_that_is_no_run_is_1_in_one_line(folder, capsys, arguments):
    (folder / "experiment" / "main").mkdir(parents=True)
    (folder / "experiment" / "main" / "config.yaml").touch()
    for where, said in (
        (".", "not a run directory (no config.yaml in it)"),
        ("experiment", "not a run directory (no config.yaml in it; the runs in it are main)"),
        ("nothing", "no such folder"),
        ("experiment/mian", "no such folder; did you mean experiment/main?"),
    ):
        code, out, err = call(capsys, *arguments, where)
        assert (code, out, err) == (1, "", f"deltaflow: {where}: {said}\n")


@pytest.mark.parametrize("path", ["", ".", "hollow", "good.yaml/p.json"])
def test_a_file_that_cannot_be_written_is_one_line(folder, path):
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(Path(path), "text")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        type("_ArrayMemoryError", (MemoryError,), {})("Unable to allocate"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_line(folder, capsys, monkeypatch, error):
    def exhausted(*_):
        raise error

    monkeypatch.setattr("train.run.probe.probe", exhausted)
    code, out, err = call(capsys, "probe", "good.yaml")
    assert (code, out) == (1, "") and err.startswith("deltaflow: not enough memory") and err.count("\n") == 1
    for key in ("model.width", "model.layers", "data.batch", "data.context"):
        assert key in err


def test_other_errors_of_a_device_keep_their_traceback(folder, capsys, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr("train.run.probe.probe", broken)
    with pytest.raises(jax.errors.JaxRuntimeError):
        call(capsys, "probe", "good.yaml")


def test_python_m_train_is_deltaflow(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "train", "train", "nothing.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "deltaflow: nothing.yaml: no such file\n"


# sample


def test_greedy_text_is_the_same_twice_and_follows_the_top_1(trained, capsys):
    _, run = trained
    arguments = ["sample", run, "--prompt", "the gra", "--temperature", "0", "--tokens"]
    code, text, err = call(capsys, *arguments, "12")
    assert (code, err) == (0, "")
    assert call(capsys, *arguments, "12")[1] == text
    assert text.startswith("the gra") and len(text) == len("the gra") + 12 + 1
    for n in (1, 2, 12):  # the last is beyond the context of 8
        prompt = text[: 7 + n - 1]
        code, table, _ = call(capsys, "sample", run, "--prompt", prompt, "--top", "1")
        token = table.splitlines()[2].rsplit(None, 1)[0]
        assert token == {" ": "' '", "\n": "'\\n'"}.get(text[7 + n - 1], token)
        assert text[7 + n - 1] in token


def test_the_most_likely_tokens_are_sorted_and_sum_to_at_most_one(trained, capsys):
    _, run = trained
    code, out, _ = call(capsys, "sample", run, "--prompt", "flows do", "--top", "5")
    title, columns, *rows = out.splitlines()
    assert code == 0 and title == "after 'flows do'" and columns.split() == ["token", "probability"]
    some = [float(row.rsplit(None, 1)[1]) for row in rows]
    assert len(some) == 5 and some == sorted(some, reverse=True) and 0 < sum(some) <= 1.0003
    rows = call(capsys, "sample", run, "--prompt", "flows do", "--top", "1000")[1].splitlines()[2:]
    every = [float(row.rsplit(None, 1)[1]) for row in rows]
    assert len(rows) == 24  # as many as the vocabulary has
    assert sum(every) == pytest.approx(1.0, abs=24 * 5e-5)
    assert every[:5] == some


@pytest.mark.parametrize("prompt", ["the", "unchanged norms"])  # shorter and longer than the context of 8
def test_probabilities_are_the_model_s_after_the_last_tokens(trained, prompt):
    """The tokens alone, without padding, through the network with the weights of the newest checkpoint."""
    _, run = trained
    generator, config = Generator(run), read_config(run)
    params = Checkpoints(run).params(40)
    tokens = generator.tokenizer.encode(prompt).astype(np.int32)[-8:]
    network = Network(config.model, generator.tokenizer.vocab_size, 8)
    logits = np.asarray(jax.jit(lambda p: network.apply(p, tokens[None])[0])(params), np.float64)[-1]
    expected = np.exp(logits - logits.max()) / np.sum(np.exp(logits - logits.max()))
    found = generator.likeliest(prompt, 24)
    np.testing.assert_allclose([probability for _, probability in found], np.sort(expected)[::-1], rtol=1e-5)
    assert found[0][0] == generator.tokenizer.token_text(int(np.argmax(expected)))


def test_draws_depend_on_the_seed_alone(trained, capsys):
    _, run = trained

    def text(seed, *more):
        return call(capsys, "sample", run, "--prompt", "a", "--tokens", "30", "--seed", seed, *more)[1]

    assert text(1) == text(1) != text(2)
    assert text(1, "--top-k", "1") == text(2, "--top-k", "1") == text(3, "--temperature", "0")
    assert text(3, "--temperature", "1e-30") == text(3, "--temperature", "0")


@pytest.mark.parametrize("option", ["--temperature", "--top-k"])
def test_the_most_likely_tokens_are_of_the_model_alone(capsys, option):
    code, _, err = call(capsys, "sample", ".", "--top", "3", option, "1")
    assert code == 2
    assert err == f"deltaflow: command line: {option}: not with --top, whose probabilities are the model's own\n"


def test_a_checkpoint_is_not_taken_for_its_run(trained, capsys):
    _, run = trained
    for inside in (run / "ckpt", next((run / "ckpt").iterdir())):
        code, _, err = call(capsys, "sample", inside)
        assert code == 1 and err == f"deltaflow: {inside}: not a run directory, but part of one; did you mean {run}?\n"


def test_no_tokens_is_the_prompt(trained, capsys):
    assert call(capsys, "sample", trained[1], "--prompt", "skip", "--tokens", "0")[:2] == (0, "skip\n")


def test_a_character_that_the_corpus_lacks_is_2_in_one_line(trained, capsys):
    for extra in ([], ["--top", "3"]):
        code, out, err = call(capsys, "sample", trained[1], "--prompt", "the Σ", *extra)
        assert code == 2
        assert err.startswith("deltaflow: character 'Σ' (U+03A3) at position 4 is not in the corpus")
        assert err.count("\n") == 1 and out == ""


# probe


def validate(value):
    validator = Draft202012Validator(SCHEMA)
    errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.path)))
    assert not errors, [(list(error.path), error.message[:200], error.context) for error in errors]


def test_the_schema_is_one_and_says_what_everything_is():
    Draft202012Validator.check_schema(SCHEMA)
    fields = []

    def walk(node):
        if isinstance(node, dict):
            fields.extend(node.get("properties", {}).items())
            fields.extend(node.get("patternProperties", {}).items())
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(SCHEMA)
    assert len(fields) > 50
    for name, field in fields:
        assert field["description"].endswith(".") and field["unit"], name


def test_what_probe_writes_is_what_the_schema_says(probed):
    validate(probed)
    assert [result["variant"] for result in probed] == ["with", "without_skip", "bare"]
    for wrong in ({"loss": "low"}, {"gain": [-1.0]}, {"extra": 1}, {"verdict": {"state": "fine"}}):
        with pytest.raises(AssertionError):
            validate([probed[0] | wrong])
    with pytest.raises(AssertionError):
        validate({key: field for key, field in probed[0].items() if key != "delta"})


# A rule without skips, two streams of other shapes, parameters of a rule's own; the full grid is slow.
PROBED = ("none", "attnres", "mhc", "value_residual")


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[] if rule in PROBED else [pytest.mark.slow]) for rule in sorted(RULES)]
)
def test_what_probe_writes_of_every_rule_is_what_the_schema_says(trained, tmp_path, capsys, rule):
    file = tmp_path / "p.json"
    code, _, err = call(capsys, "probe", trained[0], "variants={}", f"model.residual={rule}", "--json", file)
    assert (code, err) == (0, "")
    validate(json.loads(file.read_text(encoding="utf-8")))


def test_text_that_an_output_cannot_show_is_no_error(trained, monkeypatch):
    monkeypatch.setattr(Generator, "text", lambda *_: iter(["δ", " a"]))
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    assert main(["sample", str(trained[1]), "--prompt", "b"]) == 0
    assert shown.getvalue() == b"b? a\n"


def test_a_config_without_variants_gives_an_object_and_a_table(trained, tmp_path, capsys, probed):
    file = tmp_path / "p.json"
    code, out, err = call(capsys, "probe", trained[0], "variants={}", "--json", file)
    assert (code, err) == (0, "")
    result = json.loads(file.read_text(encoding="utf-8"))
    validate(result)
    assert result == dict(probed[0], variant="main")  # the same numbers, too
    title, columns, *rows, verdict = out.splitlines()
    assert title == f"main: loss {result['loss']:.4f} nats" and columns.split()[:2] == ["l", "|δ_l|"]
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]
    assert [float(row.split()[1]) for row in rows] == pytest.approx(result["delta"]["norm"], rel=1e-2)
    assert verdict == f"main: {result['verdict']['state']}: {result['verdict']['why']}"


def test_lengths_and_figures_of_a_probe_agree_with_each_other(probed):
    for result in probed:
        deltas, layers = result["delta"], result["config"]["model"]["layers"]
        assert len(deltas["norm"]) == len(deltas["log10_norm"]) == len(deltas["rms_weighted"]) == layers + 1
        np.testing.assert_allclose(np.log10(deltas["norm"]), deltas["log10_norm"], rtol=1e-9)
        np.testing.assert_allclose(np.array(deltas["norm"]) * result["act"]["rms"], deltas["rms_weighted"], rtol=1e-6)
        np.testing.assert_allclose(np.divide(deltas["norm"][:-1], deltas["norm"][1:]), result["gain"], rtol=1e-9)
        assert result["verdict"]["ratio"] == pytest.approx(np.prod(result["gain"]), rel=1e-9)
        assert result["tokens"] == 32 and len(result["act"]["rank"]) == layers + 1
        assert result["loss"] == pytest.approx(np.log(24), abs=0.5)
        whole = ("embed", "positions", "norm_f", *(["head"] if not result["config"]["model"]["tied_head"] else []))
        for group in ("grad", "grad_without", "weight"):
            norms = result[group]
            if norms is None:
                assert group == "grad_without"
                continue
            inner = [v for tag, v in norms.items() if tag != "layer" and isinstance(v, list)]
            np.testing.assert_allclose(np.sqrt(np.sum(np.square(inner), axis=0)), norms["layer"], rtol=1e-6)
        parts = [*result["grad"]["layer"], *(result["grad"][tag] for tag in whole if tag in result["grad"])]
        assert result["grad_global"] == pytest.approx(np.sqrt(np.sum(np.square(parts))), rel=1e-6)
        if not result["config"]["model"]["tied_head"]:
            assert result["grad"]["embed"] == result["grad"]["lookup"]
            assert result["weight"]["embed"] != result["weight"]["head"]
            assert result["weight_dot_grad"]["embed"] == result["weight_dot_grad"]["lookup"]
        assert result["grad"].keys() == result["weight"].keys() == result["weight_dot_grad"].keys()
        for tag, norm in result["grad"].items():
            np.testing.assert_allclose(np.log10(norm), result["grad_log10"][tag], rtol=1e-6, atol=1e-7)
            bound = np.array(norm) * np.array(result["weight"][tag])  # Cauchy and Schwarz
            assert (np.abs(result["weight_dot_grad"][tag]) <= bound * (1 + 1e-6)).all()


def test_without_is_the_twin_at_skip_scale_zero(probed):
    with_, without, bare = probed
    assert bare["delta_without"] is not None  # post_ln has a skip scale too
    assert with_["loss"] != without["loss"]
    np.testing.assert_allclose(with_["delta_without"]["norm"], without["delta"]["norm"], rtol=1e-5)
    np.testing.assert_allclose(without["delta_without"]["norm"], without["delta"]["norm"], rtol=1e-5)
    for tag, norm in without["grad"].items():
        np.testing.assert_allclose(with_["grad_without"][tag], norm, rtol=1e-4, atol=1e-7, err_msg=tag)


def test_a_checkpoint_is_measured_at_its_weights(trained, tmp_path, capsys, probed):
    config, run = trained
    file = tmp_path / "p.json"
    arguments = ["probe", config, "--checkpoint", run, "--json", file]
    assert call(capsys, *arguments, "variants={with: {}}")[0] == 0
    (after,) = json.loads(file.read_text(encoding="utf-8"))
    assert after["loss"] < probed[0]["loss"] - 0.2
    assert after["weight"]["attn_q"] != probed[0]["weight"]["attn_q"]
    code, _, err = call(capsys, *arguments, "variants={with: {}}", "model.layers=3")
    assert code == 1 and "its model differs from variant with in model.layers" in err and err.count("\n") == 1
    code, _, err = call(capsys, *arguments, "variants={with: {}}", "data.context=6")
    assert code == 1 and err == f"deltaflow: variant with: expected positions [6, 16], got [8, 16] in {run}\n"


@pytest.mark.slow
def test_a_checkpoint_is_measured_in_the_dtype_of_the_config(x64, trained, tmp_path, capsys):
    """Whatever the run was trained in."""
    config, run = trained
    file, losses = tmp_path / "p.json", []
    for dtype in ("float32", "float64"):
        keys = ["variants={with: {}}", f"train.dtype={dtype}"]
        assert call(capsys, "probe", config, "--checkpoint", run, *keys, "--json", file)[0] == 0
        (measured,) = json.loads(file.read_text(encoding="utf-8"))
        assert measured["dtype"] == dtype
        losses.append(measured["loss"])
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("letters", ["abcdefghijklmnopqrstuvw ", "abc "], ids=["as many", "fewer"])
def test_a_checkpoint_is_not_measured_on_tokens_of_another_text(trained, tmp_path, capsys, letters):
    """24 characters, as many as its own text has, or fewer: either way they have the ids of others."""
    config, run = trained
    (tmp_path / "other.txt").write_text(letters * 300, encoding="utf-8")
    keys = [f"data.path={tmp_path / 'other.txt'}", "variants={}"]
    code, out, err = call(capsys, "probe", config, "--checkpoint", run, *keys)
    assert (code, out) == (1, "")
    assert "with: has another tokenizer than " in err and "other.txt" in err and err.count("\n") == 1
    keys = ["data.kind=copy", "data.symbols=22", "data.path=null", "variants={}"]  # no tokenizer at all
    assert "has another tokenizer than copy" in call(capsys, "probe", config, "--checkpoint", run, *keys)[2]


def test_weights_and_their_products_with_gradients_are_named_alike(x64, tiny):
    """Against plain jax.grad, without taps; a tied table has two uses."""
    keys = {"model.bias": True, "model.norm": "layer", "train.dtype": "float64"}
    config = tiny(keys).variants[0].config
    network = Network(config.model, 11, 8, "float64")
    params = jax.jit(network.init)(np.uint32(0), {"init_std": np.float64(0.3)})
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)  # no bias at zero
    loss = tapped_loss(network, np.random.default_rng(0).integers(0, 11, (2, 9)), None, None)

    @jax.jit
    def both(params):
        ours = _sizes(params), weight_dot_grad(params, backward(loss, params, 2)[1])
        return ours, jax.grad(lambda p, head: loss(p, head, None)[0], (0, 1))(params, params["embed"])

    (sizes, dots), (grads, head) = jax.device_get(both(params))
    weights, grads = named(params["blocks"]), (grads, named(grads["blocks"]))
    expected = {tag: np.sum(np.reshape(w * grads[1][tag], (2, -1)), axis=1) for tag, w in weights.items()}
    expected["layer"] = sum(expected.values())
    expected["lookup"] = np.sum(params["embed"] * grads[0]["embed"])
    expected["head"] = np.sum(params["embed"] * head)
    expected["embed"] = expected["lookup"] + expected["head"]
    expected["positions"] = np.sum(params["positions"] * grads[0]["positions"])
    pairs = zip(jax.tree.leaves(params["norm_f"]), jax.tree.leaves(grads[0]["norm_f"]), strict=True)
    expected["norm_f"] = sum(np.sum(w * g) for w, g in pairs)
    assert dots.keys() == sizes.keys() == expected.keys()
    for tag, dot in expected.items():
        np.testing.assert_allclose(value(dots[tag]), dot, rtol=1e-9, atol=1e-15, err_msg=tag)
    squares = {tag: np.sum(np.square(np.reshape(w, (2, -1))), axis=1) for tag, w in weights.items()}
    squares["layer"] = sum(squares.values())
    squares |= dict.fromkeys(("embed", "lookup", "head"), np.sum(np.square(params["embed"])))
    for name in ("positions", "norm_f"):
        squares[name] = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params[name]))
    for tag, square in squares.items():
        np.testing.assert_allclose(value(sizes[tag]), np.sqrt(square), rtol=1e-12, err_msg=tag)


def test_an_exact_zero_is_zero_and_nothing_else_is():
    norms = Norm(np.array([0.5, 0.0, 0.5, 0.5, np.nan, np.inf]), np.array([1.0, 0.0, -1200.0, 1300.0, 0.0, 0.0]))
    delta = _delta(Flow(norms, {}, None), np.ones(6))
    assert delta["norm"] == [1.0, 0.0, None, None, None, None]
    logs = delta["log10_norm"]
    assert logs[:2] == [0.0, None] and logs[4:] == [None, None]
    assert logs[2] == pytest.approx(-1201 * np.log10(2)) and logs[3] == pytest.approx(1299 * np.log10(2))
    assert delta["rms_weighted"] == [1.0, 0.0, None, None, None, None]
    assert numbers(Norm(np.float64(0.0), np.float64(0.0))) == 0.0
    assert numbers(Norm(np.float64(-0.75), np.float64(3.0))) == -6.0
    assert number(-np.inf) == 0.0 and number(-400.0) is None
    assert finite(np.array([1.0, np.inf, np.nan])) == [1.0, None, None]
    json.dumps([delta, finite(np.array(-np.inf))], allow_nan=False)


def test_what_a_stream_out_of_range_leaves_is_null_and_not_zero(trained, tmp_path, capsys):
    """1e-30 times 1e-30 is zero in float32 and not in float64: what cannot be told from zero is null."""
    file = tmp_path / "p.json"
    keys = ["model.residual=none", "model.norm=none", "model.init=normal", "model.init_std=1e-30", "variants={}"]
    assert call(capsys, "probe", trained[0], *keys, "--json", file)[0] == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    validate(result)
    norms, logs = result["delta"]["norm"], result["delta"]["log10_norm"]
    assert norms[:2] == [None, None] and logs[:2] == [None, None] and result["gain"] == [None, 0.0]
    assert 1e-32 < norms[2] < 1e-29 and logs[2] == pytest.approx(np.log10(norms[2]))
    assert result["grad"]["attn_q"] == [None, None] and result["grad_log10"]["attn_q"] == [None, None]
    assert result["verdict"]["state"] == "vanishing" and result["verdict"]["ratio"] == 0.0


def test_no_float32_zero_where_float64_has_a_value(x64, trained, tmp_path, capsys):
    """A plain network whose stream falls below 1e-38: zeros of the float32 probe are zeros of the float64 one."""
    keys = ["model.residual=none", "model.norm=none", "model.init=normal", "model.init_std=1e-4", "variants={}"]
    keys += ["model.layers=6", "model.bias=false"]
    found = {}
    for dtype in ("float32", "float64"):
        file = tmp_path / f"{dtype}.json"
        assert call(capsys, "probe", trained[0], *keys, f"train.dtype={dtype}", "--json", file)[0] == 0
        found[dtype] = json.loads(file.read_text(encoding="utf-8"))
    low, exact = (found[dtype]["grad"] | found[dtype]["act"] for dtype in ("float32", "float64"))
    nulls = 0
    for name in (*(key for key in low if key.startswith(("attn", "mlp"))), "layer", "rms"):
        for a, b in zip(low[name], exact[name], strict=True):
            nulls += a is None
            assert a is None or a == pytest.approx(b, rel=1e-2, abs=0), name
    assert nulls > 10 and all(x is None or x > 0 for x in exact["rms"])
