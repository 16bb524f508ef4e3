"""A data set of the user: `module:Class` in the current folder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data import DataError
from data.source import Batch
from sources import ROOT, opened, refused, write
from train.cli import main

# The page's class, Parity, with np, Batch and DataSpec.
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


def rows(result: str) -> str:
    return f"def rows(self, *args):\n  x, y, _ = super().rows(*args)\n  return Batch({result})"


def train(result: str) -> str:
    return f"def train_batches(self, n, seed, first, k):\n  b = super().train_batches(n, seed, first, k)\n  {result}"


def heldout(result: str) -> str:
    return f"def heldout_batches(self, *args):\n  b, w = super().heldout_batches(*args)\n  return {result}"


LM, ZEROS = "spec = DataSpec('lm', 8, 2, 2)\n", "np.zeros((k, n, 9), int)"
# Faults of a Parity, as the body of a class that inherits from it.
WRONG = [
    rows("x + 1, y"),
    rows("x - 1, y"),
    rows("x, y.astype(np.int64) + 2**33"),
    rows("x * 1.0, y"),
    rows("1 / 0"),
    train("x = np.random.default_rng(seed).integers(0, 2, (k, n, 8)); return Batch(x, x[..., 0])"),
    train("x = np.random.default_rng().integers(0, 2, (k, n, 8)); return Batch(x, x[..., 0])"),
    train("return tuple(b)"),
    train("return Batch(b.inputs[..., :5], b.targets)"),
    "spec = DataSpec('lm', 8, 2, 3)\n" + train(f"return {ZEROS}"),
    LM + train(f"x = {ZEROS}; return x if k == 1 else Batch(x[..., 1:], x[..., 1:])"),
    train("return b if k == 1 else Batch(*b[:2], np.ones((k, n)))"),
    train("return Batch(*b[:2], 0 * b.targets)"),
    train("return Batch(*b[:2], b.targets - 1)"),
    "spec = DataSpec('regression', 8, 2, 1, pooled=True)\n" + rows("x, y * np.nan"),
    train("raise SystemExit(3)"),
    heldout("b, w[:1, :1]"),
    heldout("b, 0 * w"),
    heldout("b"),
    heldout("Batch(b.inputs + 7, b.targets), w"),
    "floors = None",
    "floors = {'': '0.5'}",
    "floors = {'x': float('nan')}",
    "floors = {'x': [1.0]}",
    "tokenizer = 'char'",
    "from data.tokenizer import CharTokenizer\ntokenizer = CharTokenizer('abc')",
    "spec = 'lm'",
    "spec = DataSpec('regression', 8, None, 1)",
    "spec = DataSpec('classification', 8, 2, 0)",
    "@property\ndef spec(self):\n  return self.config.x",
    "name = None",
    "def __init__(self, config):\n  raise KeyError('no such thing')",
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The current folder holds own_parity.py; whatever was imported from it is forgotten."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    write("own_parity.py", PAGE)
    yield tmp_path
    for name in ("own_parity", "own_bad", "own_wrong", "own_exit", "own_lost"):
        sys.modules.pop(name, None)


def class_of(body: str) -> str:
    """The kind of a class that inherits from the page's."""
    lines = body.replace("\n", "\n    ")
    write("own_wrong.py", f"from own_parity import *\n\nclass Wrong(Parity):\n    {lines}\n")
    return "own_wrong:Wrong"


def test_the_class_of_the_page(own):
    data = opened(kind="own_parity:Parity", context=8)
    batch = data.train_batches(3, 0, 0, 2)
    assert isinstance(batch, Batch) and batch.targets.shape == (2, 3)
    np.testing.assert_array_equal(batch.inputs.sum(axis=2) % 2, batch.targets)
    assert (data.name, data.details) == ("own_parity:Parity", "8 tokens a window") and data.floors(4, 2) == {}
    body = "spec = DataSpec('regression', 8, None, 2, channels=3)\n" + rows(
        "np.stack([x] * 3, 2), np.stack([x] * 2, 2)"
    )
    batch = opened(kind=class_of(body), context=8).train_batches(3, 0, 0, 2)
    assert [(leaf.shape, leaf.dtype) for leaf in batch[:2]] == [((2, 3, 8, n), np.float32) for n in (3, 2)]


