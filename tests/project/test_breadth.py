"""Every choice of the config, from YAML: each variant trains a few steps with another value of every key."""

import itertools
import json
from typing import Any, get_args

import numpy as np
import pytest

from data.config import DataConfig
from model.config import ModelConfig, ResidualConfig
from model.residual import RULES
from train.cli import main
from train.config.optimizers import OPTIMIZERS
from train.config.schema import OptimizerConfig, TaskConfig

CYCLES: dict[str, list[dict[str, Any]]] = {
    "rule": [{"model.residual": rule} for rule in RULES]
    + [
        {"model.residual": {"rule": "attnres", "block": 1}},
        {"model.residual": {"rule": "hyper_connections", "dynamic": True, "streams": 2}},
        {"model.residual": {"rule": "denseformer", "dynamic": True}},
        *(
            {"model.residual": {"rule": "mhc", "mixing": mixing}}
            for mixing in ("sinkhorn", "identity", "circulant", "lite")
        ),
    ],
    "norm": [
        {"model.norm": "rms", "model.norm_eps": 0.0},
        {"model.norm": "layer", "model.bias": True},
        {"model.norm": "none"},
        {"model.norm": "dyt"},
        {"model.norm": "derf", "model.bias": True},
        {"model.norm": "layer", "model.norm_gain": False},
    ],
    "attention": [
        {"model.heads": 4, "model.kv_heads": 2, "model.qk_norm": True},
        {"model.window": 3, "model.attention_cap": 20.0},
        {"model.logit_cap": 30.0, "model.attention_scale": 0.2},
        {"model.base_width": 8},
    ],
    "positions": [{"model.positions": p} for p in ("learned", "rope", "sinusoidal", "alibi", "none")],
    "activation": [{"model.activation": a} for a in ("gelu", "relu", "relu2", "silu", "swiglu", "geglu", "linear")],
    "init": [
        {"model.init": "normal"},
        {"model.init": "xavier", "model.init_gain.attn_o": 0.5},
        {"model.init": "orthogonal"},
    ],
    "dropout": [
        {},
        {"model.dropout": 0.1},
        {"model.dropout_embed": 0.1, "model.dropout_attention": 0.1, "model.dropout_residual": 0.1},
        {"model.tied_head": False},
    ],
    "data": [
        {"data.kind": "text"},
        {"data.tokenizer": "byte"},
        {"data.placement": "host"},
        {"data.kind": "tokens", "data.path": "TOKENS"},
        {"data.kind": "markov", "data.symbols": 3},
        {"data.kind": "copy"},
        {"data.kind": "reverse"},
        {"data.kind": "sort"},
        {"data.kind": "induction"},
        {"data.kind": "addition", "data.digits": 2},
        {"data.kind": "modular", "data.modulus": 7},
        {"data.kind": "linear_regression", "data.dimensions": 2},
        {"data.kind": "digits", "model.attention": "full"},
        {"data.kind": "digits", "model.attention": "full", "task.kind": "regression"},
        {"data.tokenizer": "bpe", "data.vocab_size": 260},
    ],
    "task": [{"task.label_smoothing": 0.1}, {"task.z_loss": 1e-4}, {}],
    "optimizer": [{"optimizer.name": name} for name in OPTIMIZERS],
    "schedule": [
        {"optimizer.schedule": s} for s in ("constant", "linear", "cosine", "wsd", "rsqrt", "step", "one_cycle")
    ],
    "decay": [{"optimizer.decay": "decoupled"}, {"optimizer.decay": "l2"}, {"optimizer.decay": "auto"}],
    "updates": [
        {"optimizer.clip_value": 0.1},
        {"optimizer.clip": None, "optimizer.clip_matrix": 0.5},
        {"optimizer.accumulate": 2, "optimizer.ema": 0.9},
        {"optimizer.freeze": ["embed"], "optimizer.lr_factors": {"blocks/mlp": 0.5}},
    ],
}
# Both are of the cross-entropy, which a regression has not.
NOT_FOR_REGRESSION = ("task.label_smoothing", "task.z_loss")


