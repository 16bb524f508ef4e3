"""Registries: what derives from them, and a rule, an activation and an instrument from outside (docs/own_model.md)."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model.rules import ACTIVATIONS, RULES, DeclarationError, Option, meanings, options
from train.cli import main
from train.config.instruments import INSTRUMENTS
from train.config.optimizers import OPTIMIZERS
from train.config.schema import InstrumentsConfig
from train.report.read import read_run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_rule_an_activation_and_an_instrument_from_outside_train(corpus, tmp_path, wording):
    page = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
    for name, code in zip(("mine", "code_of_mine"), re.findall(r"```py\n(.*?)```", page, re.S), strict=True):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    config = {
        "name": "outside",
        "runs_dir": str(tmp_path),
        "model": {
            **{"layers": 2, "width": 8, "heads": 2, "base_width": 4, "activation": "sine"},
            "residual": {"rule": "damped", "factor": 0.25},
        },
        "data": {"path": corpus, "context": 8, "batch": 4},
        "optimizer": {"warmup": 0},
        "train": {"steps": 2, "eval_every": 2, "eval_batches": 1, "checkpoint_every": 2, "unroll": 1},
        "watch": {"every": 1, "instruments": {"largest": 1}},
        "variants": {"set": {}, "default": {"model.residual": "damped"}},
    }
    (tmp_path / "outside.yaml").write_text(json.dumps(config), encoding="utf-8")

    wrong = ["rule=dampd", "factr=1.0", "keep=0.5"]
    code = "import sys, mine; from train.cli import main\n"
    code += "print(*(main(['train', 'outside.yaml', *arguments.split()]) for arguments in sys.argv[1:]))"
    command = [sys.executable, "-c", code, "", *(f"model.residual.{key}" for key in wrong)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0 2 2 2", done.stderr
    for line, key in zip(done.stderr.splitlines(), wrong, strict=True):
        wording(line, f"command line: model.residual.{key.partition('=')[0]}", volatile="(?<=one of ).*(?=, got)")
    for variant, start in (("set", 0.25), ("default", 0.5)):
        steps = read_run(tmp_path / "outside" / variant).steps
        assert steps["weight/norm/layer_001/residual_factor_1"][1][0] == pytest.approx(start, abs=0.01)
        assert steps["weight/largest"][0].tolist() == [0, 1, 2] and (steps["weight/largest"][1] > 0).all()
        assert b"largest weight" in b"".join(
            path.read_bytes() for path in (tmp_path / "outside" / variant).glob("*.tf*")
        )


def test_the_config_has_a_key_for_each_declaration():
    assert list(InstrumentsConfig.model_fields) == list(INSTRUMENTS)
    assert {"alpha", "streams", "block"} < set(options())


def test_each_declaration_names_its_code():
    for declared in (*(rule.implementation for rule in RULES.values()), *(each.rule for each in OPTIMIZERS.values())):
        assert declared().__doc__
    assert all(callable(each.function()) for each in (*INSTRUMENTS.values(), *ACTIVATIONS.values()))


def test_a_loss_spike_names_only_tags_that_an_instrument_logs():
    for instrument in INSTRUMENTS.values():
        assert set(instrument.names) <= {name for tags in instrument.tags for name in tags.names}


@pytest.mark.parametrize(
    ("registry", "name", "code"),
    [
        (RULES, "sandwich", "nosuch_module:X"),
        pytest.param(INSTRUMENTS, "units", "json:Nosuch", marks=pytest.mark.slow),
        (RULES, "sandwich", "json"),
    ],
    ids=["module", "function", "no name"],
)
def test_a_declaration_whose_code_is_missing_is_one_line(
    registry, name, code, corpus, tmp_path, monkeypatch, capsys, wording
):
    config = {
        "name": "missing",
        "runs_dir": str(tmp_path),
        "model": {"layers": 1, "width": 8, "heads": 2, "residual": "sandwich"},
        "data": {"path": corpus, "context": 8, "batch": 4},
        "optimizer": {"warmup": 0},
        "train": {"steps": 1, "eval_batches": 1},
        "watch": {"instruments": {"units": 1}, "counterfactual": False},
    }
    path = tmp_path / "missing.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setitem(registry, name, replace(registry[name], code=code))
    assert main(["train", str(path)]) == 2
    wording(capsys.readouterr().err.splitlines()[-1], code)


@pytest.mark.parametrize("default", [lambda config: 1.0, None])
def test_a_default_that_is_no_number_is_declared_in_words(default, wording):
    with wording.raises(DeclarationError, "Option 'factor of F'"):
        Option("factor of F", default)
    assert "null = half" in meanings({"mine": Option("factor of F", default, shown="half")})


def test_rules_that_share_an_option_agree_on_its_type(monkeypatch, wording):
    from model.config import residual_section

    monkeypatch.setitem(RULES, "other", type(RULES["mhc"])(".base:Residual", {"streams": Option("parts", 2, int)}))
    with wording.raises(DeclarationError, volatile="(?<=got ).*"):
        residual_section()