@pytest.mark.parametrize("body", WRONG, ids=lambda body: body.splitlines()[-1].strip())
def test_what_a_class_says_is_checked(own, body, wording):
    wording(refused(kind=class_of(body), context=8), "data.kind: own_wrong:Wrong")


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("own_exit", "import sys\nsys.exit(4)"),
        ("own_exit", "import os\nos.nothing"),
        ("own_exit", "x = y"),
        ("own_exit", "class X:\n  def __init__(self, config): ..."),
        ("own_exit", "from data.custom import OwnSource as X"),
        ("own_exit", "class Xs: pass"),
        ("own_lost", "import nowhere"),
        ("own_lost", None),
        ("pyclbr", "class X: pass"),
    ],
)
def test_a_module_that_does_not_do(own, module, text, wording):
    """Also a module named as one of Python's: that one is what all others mean by its name."""
    if text is not None:
        write(f"{module}.py", text)
    wording(refused(kind=f"{module}:X"), f"data.kind: {module}:X", volatile=r"(?<=\(it is )[^)]*")


def test_what_comes_later_is_checked_too(own, wording):
    """Batches come in the device's dtypes, masked targets may be anything, and later steps are looked at."""
    lines = (
        "if first > 5: raise ValueError('two\\nlines')",
        "targets, weights = b.targets.astype(np.int64), np.ones(b.targets.shape)",
        "targets[:, 0], weights[:, 0] = -100, 0",
        "return Batch(b.inputs[:, :, : 8 - (first == 5)].astype(np.int64), targets, weights)",
    )
    body = "name, floors = 'two\\nlines', {'': np.float32(0.5)}\n" + train("\n  ".join(lines))
    data = opened(kind=class_of(body), context=8)
    assert data.name == "two lines" and repr(data.floors(4, None)) == "{'': 0.5}"
    batch = data.train_batches(3, 0, 4, 1)
    assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, np.float32]
    for step in (5, 6):
        with wording.raises(DataError, f"data.kind: {class_of(body)}"):
            data.train_batches(3, 0, step, 1)


def test_a_class_that_was_edited_is_noticed(own):
    first = opened(kind="own_parity:Parity", context=8).sha256
    again = opened(kind="own_parity:Parity", context=8, batch=3).sha256
    with open(own / "own_parity.py", "a", encoding="utf-8") as file:
        file.write("\n# another line\n")
    assert len(first) == 64 and first == again != opened(kind="own_parity:Parity", context=8).sha256


TRAINED = """
name: own
model: {layers: 1, width: 8, heads: 1, norm: none, attention: full}
data: {kind: own_parity:Parity, context: 8, batch: 4}
train: {steps: 2, eval_every: 2, eval_batches: 2, checkpoint_every: 2, unroll: 1}
watch: {every: 0}
"""


@pytest.mark.slow
def test_a_run_on_a_class_of_your_own_is_probed(own):
    assert main(["train", config := write("c.yaml", TRAINED)]) == 0
    assert main(["probe", config, "--checkpoint", "runs/own/main"]) == 0


def test_a_class_of_your_own_is_trained_and_its_context_must_be_the_config_s(own, capsys, wording):
    assert main(["train", config := write("c.yaml", TRAINED)]) == 0
    summary = json.loads(Path("runs/own/main/summary.json").read_text())
    assert 0 <= summary["accuracy_val"] <= 1 and summary["loss_val"] > 0 and summary["floors"] == {}
    assert main(["sample", "runs/own/main"]) == 2
    capsys.readouterr()
    kind = class_of("def __init__(self, config):\n  super().__init__(config.model_copy(update={'context': 8}))")
    assert main(["train", config, f"data.kind={kind}", "data.context=9", "name=other"]) == 2
    wording(capsys.readouterr().err, "command line: data.context")
