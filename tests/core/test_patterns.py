"""Decay masks, learning-rate factors, freezing, moving averages and user-defined optimizers."""

import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_optimizers import applied, leaves, numbers, tree

from model.network import Network, path_of
from networks import parameters, same
from problems import lines
from train.cli import main
from train.config.load import from_mapping, load, to_yaml
from train.config.schema import OptimizerConfig
from train.core.optimizer import FUNCTIONS, averaged, check
from train.core.patterns import decayed, unfrozen, unmatched
from train.core.state import hparams_of, program_structure, state_at
from train.core.step import train_step
from train.errors import UserError
from train.gradflow.norms import value

# Groups


def changes(config: OptimizerConfig, **changed) -> dict[str, np.ndarray]:
    """Returns the update of one step from tree(0)."""
    (after,) = applied(config, numbers(**changed), tree(0), [tree(1)])
    return leaves(jax.tree.map(lambda a, b: np.asarray(a - b), after, tree(0)))


def test_a_decay_mask_replaces_the_usual_one(x64):
    mask = decayed(OptimizerConfig(decay_mask=("blocks/attn", "norm_f/*")), tree(0))
    on = {path_of(keys) for keys, masked in jax.tree_util.tree_leaves_with_path(mask) if masked}
    assert on == {"blocks/attn/q/kernel", "blocks/attn/q/bias", "norm_f/gain"}
    none = changes(OptimizerConfig(decay_mask=(), schedule="constant"))
    free = changes(OptimizerConfig(schedule="constant"), weight_decay=0.0)
    for path, change in none.items():
        np.testing.assert_array_equal(change, free[path], err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "muon", pytest.param("adafactor", marks=pytest.mark.slow)])
def test_a_factor_multiplies_the_whole_update_and_the_first_match_counts(x64, name):
    patterns = {"blocks/attn/q/bias": 0.5, "blocks/attn/*": 3.0, "embed": 0.0}
    hp = {"lr_factors": patterns}
    plain = changes(OptimizerConfig(name=name, schedule="constant"))
    scaled = changes(OptimizerConfig(name=name, schedule="constant", lr_factors=patterns), **hp)
    for path, change in plain.items():
        factor = {"blocks/attn/q/bias": 0.5, "blocks/attn/q/kernel": 3.0, "embed": 0.0}.get(path.split("@")[0], 1.0)
        np.testing.assert_allclose(scaled[path], factor * change, rtol=1e-9, atol=1e-15, err_msg=path)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "muon", "adafactor"])
def test_what_is_frozen_stays_to_the_last_bit_and_the_rest_moves(x64, name):
    config = OptimizerConfig(name=name, freeze=("embed", "blocks/mlp/*"), schedule="constant")
    for path, change in changes(config).items():
        frozen = path == "embed" or path.startswith("blocks/mlp")
        assert (change == 0).all() if frozen else (change != 0).all(), path


@pytest.mark.slow
def test_what_is_frozen_has_no_part_in_the_norm_that_is_clipped(tiny):
    keys = {"optimizer.freeze": ["embed"], "optimizer.clip": 1e-3, "watch.counterfactual": False, "model.norm": "none"}
    config = tiny(keys).variants[0].config
    net, hp = Network(config.model, 24, 8), hparams_of(config)
    windows = np.random.default_rng(0).integers(0, 24, size=(4, 9)).astype(np.int32)
    step: Any = jax.jit(lambda state: train_step(net, config, state, hp, windows, True))
    watched = step(state_at(config, hp, parameters(net)))[2]
    whole, frozen = (float(value(norm)) for norm in (watched.grad_global, watched.flow.grad["embed"]))
    assert frozen > 0.1 * whole
    assert float(watched.clip_factor) == pytest.approx(1e-3 / math.sqrt(whole**2 - frozen**2), rel=1e-4)


def test_frozen_gradients_are_zero_whatever_they_were():
    grads = tree(1)
    grads["embed"][0, 0] = np.nan
    got = unfrozen(OptimizerConfig(freeze=("embed",)), grads)
    assert (np.asarray(got["embed"]) == 0).all()
    assert got["norm_f"]["gain"] is grads["norm_f"]["gain"]


def test_a_pattern_that_means_nothing_is_named_with_its_nearest(wording):
    config = OptimizerConfig(freeze=("embd", "blocks"), lr_factors={"blocks/atn/*": 2.0}, decay_mask=("norm_f",))
    found = dict(unmatched(config, tree(0)))
    assert list(found) == ["lr_factors", "freeze"]
    wording(found["lr_factors"])
    wording(found["freeze"])
    with wording.raises(UserError, "optimizer.lr_factors"):
        check(config, {}, tree(0))


