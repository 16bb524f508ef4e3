"""Options of each kind of data, and the combinations that are refused."""

import pytest

from data.config import KINDS, DataConfig, problems
from sources import opened, refused
from train.cli import main

BOTH = {"path": "x", "corpus": "python-docs"}
ODD = [[0.5, 0.5], [0.6, 0.5]]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("markov", {"digits": 2}, "digits: an option of addition; data.kind is markov"),
        ("copy", {"path": "x"}, "path: an option of text, tokens; data.kind is copy"),
        ("copy", {"vocab_size": 300}, "vocab_size: an option of text; data.kind is copy"),
        ("text", {"vocab_size": 300}, "vocab_size: an option of tokenizer bpe; data.tokenizer is char"),
        ("text", BOTH, "path: give corpus or path, not both (corpus is 'python-docs')"),
        ("tokens", {}, "path: missing; data.kind tokens needs a .npy or .bin file"),
        ("modular", {"context": 8}, "context: expected 3 with data.kind modular (leave it out), got 8"),
        ("copy", {"context": 1}, "context: expected at least 2 with data.kind copy, got 1"),
        ("linear_regression", {"context": 9}, "context: expected an even number (x and y are a token each), got 9"),
        ("markov", {"transition": ODD}, "transition: expected rows of probabilities that sum to 1, row 1 sums to 1.1"),
        ("markov", {"transition": [[2.0, -1.0]] * 2}, "transition: expected rows of probabilities, row 0 has -1"),
        ("markov", {"transition": [[1.0, 2.0]]}, "transition: expected a square matrix, got 1 rows of 2"),
        ("markov", {"transition": []}, "transition: expected a square matrix, got 0 rows of "),
        ("addition", {"digits": 4}, ""),
        ("mine:Class", {"digits": 4, "path": "x", "vocab_size": 300}, ""),
    ],
)
def test_options_that_do_not_belong(kind, options, expected):
    faults = problems(DataConfig(kind=kind, **options))
    assert "; ".join(f"{key}: {message}" for key, message in faults) == expected
    if expected:
        assert refused(kind=kind, **options) == f"data.{expected}"


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


def test_kinds_that_are_none(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("name: a\ndata: {kind: markof}\n", encoding="utf-8")
    assert main(["train", "c.yaml"]) == 2
    line = "".join(capsys.readouterr())
    assert "data.kind: expected one of text, tokens, markov," in line
    assert "or module:Class, got 'markof'; did you mean markov?" in line