def table() -> dict[str, dict[str, Any]]:
    """Returns variants by name: as many as the longest cycle, the shorter ones repeated."""
    cycles = [itertools.cycle(choices) for choices in CYCLES.values()]
    variants = {}
    for _ in range(max(map(len, CYCLES.values()))):
        chosen: dict[str, Any] = {}
        for cycle in cycles:
            chosen |= next(cycle)
        rule = chosen["model.residual"]
        regression = chosen.get("task.kind") == "regression" or chosen.get("data.kind") == "linear_regression"
        if regression:
            chosen = {key: value for key, value in chosen.items() if key not in NOT_FOR_REGRESSION}
        name = rule if isinstance(rule, str) else "_".join(map(str, rule.values()))
        variants[name] = chosen
    return variants


def literals(annotation: Any) -> set[Any]:
    """Returns the words that a field may hold."""
    words = set()
    for part in get_args(annotation):
        words |= {part} if isinstance(part, str) else literals(part)
    return words


def test_the_table_has_every_word_that_a_key_may_be():
    values = [value for variant in table().values() for value in variant.values()]
    values += [option for value in values if isinstance(value, dict) for option in value.values()]
    used = {value for value in values if isinstance(value, str)}
    fields = [
        (section, key)
        for section in (ModelConfig, ResidualConfig, DataConfig, TaskConfig, OptimizerConfig)
        for key in section.model_fields
        if key not in ("corpus", "operation")
    ]
    words = {word for section, key in fields for word in literals(section.model_fields[key].annotation)}
    assert len(words) > 60
    assert words - used - {"auto", "causal", "char", "device", "lm", "classification"} == set()


# Two halves, each a minute and a half of compilation; parts of them are in the tests of what they are about.
HALVES = {name: index % 2 for index, name in enumerate(table())}


@pytest.fixture(scope="module", params=[0, 1])
def runs(request, tmp_path_factory, corpus):
    """The run directories of one half of the table."""
    pytest.importorskip("sklearn")
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("breadth")
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, 9, 400).astype(np.uint16))
    base = {
        "name": "breadth",
        "runs_dir": str(folder / "runs"),
        "model": {"layers": 2, "width": 16, "heads": 2, "init_std": 0.1},
        "data": {"context": 8, "batch": 4},
        "optimizer": {"lr": 1e-3, "warmup": 1},
        "train": {
            "steps": 3,
            "eval_every": 3,
            "eval_batches": 2,
            "checkpoint_every": 3,
            "steps_per_call": 3,
            "unroll": 1,
        },
        "watch": {"every": 0},
    }
    variants = {name: keys for name, keys in table().items() if HALVES[name] == request.param}
    for variant in variants.values():
        if variant.get("data.kind", "text") == "text":
            variant["data.path"] = corpus
        if variant.get("data.path") == "TOKENS":
            variant["data.path"] = str(folder / "ids.npy")
        own = {"addition": 8, "modular": 3, "digits": 16}.get(variant.get("data.kind", "text"))
        if own:
            variant["data.context"] = own
    config = folder / "config.yaml"
    config.write_text(json.dumps(base | {"variants": variants}), encoding="utf-8")  # which is YAML
    assert main(["train", str(config)]) == 0
    return [folder / "runs" / "breadth" / name for name in variants]


@pytest.mark.slow
def test_it_trains_from_yaml(runs):
    assert len(runs) >= 9
    for folder in runs:
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["steps"] == 3 and summary["exit_reason"] == "done", folder.name
        assert summary["loss_val"] is not None and summary["first_nonfinite_step"] is None, folder.name
        row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        assert np.isfinite(row["loss/val"]) and row["loss/val"] != summary["loss_val"], folder.name
