"""Data that others made: digits, files of token ids, and a class in the user's own folder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.open import open_source
from data.source import Batch
from data.tokenizer import DataError
from train.cli import main

IDS = (np.arange(600) * 7 % 11).astype(np.uint16)


def refused(**config) -> str:
    with pytest.raises(DataError) as error:
        open_source(DataConfig(**config))
    assert "\n" not in str(error.value)
    return str(error.value)


def token_file(folder: Path, suffix: str, ids: np.ndarray = IDS, **header) -> str:
    path = folder / f"ids{suffix}"
    if suffix == ".npy":
        np.save(path, ids)
    else:
        path.write_bytes(ids.tobytes())
        header = {"dtype": str(ids.dtype), "vocab_size": 11} | header
        path.with_suffix(".json").write_text(json.dumps(header), encoding="utf-8")
    return str(path)


# Files of token ids


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_token_files(tmp_path, suffix, dtype, placement):
    path = token_file(tmp_path, suffix, IDS.astype(dtype))
    data = open_source(DataConfig(kind="tokens", path=path, context=8, placement=placement, val_fraction=0.25))
    assert (data.form.vocab_size, data.form.outputs, data.form.context, data.tokenizer) == (11, 11, 8, None)
    batches = data.train_batches(4, 0, 0, 3)
    if placement == "device":
        assert data.resident is not None
        np.testing.assert_array_equal(np.concatenate(data.resident), IDS)
        assert len(data.resident[1]) == 150 and batches.shape == (3, 4)
    else:
        assert data.resident is None and batches.shape == (3, 4, 9)
        np.testing.assert_array_equal(np.diff(batches.astype(int)) % 11, 7)
    assert data.heldout_batches(4, None)[1].sum() == 149 // 8


@pytest.mark.parametrize("placement", ["device", "host"])
def test_ids_in_the_other_order_of_bytes(tmp_path, placement):
    """No device takes them as they are."""
    (tmp_path / "other").mkdir()
    paths = token_file(tmp_path / "other", ".npy", IDS.astype(">u2")), token_file(tmp_path, ".npy")
    other, usual = (open_source(DataConfig(kind="tokens", path=p, context=8, placement=placement)) for p in paths)
    pairs = [tuple(data.train_batches(4, 0, 0, 3) for data in (other, usual))]
    pairs.append(tuple(data.heldout_batches(4, 2)[0] for data in (other, usual)))
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
        assert a.dtype.isnative
    if placement == "device":
        assert other.resident is not None and other.resident[0].dtype.isnative
        np.testing.assert_array_equal(np.concatenate(other.resident), IDS)


@pytest.mark.parametrize(
    ("suffix", "ids", "header", "message"),
    [
        (".npy", np.array([[1, 2]]), {}, "expected whole numbers along one axis, got int64 [1, 2]"),
        (".npy", np.array([0.5]), {}, "expected whole numbers along one axis, got float64 [1]"),
        (".npy", np.array([], np.uint8), {}, "is empty"),
        (".npy", np.array([1] * 200 + [-3]), {}, "has a negative id, -3"),
        (".npy", np.array([1] * 20), {}, "is too short"),
        (".bin", IDS, {"vocab_size": 10}, "has the id 10, but its header says vocab_size 10"),
        (".bin", IDS, {"dtype": "float32"}, "got dtype 'float32', vocab_size 11"),
        (".bin", IDS, {"vocab_size": "11"}, "got dtype 'uint16', vocab_size '11'"),
        (".bin", np.arange(3, dtype=np.uint8), {"dtype": "uint16"}, "has 3 bytes, expected a multiple of 2 (uint16)"),
    ],
)
def test_bad_token_files(tmp_path, suffix, ids, header, message):
    path = token_file(tmp_path, suffix, ids, **header)
    assert message in refused(kind="tokens", path=path, context=8)


def test_token_files_that_are_none(tmp_path):
    bad = tmp_path / "x.bin"
    bad.write_bytes(b"1234")
    assert 'expected {"dtype": "uint16" or "uint32", "vocab_size": V} in ' in refused(kind="tokens", path=str(bad))
    text = tmp_path / "x.txt"
    text.write_text("words", encoding="utf-8")
    assert "is not an .npy file, nor a .bin" in refused(kind="tokens", path=str(text))
    assert "does not exist" in refused(kind="tokens", path=str(tmp_path / "none.npy"))
    assert "is a folder, expected an .npy or .bin file of token ids" in refused(kind="tokens", path=str(tmp_path))


# Digits


def test_digits():
    pytest.importorskip("sklearn")
    data = open_source(DataConfig(kind="digits", patch=4, val_fraction=0.2))
    assert data.form == ("classification", 4, None, 10, 16, True)
    batch = data.train_batches(64, 0, 0, 20)
    assert batch.inputs.shape == (20, 64, 4, 16) and batch.inputs.dtype == np.float32
    assert -1 <= batch.inputs.min() < -0.9 and 0.9 < batch.inputs.max() <= 1
    np.testing.assert_array_equal(data.train_batches(64, 0, 7, 1).inputs[0], batch.inputs[7])
    assert set(np.unique(batch.targets)) == set(range(10))
    held_out, weights = data.heldout_batches(64, None)
    assert weights.sum() == 359
    seen = {image.tobytes() for image in batch.inputs.reshape(-1, 64)}
    unseen = {image.tobytes() for image in held_out.inputs.reshape(-1, 64)[weights.ravel() > 0]}
    assert len(seen) > 700 and not seen & unseen
    other = open_source(DataConfig(kind="digits", patch=4, val_fraction=0.2, task_seed=1))
    assert not np.array_equal(other.heldout_batches(64, None)[0].inputs, held_out.inputs)
    # Nearest neighbours tell the class of most held-out images, so images and labels belong together.
    known, told = batch.inputs.reshape(-1, 64), held_out.inputs.reshape(-1, 64)[:100]
    nearest = ((told[:, None] - known[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (batch.targets.ravel()[nearest] == held_out.targets.ravel()[:100]).mean() > 0.9


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "digits needs scikit-learn; install it with" in refused(kind="digits")


# Your own

OWN = """
import numpy as np
from data.custom import OwnSource
from data.source import Batch, Form

