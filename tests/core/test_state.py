"""Structures that share a program, and the traced numbers that differ within one."""

import jax
import numpy as np
import pytest
import yaml

from train.core.state import hparams_of, program_structure, stacked_hparams

SHARED = (
    "seed: 7; data.seed: 7; name: other; model.skip_scale: 0.5; model.residual: none; model.residual: gpt2_scaled; "
    "model.init_std: 0.3; model.norm_eps: 0.001; model.init_gain.attn_q: 2.0; optimizer.lr: 0.5; "
    "optimizer.min_lr: 0.00001; optimizer.weight_decay: 0.0; optimizer.betas: [0.5, 0.6]; optimizer.clip: 0.1; "
    "optimizer.eps: 0.000001"
)
OWN = (
    "optimizer.clip: null; optimizer.name: sgd; optimizer.schedule: linear; optimizer.warmup: 5; "
    "optimizer.accumulate: 2; model.residual: rezero; model.residual: post_ln; model.norm: none; model.norm: layer; "
    "model.layers: 3; model.init: normal; model.dropout: 0.1; data.batch: 8; data.context: 7; data.tokenizer: byte; "
    "train.steps: 40; train.dtype: bfloat16; watch.every: 10; watch.counterfactual: false"
)


@pytest.mark.parametrize("keys", f"{SHARED}; {OWN}".split("; "))
def test_what_shares_a_program(tiny, keys):
    base, other = tiny().variants[0].config, tiny(yaml.safe_load(keys)).variants[0].config
    assert (program_structure(base) == program_structure(other)) is (keys in SHARED.split("; "))
    assert base != other


def test_a_number_that_is_traced_is_in_hparams_and_nowhere_else(tiny):
    keys = {"seed": 7, "model.skip_scale": 0.5, "model.init_std": 0.3, "optimizer.lr": 0.25, "optimizer.min_lr": 0.125}
    keys |= {"optimizer.weight_decay": 0.75, "optimizer.betas": [0.5, 0.625], "optimizer.clip": 0.0625}
    config = tiny(keys).variants[0].config
    hp = hparams_of(config)
    assert (int(hp.seed), hp.seed.dtype) == (7, np.uint32)
    assert hp.model["skip_scale"] == 0.5 and hp.model["init_std"] == np.float32(0.3)
    wanted = {"lr": 0.25, "min_lr": 0.125, "weight_decay": 0.75, "betas": (0.5, 0.625), "clip": 0.0625}
    assert hp.optimizer == wanted | {"eps": np.float32(1e-8), "momentum": np.float32(0.9)}
    assert all(number.dtype == np.float32 for number in jax.tree.leaves((hp.model, hp.optimizer)))
    assert hparams_of(config, "float64").optimizer["lr"].dtype == np.float64
    shared = program_structure(config).model_dump_json()
    assert not any(text in shared for text in ("0.5", "0.3", "0.25", "0.125", "0.75", "0.625", "0.0625"))


def test_residual_none_is_skip_scale_zero(tiny):
    none = hparams_of(tiny({"model.residual": "none"}).variants[0].config)
    assert none == hparams_of(tiny({"model.skip_scale": 0.0}).variants[0].config)


def test_stacked_hparams_have_a_variant_axis(tiny):
    hps = [hparams_of(tiny({"optimizer.lr": lr}).variants[0].config) for lr in (0.1, 0.2, 0.3)]
    stacked = stacked_hparams(hps)
    np.testing.assert_array_equal(stacked.optimizer["lr"], np.float32([0.1, 0.2, 0.3]))
    assert stacked.seed.shape == (3,) and stacked.seed.dtype == np.uint32
