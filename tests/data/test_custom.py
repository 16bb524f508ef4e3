"""A data set of the user: `module:Class` in the current folder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data import DataError
from data.config import DataConfig
from data.source import Batch, open_source
from train.cli import main


def refused(**config) -> str:
    with pytest.raises(DataError) as error:
        open_source(DataConfig(**config))
    assert "\n" not in str(error.value)
    return str(error.value)


OWN = """
import numpy as np
from data.custom import OwnSource
from data.source import Batch, DataSpec

class Parity(OwnSource):
    form = DataSpec("classification", context=8, vocab_size=2, outputs=2, pooled=True)

    def rows(self, seed, step, batch):
        bits = np.random.Generator(np.random.Philox(key=seed, counter=step << 64)).integers(0, 2, (batch, 8))
        return bits.astype(np.int32), (bits.sum(axis=1) % 2).astype(np.int32)

    def train_batches(self, batch, seed, first_step, steps):
        rows = [self.rows(seed, first_step + i, batch) for i in range(steps)]
        return Batch(*map(np.stack, zip(*rows)))

    def heldout_batches(self, batch, batches):
        return self.train_batches(batch, 2**40, 0, batches or 10), np.ones((batches or 10, batch), np.float32)

class Wrong(Parity):
    form = DataSpec("classification", context=5, vocab_size=2, outputs=2, pooled=True)

class Broken(Parity):
    def __init__(self, config):
        raise KeyError("no such thing")

class Late(Parity):
    def rows(self, seed, step, batch):
        return 1 / 0

class Bare:
    def __init__(self, config):
        pass

class Values(Parity):
    form = DataSpec("regression", context=8, vocab_size=None, outputs=2, channels=3)

    def rows(self, seed, step, batch):
        draw = np.random.Generator(np.random.Philox(key=seed, counter=step << 64))
        return draw.normal(size=(batch, 8, 3)), draw.normal(size=(batch, 8, 2))