def test_factors_are_traced_and_their_patterns_are_not(tiny):
    def config(**factors):
        return tiny({"optimizer.lr_factors": factors}).variants[0].config

    one, two = config(embed=0.5, blocks=2.0), config(embed=0.25, blocks=2.0)
    assert hparams_of(one).optimizer["lr_factors"] == {"embed": 0.5, "blocks": 2.0}
    assert program_structure(one).model_dump_json() == program_structure(two).model_dump_json()
    assert hash(program_structure(one)) == hash(program_structure(two))
    for other in (config(embed=0.5), config(blocks=2.0, embed=0.5)):  # the first match counts, so order does
        assert program_structure(other).model_dump_json() != program_structure(one).model_dump_json()


def test_patterns_come_back_from_the_run_directory_s_config(tmp_path):
    keys = {"optimizer.lr_factors": {"blocks/attn/*": 0.5, "embed": 2}, "optimizer.freeze": ["blocks/mlp/*"]}
    config = from_mapping({"name": "a"} | keys).variants[0].config
    file = tmp_path / "a.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load(file).variants[0].config == config
    assert dict(config.optimizer.lr_factors) == {"blocks/attn/*": 0.5, "embed": 2.0}


@pytest.mark.parametrize(
    "keys",
    [
        *("name: adamv", "name: 'a b:c'", "lr_factors: {embed: -1.0}", "lr_factors: 2.0", "freeze: embed"),
        *("freeze: [1]", "clip_value: 0.0", "ema: 1.0", "momentum: 1.0", "schedule: onecycle"),
        "decay_fraction: 0.1, schedule: wsd, warmup: 1900",
    ],
)
def test_bad_values_are_one_line_each(tmp_path, keys, wording):
    (line,) = lines(tmp_path, f"name: a\noptimizer: {{{keys}}}\n")
    wording(line, f"a.yaml:2: optimizer.{keys.partition(':')[0]}")


# Moving averages


def test_an_average_weighs_each_step_by_its_age_and_the_start_not_at_all(x64):
    values = np.random.default_rng(0).normal(size=(6, 3))
    for decay in (0.0, 0.3, 0.999):
        ema: Any = {"w": jnp.asarray(values[0])}
        for t in range(1, 6):
            ema = averaged(ema, {"w": jnp.asarray(values[t])}, np.float64(decay), jnp.int32(t))
            ages = decay ** np.arange(t - 1, -1, -1.0)
            np.testing.assert_allclose(ema["w"], ages @ values[1 : t + 1] / ages.sum(), rtol=1e-12)


# Whole runs, and optimizers of the user's own


@pytest.fixture
def trains(corpus, tmp_path, monkeypatch, capsys):
    """Trains in a separate folder. Returns (exit code, standard error, run directory)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "config.yaml").write_text(
        f"""