class Parity(OwnSource):
    form = Form("classification", context=8, vocab_size=2, outputs=2, pooled=True)

    def rows(self, seed, step, batch):
        bits = np.random.Generator(np.random.Philox(key=seed, counter=step << 64)).integers(0, 2, (batch, 8))
        return bits.astype(np.int32), (bits.sum(axis=1) % 2).astype(np.int32)

    def train_batches(self, batch, seed, first_step, steps):
        rows = [self.rows(seed, first_step + i, batch) for i in range(steps)]
        return Batch(*map(np.stack, zip(*rows)))

    def heldout_batches(self, batch, batches):
        return self.train_batches(batch, 2**40, 0, batches or 10), np.ones((batches or 10, batch), np.float32)

class Wrong(Parity):
    form = Form("classification", context=5, vocab_size=2, outputs=2, pooled=True)

class Broken(Parity):
    def __init__(self, config):
        raise KeyError("no such thing")

class Late(Parity):
    def rows(self, seed, step, batch):
        return 1 / 0

class Bare:
    def __init__(self, config):
        pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The current folder holds own_parity.py; whatever was imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_parity.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "own_bad.py").write_text("import numpy as np\nx = y\n", encoding="utf-8")
    yield tmp_path
    for name in ("own_parity", "own_bad"):
        sys.modules.pop(name, None)


def test_a_class_of_your_own(own):
    data = open_source(DataConfig(kind="own_parity:Parity", context=8))
    batch = data.train_batches(3, 0, 0, 2)
    assert isinstance(batch, Batch) and batch.targets.shape == (2, 3)
    np.testing.assert_array_equal(batch.inputs.sum(axis=2) % 2, batch.targets)
    assert (data.source, data.details) == ("own_parity:Parity", "8 tokens a window") and data.floors == {}


def test_the_class_of_the_docs(own):
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    (own / "own_bad.py").write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    batch = open_source(DataConfig(kind="own_bad:Parity", context=8)).train_batches(3, 0, 0, 2)
    np.testing.assert_array_equal(batch.inputs.sum(axis=2) % 2, batch.targets)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nowhere:Parity", "data.kind: nowhere:Parity: No module named 'nowhere' (the current folder is "),
        ("own_parity:Party", "data.kind: own_parity:Party: module own_parity has no Party"),
        ("own_bad:X", "data.kind: own_bad:X: NameError: name 'y' is not defined on import"),
        ("own_parity:Broken", "data.kind: own_parity:Broken: KeyError: 'no such thing' while it was built"),
        ("own_parity:Late", "data.kind: own_parity:Late: ZeroDivisionError: division by zero in its first batch"),
        ("own_parity:Bare", "data.kind: own_parity:Bare: Bare has no form, source, details, "),
        ("own_parity:Wrong", "train_batches: expected inputs [3, 2, 5], got [3, 2, 8]"),
    ],
)
def test_a_class_that_does_not_do(own, kind, message):
    assert message in refused(kind=kind)


def test_kinds_that_are_none(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("name: a\ndata: {kind: markof}\n", encoding="utf-8")
    assert main(["train", str(config)]) == 2
    line = "".join(capsys.readouterr())
    assert "data.kind: expected one of text, tokens, markov," in line
    assert "or module:Class, got 'markof'; did you mean markov?" in line


def test_a_class_of_your_own_is_trained_and_probed_and_its_context_must_be_the_config_s(own, capsys):
    config = own / "c.yaml"
    config.write_text(
        "name: own\nmodel: {layers: 1, width: 8, heads: 1, norm: none, attention: full}\n"
        "data: {kind: own_parity:Parity, context: 8, batch: 4}\nwatch: {every: 0}\n"
        "train: {steps: 2, eval_every: 2, eval_batches: 2, checkpoint_every: 2, unroll: 1}\n",
        encoding="utf-8",
    )
    assert main(["train", str(config)]) == 0
    summary = json.loads((own / "runs/own/main/summary.json").read_text())
    assert 0 <= summary["accuracy_val"] <= 1 and summary["loss_val"] > 0 and summary["floors"] == {}
    assert main(["probe", str(config), "--checkpoint", "runs/own/main"]) == 0
    assert main(["sample", "runs/own/main"]) == 1
    capsys.readouterr()
    assert main(["train", str(config), "data.context=9", "name=other"]) == 1
    assert "data.context: data.kind own_parity:Parity has windows of 8 tokens" in "".join(capsys.readouterr())