"""


def rows(result: str) -> str:
    return f"def rows(self, *args):\n  x, y = super().rows(*args)\n  return {result}"


def heldout(result: str) -> str:
    return f"def heldout_batches(self, *args):\n  b, w = super().heldout_batches(*args)\n  return {result}"


# Faults of a Parity, as the body of a class that inherits from it, and their messages.
WRONG = {
    "ids_beyond_the_vocabulary": (rows("x + 1, y"), "train_batches: expected inputs in 0 to 1, got 2"),
    "negative_ids": (rows("x - 1, y"), "train_batches: expected inputs in 0 to 1, got -1"),
    "classes_beyond_the_outputs": (
        rows("x, y.astype(np.int64) + 2**33"),
        "train_batches: expected targets in 0 to 1, got 858993459",
    ),
    "ids_that_are_floats": (rows("x * 1.0, y"), "train_batches: expected inputs of whole numbers, got float64"),
    "no_step": (
        "def train_batches(self, batch, seed, first_step, steps):\n"
        "  x = np.random.default_rng(seed).integers(0, 2, (steps, batch, 8))\n  return Batch(x, x[..., 0])",
        "train_batches: step 1 has another batch when it is asked for alone",
    ),
    "chance": (
        "def train_batches(self, batch, seed, first_step, steps):\n"
        "  x = np.random.default_rng().integers(0, 2, (steps, batch, 8))\n  return Batch(x, x[..., 0])",
        "train_batches: step 1 has another batch when it is asked for alone",
    ),
    "rows_of_another_shape": (
        heldout("b, w[:1, :1]"),
        "heldout_batches: expected weights of rows [at most 1, 2], got [1, 1]",
    ),
    "no_rows": (heldout("b, 0 * w"), "heldout_batches: expected weights of rows >= 0, and some above, got none above"),
    "no_weights": (heldout("b"), "heldout_batches: expected (batches, weights of their rows [S, B]), got Batch"),
    "heldout_ids": (heldout("Batch(b.inputs + 7, b.targets), w"), "heldout_batches: expected inputs in 0 to 1, got 8"),
    "a_tuple": (
        "def train_batches(self, *of):\n  return tuple(super().train_batches(*of))",
        "train_batches: expected a data.source.Batch, got tuple",
    ),
    "windows_of_other_outputs": (
        "form = DataSpec('lm', 8, 2, 3)\ndef train_batches(self, b, seed, first, steps):\n"
        "  return np.zeros((steps, b, 9), int)",
        "train_batches: expected a data.source.Batch, got ndarray",
    ),
    "windows_at_times": (
        "form = DataSpec('lm', 8, 2, 2)\ndef train_batches(self, b, seed, first, steps):\n"
        "  x = np.zeros((steps, b, 9), int)\n  return x if steps == 1 else Batch(x[..., 1:], x[..., :-1])",
        "train_batches: expected a Batch in every call, got ndarray",
    ),
    "weights_at_times": (
        "def train_batches(self, batch, seed, first, steps):\n"
        "  b = super().train_batches(batch, seed, first, steps)\n"
        "  return b if steps == 1 else Batch(*b[:2], np.ones(b.targets.shape))",
        "train_batches: expected weights in every batch or in none, got them in some",
    ),
    "nothing_counts": (
        "def train_batches(self, *of):\n  b = super().train_batches(*of)\n  return Batch(*b[:2], 0 * b.targets)",
        "train_batches: expected a target of weight above 0 in every step, got none",
    ),
    "floors_none": ("floors = None", "floors: expected a mapping of names to losses, got None"),
    "floors_text": ("floors = {'': '0.5'}", "floors: expected a finite loss of '', got '0.5'"),
    "floors_nan": ("floors = {'x': float('nan')}", "floors: expected a finite loss of 'x', got nan"),
    "floors_list": ("floors = {'x': [1.0]}", "floors: expected a finite loss of 'x', got [1.0]"),
    "resident_text": (
        "form = DataSpec('lm', 8, 2, 2)\nresident = 'all'",
        "resident: expected None or two arrays of ids, to train on and held out, got str",
    ),
    "resident_pooled": (
        "resident = np.zeros(9, int), np.zeros(9, int)",
        "resident: expected a form of next tokens (lm, outputs = vocab_size), got DataSpec(",
    ),
    "resident_short": (
        "form = DataSpec('lm', 8, 2, 2)\nresident = np.zeros(9, int), np.zeros(8, int)",
        "resident: expected held out ids [more than context 8], got [8]",
    ),
    "tokenizer_none": ("tokenizer = 'char'", "tokenizer: expected None or one of data.tokenizer, got str"),
    "tokenizer_of_others": (
        "from data.tokenizer import CharTokenizer\ntokenizer = CharTokenizer('abc')",
        "tokenizer: expected a vocabulary of form.vocab_size 2, got 3",
    ),
    "no_channels": (
        "form = DataSpec('regression', 8, None, 1)",
        "form: expected vocab_size (of ids) or channels (real values a token), got neither",
    ),
    "no_outputs": (
        "form = DataSpec('classification', 8, 2, 0, pooled=True)",
        "form: expected outputs to be a whole number >= 1, got 0",
    ),
    "form_that_fails": (
        "@property\ndef form(self):\n  return self.config.contxt",
        "AttributeError: 'DataConfig' object has no attribute 'contxt' in form",
    ),
    "exits": ("def train_batches(self, *of):\n  raise SystemExit(3)", "SystemExit: 3 in train_batches at steps 0 to 2"),
    "source_none": ("source = None", "source: expected text, got None"),
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The current folder holds own_parity.py; whatever was imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_parity.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "own_bad.py").write_text("import numpy as np\nx = y\n", encoding="utf-8")
    yield tmp_path
    for name in ("own_parity", "own_bad", "own_wrong", "own_exit", "own_lost"):
        sys.modules.pop(name, None)


def test_a_class_of_your_own(own):
    data = open_source(DataConfig(kind="own_parity:Parity", context=8))
    batch = data.train_batches(3, 0, 0, 2)
    assert isinstance(batch, Batch) and batch.targets.shape == (2, 3)
    np.testing.assert_array_equal(batch.inputs.sum(axis=2) % 2, batch.targets)
    assert (data.source, data.details) == ("own_parity:Parity", "8 tokens a window") and data.floors == {}


def test_the_class_of_the_docs(own):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (own / "own_bad.py").write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    batch = open_source(DataConfig(kind="own_bad:Parity", context=8)).train_batches(3, 0, 0, 2)
    np.testing.assert_array_equal(batch.inputs.sum(axis=2) % 2, batch.targets)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nowhere:Parity", "data.kind: nowhere:Parity: no module nowhere in the current folder "),
        (
            "own_parity:Party",
            "own_parity:Party: module own_parity has no class or function Party; did you mean Parity?",
        ),
        ("own_bad:X", "data.kind: own_bad:X: NameError: name 'y' is not defined on import"),
        ("own_parity:Broken", "data.kind: own_parity:Broken: KeyError: 'no such thing' while it was built"),
        ("own_parity:Late", "own_parity:Late: ZeroDivisionError: division by zero in train_batches at steps 0 to 2"),
        ("own_parity:Bare", "data.kind: own_parity:Bare: Bare has no form, source, details, "),
        ("own_parity:Wrong", "train_batches: expected inputs [3, 2, 5], got [3, 2, 8]"),
    ],
)
def test_a_class_that_does_not_do(own, kind, message):
    assert message in refused(kind=kind)


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG)
def test_what_a_class_says_is_checked(own, body, message):
    lines = body.replace("\n", "\n    ")
    text = f"from own_parity import *\n\nclass Wrong(Parity):\n    {lines}\n"
    (own / "own_wrong.py").write_text(text, encoding="utf-8")
    assert f"data.kind: own_wrong:Wrong: {message}" in refused(kind="own_wrong:Wrong", context=8)


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [
        ("own_exit", "import sys\nsys.exit(4)", "SystemExit: 4 on import"),
        ("own_exit", "import os\nos.nothing", "AttributeError: module 'os' has no attribute 'nothing' on import"),
        ("own_lost", "import nowhere", "ModuleNotFoundError: No module named 'nowhere' on import"),
        ("queue", "class X: pass", "module queue has no class or function X (it is "),
    ],
)
def test_a_module_that_does_not_do(own, module, text, message):
    """Also a module named as one of Python's: that one is what all others mean by its name."""
    (own / f"{module}.py").write_text(text, encoding="utf-8")
    assert f"data.kind: {module}:X: {message}" in refused(kind=f"{module}:X")