name: tiny
model: {{layers: 1, width: 16, heads: 2, init_std: 0.1, norm: none}}
data: {{path: {corpus}, context: 8, batch: 4}}
optimizer: {{warmup: 2, lr: 1e-2, min_lr: 1e-3}}
train: {{steps: 20, eval_every: 20, eval_batches: 2, checkpoint_every: 10, steps_per_call: 10, unroll: 1}}
watch: {{every: 0}}
""",
        encoding="utf-8",
    )

    def train(*overrides: str):
        code = main(["train", "config.yaml", *overrides])
        return code, capsys.readouterr().err, tmp_path / "runs" / "tiny" / "main"

    return train


def rows(directory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_run_with_everything_on_learns_and_resumes(trains):
    keys = ["optimizer.name=muon", "optimizer.ema=0.9", "optimizer.freeze=[positions]", "optimizer.clip_value=0.5"]
    keys += ["optimizer.lr_factors={embed: 0.1, blocks/attn/*: 2.0}", "optimizer.clip_matrix=0.1"]
    keys += ["optimizer.schedule=wsd", "optimizer.accumulate=2", "model.norm=rms"]
    code, _, directory = trains(*keys)
    assert code == 0
    logged = {row["step"]: row for row in rows(directory)}
    assert logged[0]["loss/val_ema"] == logged[0]["loss/val"]
    assert logged[20]["loss/val_ema"] != logged[20]["loss/val"]
    assert logged[20]["loss/val_ema"] < logged[0]["loss/val_ema"] - 0.1
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    assert summary["loss_val_ema"] == logged[20]["loss/val_ema"]

    (directory / "ckpt" / "00000020.safetensors").unlink()
    (directory / "summary.json").unlink()
    assert trains(*keys)[0] == 0
    assert {row["step"]: row for row in rows(directory)}[20]["loss/val_ema"] == logged[20]["loss/val_ema"]


@pytest.mark.slow
def test_variants_of_one_program_have_averages_of_their_own(trains, tmp_path):
    code, _, directory = trains(
        "variants={slow: {optimizer.ema: 0.99}, fast: {optimizer.ema: 0.0}}", "train.group=vmap"
    )
    assert code == 0
    fast = rows(directory.parent / "fast")[-1]
    assert fast["loss/val_ema"] == pytest.approx(fast["loss/val"], rel=1e-6)
    slow = rows(directory.parent / "slow")[-1]
    assert slow["loss/val"] == pytest.approx(fast["loss/val"], rel=1e-5)
    assert abs(slow["loss/val_ema"] - slow["loss/val"]) > 1e-3


def test_a_pattern_that_means_nothing_is_said_before_anything_trains(trains):
    code, error, directory = trains("variants={a: {}, b: {optimizer.freeze: [embedding]}}")
    assert code == 2
    assert error.splitlines()[-1] == (
        "deltaflow: command line: optimizer.freeze: no parameter matches 'embedding'; nearest: embed (variant b)"
    )
    assert not (directory.parent / "a" / "metrics.jsonl").exists()


MINE = """
import optax

def descent(numbers, lr):
    return optax.chain(optax.trace(numbers["momentum"]), optax.scale(-lr))

def broken(numbers, lr):
    return optax.scale(numbers["nothing"])

def late(numbers, lr):
    return optax.GradientTransformation(lambda p: (), lambda u, s, p=None: ({}[1], s))

def other(numbers, lr):
    return 3

def lossy(numbers, lr):
    return optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (u["embed"], s))
"""


def test_an_optimizer_of_one_s_own_is_the_rule_it_says(x64, monkeypatch):
    def descent(numbers, lr):
        return optax.chain(optax.trace(numbers["momentum"]), optax.scale(-lr))

    monkeypatch.setitem(FUNCTIONS, "mine:descent", descent)
    hp = numbers(momentum=0.5, weight_decay=0.0)
    own, usual = (
        applied(OptimizerConfig(name=name, schedule="constant"), hp, tree(0), [tree(1), tree(2)])[-1]
        for name in ("mine:descent", "momentum")
    )
    same(own, usual, rtol=1e-12)


@pytest.mark.slow
def test_an_optimizer_of_one_s_own_trains_and_its_checkpoint_is_read_without_it(trains, tmp_path):
    (tmp_path / "mine_good.py").write_text(MINE, encoding="utf-8")
    keys = "own: {optimizer.name: 'mine_good:descent'}, usual: {optimizer.name: momentum, optimizer.weight_decay: 0.0}"
    assert trains(f"variants={{{keys}}}", "optimizer.momentum=0.5")[0] == 0
    own, usual = (rows(tmp_path / "runs" / "tiny" / name)[-1] for name in ("own", "usual"))
    assert own["loss/val"] == pytest.approx(usual["loss/val"], rel=1e-6)
    FUNCTIONS.clear()  # a checkpoint of its is read by another process, of a config with another optimizer
    assert main(["probe", "config.yaml", "--checkpoint", "runs/tiny/own"]) == 0


@pytest.mark.parametrize(
    "name",
    [
        *("nowhere:f", "mine_worse:f", "mine_lost:f", "mine_exit:f"),
        *(f"mine_bad:{name}" for name in ("descend", "broken", "late", "other", "lossy")),
    ],
)
def test_what_is_wrong_with_an_optimizer_of_one_s_own_is_one_line(trains, tmp_path, name, wording):
    (tmp_path / "mine_bad.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "mine_worse.py").write_text("def f(", encoding="utf-8")
    (tmp_path / "mine_lost.py").write_text("import nowhere", encoding="utf-8")
    (tmp_path / "mine_exit.py").write_text("import sys; sys.exit(5)", encoding="utf-8")
    for module in [module for module in sys.modules if module.startswith("mine_")]:
        del sys.modules[module]
    code, error, _ = trains(f"optimizer.name={name}")
    assert code == 2
    wording(error.splitlines()[-1], f"command line: optimizer.name: {name}")
    assert "Traceback" not in error
