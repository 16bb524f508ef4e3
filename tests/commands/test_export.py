"""`deltaflow export`: another program computes the model's own logits from what it writes."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from model.network import Network
from tests.runs import contents
from train.store.checkpoint import Checkpoints
from train.store.rundir import read_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
(CODE,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "def logits" in block)


def test_the_docs_code_computes_the_logits_with_numpy_alone(trained, tmp_path, monkeypatch, call, capsys):
    _, run = trained
    monkeypatch.chdir(tmp_path)
    code, out, err = call("export", run, "--to", "with.safetensors")
    assert (code, err) == (0, "") and out.startswith("step 40, loss/val ")
    assert set(re.findall(r"^(?:import|from) (\w+)", CODE, re.M)) == {"json", "numpy", "pathlib"}
    there: dict = {}
    exec(CODE.replace('"The "', '"the "'), there)
    assert capsys.readouterr().out == "(4, 24)\n"
    config, params = read_config(run), Checkpoints(run).params(40)
    tokens = np.random.default_rng(0).integers(24, size=(5, config.data.context))
    ours, _ = jax.jit(Network(config.model, 24, config.data.context).apply)(params, tokens.astype(np.int32))
    arrays = there["load"]("with.safetensors")
    theirs = np.concatenate([there["logits"](arrays, there["about"]["model"], row) for row in tokens])
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    assert np.ptp(theirs) > 1  # a trained model, no zeros


def test_the_json_says_what_else_the_model_is(trained, tmp_path, call):
    _, run = trained
    call("export", run, "--to", tmp_path / "a" / "x.safetensors", "--step", "20")
    about = json.loads((tmp_path / "a" / "x.json").read_text(encoding="utf-8"))
    arrays = load_file(tmp_path / "a" / "x.safetensors")
    assert {array.dtype.name for array in arrays.values()} == {"float32"}
    assert about["parameters"] == sum(array.size for array in arrays.values())
    assert about["model"] == read_config(run).model.model_dump(mode="json")
    assert about["tokenizer"] == json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))
    expected = {"task": "lm", "context": 8, "vocab_size": 24, "outputs": 24, "channels": None, "pooled": False}
    assert about.items() >= expected.items() and about["step"] == 20
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert about["loss/val"] == next(row["loss/val"] for row in rows if row["step"] == 20)
    saved = Checkpoints(run).arrays(20)
    for name, array in arrays.items():
        path = "params/" + re.sub(r"^blocks\.\d+", "blocks", name).replace(".", "/").replace("/in/", "/in_/")
        layer = re.match(r"blocks\.(\d+)", name)
        np.testing.assert_array_equal(array, saved[path][int(layer[1])] if layer else saved[path])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "modular", "linear_regression"])
def test_models_of_other_data(kind, tmp_path, call, monkeypatch):
    if kind == "digits":
        pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text(
        "name: other\nmodel: {layers: 1, width: 8, heads: 2, residual: mhc}\ndata: {batch: 2}\n"
        "train: {steps: 1, eval_batches: 1}\n"
    )
    assert call("train", "other.yaml", f"data.kind={kind}")[0] == 0
    assert call("export", "runs/other/main", "--to", "other.safetensors")[::2] == (0, "")
    about, arrays = json.loads((tmp_path / "other.json").read_text()), load_file("other.safetensors")
    expected = {
        "digits": ("classification", 16, None, 10, 4, True),
        "modular": ("lm", 3, 98, 98, None, False),
        "linear_regression": ("regression", 64, None, 1, 9, False),
    }[kind]
    assert tuple(about[key] for key in ("task", "context", "vocab_size", "outputs", "channels", "pooled")) == expected
    assert arrays["embed"].shape == (about["vocab_size"] or about["channels"], 8) and about["tokenizer"] is None
    assert arrays["blocks.0.residual.across_1.kernel"].shape[0] == 4 * 8


def test_what_it_cannot_export_is_one_line_and_nothing_is_written(trained, tmp_path, call, wording):
    _, run = trained
    before = contents(run)
    (to := tmp_path / "x").mkdir()
    inside = (run / "data.safetensors", run / "ckpt" / "00000020.safetensors")
    for place, *arguments in ((run, "--step", 7), *((path, "--to", path) for path in inside)):
        got, out, err = call("export", run, "--to", to / "x.safetensors", *arguments)
        assert (got, out, err.count("\n")) == (2, "", 1)
        wording(err, place)
    assert contents(run) == before and not list(to.iterdir())
    (to / "x.json").write_text('{"name": "another program"}')
    assert call("export", run, "--to", to / "x.safetensors")[0] == 2
    assert (to / "x.json").read_text() == '{"name": "another program"}' and len(list(to.iterdir())) == 1