def test_what_comes_later_is_checked_too(own):
    """Batches come in the device's dtypes, masked targets may be anything, and later steps are looked at."""
    (own / "own_wrong.py").write_text(
        "from own_parity import *\n\nclass Later(Parity):\n"
        "    floors = {'': np.float32(0.5)}\n"
        "    def train_batches(self, batch, seed, first, steps):\n"
        "        got = super().train_batches(batch, seed, first, steps)\n"
        "        if first > 5: raise ValueError('two\\nlines')\n"
        "        targets, weights = got.targets.astype(np.int64), np.ones(got.targets.shape)\n"
        "        targets[:, 0], weights[:, 0] = -100, 0\n"
        "        return Batch(got.inputs[:, :, : 8 - (first == 5)].astype(np.int64), targets, weights)\n",
        encoding="utf-8",
    )
    data = open_source(DataConfig(kind="own_wrong:Later", context=8))
    assert data.floors == {"": 0.5} and type(data.floors[""]) is float
    batch = data.train_batches(3, 0, 4, 1)
    assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, np.float32]
    for step, message in {5: r"expected inputs \[1, 3, 8\], got \[1, 3, 7\]", 6: "ValueError: two in train_"}.items():
        with pytest.raises(DataError, match=message):
            data.train_batches(3, 0, step, 1)


def test_a_class_that_was_edited_is_noticed(own):
    first = open_source(DataConfig(kind="own_parity:Parity", context=8)).sha256
    again = open_source(DataConfig(kind="own_parity:Parity", context=8, batch=3)).sha256
    with open(own / "own_parity.py", "a", encoding="utf-8") as file:
        file.write("\n# another line\n")
    assert len(first) == 64 and first == again != open_source(DataConfig(kind="own_parity:Parity", context=8)).sha256


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
    assert main(["train", str(config), "data.kind=own_parity:Values", "name=values"]) == 0
    summary = json.loads((own / "runs/values/main/summary.json").read_text())
    assert summary["loss_val"] > 0 and summary["task"] == "regression"
    capsys.readouterr()
    assert main(["train", str(config), "data.context=9", "name=other"]) == 1
    message = "command line: data.context: data.kind own_parity:Parity has windows of 8 tokens"
    assert message in "".join(capsys.readouterr())
