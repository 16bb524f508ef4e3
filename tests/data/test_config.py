"""Options of each kind of data, and the combinations that are refused."""

import pytest

from data.config import KINDS, DataConfig, problems
from sources import opened, refused
from train.cli import main

BOTH = {"path": "x", "corpus": "python-docs"}
ODD = [[0.5, 0.5], [0.6, 0.5]]


@pytest.mark.parametrize(
    ("kind", "options", "keys"),
    [
        ("markov", {"digits": 2}, ["digits"]),
        ("copy", {"path": "x"}, ["path"]),
        ("copy", {"vocab_size": 300}, ["vocab_size"]),
        ("text", {"vocab_size": 300}, ["vocab_size"]),
        ("text", BOTH, ["path"]),
        ("tokens", {}, ["path"]),
        ("modular", {"context": 8}, ["context"]),
        ("copy", {"context": 1}, ["context"]),
        ("linear_regression", {"context": 9}, ["context"]),
        ("markov", {"transition": ODD}, ["transition"]),
        ("markov", {"transition": [[2.0, -1.0]] * 2}, ["transition"]),
        ("markov", {"transition": [[1.0, 2.0]]}, ["transition"]),
        ("markov", {"transition": []}, ["transition"]),
        ("addition", {"digits": 4}, []),
        ("mine:Class", {"digits": 4, "path": "x", "vocab_size": 300}, []),
    ],
    ids=str,
)
def test_options_that_do_not_belong(kind, options, keys, wording):
    faults = problems(DataConfig(kind=kind, **options))
    assert [key for key, _ in faults] == keys
    for key, message in faults:
        wording(message)
        assert refused(kind=kind, **options) == f"data.{key}: {message}"


FIXED = [("modular", {}, 3), ("addition", {"digits": 4}, 14), ("addition", {"context": 11}, 11), ("digits", {}, 16)]


@pytest.mark.parametrize(("kind", "options", "context"), FIXED)
def test_a_length_of_its_own(kind, options, context):
    config = DataConfig(kind=kind, **options)
    assert config.context == context
    if kind != "digits":
        assert opened(kind=kind, **options).spec.context == context


def test_each_kind_is_a_declaration_of_what_opens_it():
    for name, kind in KINDS.items():
        assert kind.opener().__doc__, name
        assert {*kind.options} <= DataConfig.model_fields.keys()


def test_kinds_that_are_none(tmp_path, capsys, wording):
    (tmp_path / "c.yaml").write_text("name: a\ndata: {kind: markof}\n", encoding="utf-8")
    assert main(["train", "c.yaml"]) == 2
    wording(capsys.readouterr().err, "c.yaml:2: data.kind")
