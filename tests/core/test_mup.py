"""muP: no change at the base width, and width-independent updates at one learning rate."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.source import Batch
from model.config import ModelConfig, problems
from model.network import Network
from model.residual import RULES
from networks import leaves, parameters
from problems import lines
from train.config.load import from_mapping
from train.config.optimizers import OPTIMIZERS
from train.core.mup import POWERS, exponent, growth_of
from train.core.optimizer import transformation
from train.core.state import hparams_of, state_at
from train.core.step import train_step
from train.run.coordcheck import coordcheck

V, T, B = 11, 6, 2
TOKENS: Any = np.random.default_rng(0).integers(0, V, size=(B, T)).astype(np.int32)
NAMES = tuple(OPTIMIZERS)
EXPONENTS = {name: POWERS[optimizer.size] for name, optimizer in OPTIMIZERS.items()}
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in a third of the time


def network(dtype="float32", ends: dict[str, Any] | None = None, **model: Any) -> Network:
    sizes: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2}
    return Network(ModelConfig(**(sizes | model)), V, T, dtype, **(ends or {}))


@partial(quick, static_argnums=0)
def start(net: Network):
    return net.init(0)


@partial(quick, static_argnums=0)
def logits(net: Network, params, head=None):
    return net.apply(params, TOKENS, head=head)[0]


# --- at the base width ---


def text(function: Any, *given: Any) -> str:
    """Returns the jaxpr of a function without memory addresses."""
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(*given)))


@pytest.mark.parametrize(
    "init", ["normal", *(pytest.param(x, marks=pytest.mark.slow) for x in ("xavier", "orthogonal"))]
)
def test_a_model_of_the_base_width_is_the_same_program(init):
    """Results agree to the last bit, also for irrational sqrt(K); another base width gives another program."""

    def programs(**base: int) -> list[str]:
        net = network(width=12, init=init, residual="highway", **base)
        return [text(net.init, 0), text(partial(net.apply, tokens=TOKENS), net.shapes())]

    plain = programs()
    assert programs(base_width=12) == programs(base_width=12, base_heads=2) == plain
    other = programs(base_width=4)
    assert other[1] != plain[1]
    assert (other[0] == plain[0]) == (init != "normal")  # xavier and orthogonal know the width already


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("momentum", "muon") else pytest.mark.slow) for name in NAMES]
)
def test_an_update_at_the_base_width_is_the_same_program(name):
    """The optimizer state is the same too, so checkpoints are compatible."""

    def program(base_width: int | None, told: bool = True) -> str:
        keys = {"optimizer.name": name, "model.width": 16, "model.base_width": base_width, "model.residual": "highway"}
        config = from_mapping({"name": "a"} | keys).variants[0].config
        params, hp = network(residual="highway").shapes(), hparams_of(config).optimizer

        def update(params, grads):
            rule = transformation(config.optimizer, hp, jnp.int32(0), 10, config.model if told else None)
            state = rule.init(params)
            return rule.update(grads, state, params), jax.tree.structure(state).num_nodes

        with jax.numpy_dtype_promotion("standard"):
            return text(update, params, params)

    assert program(16) == program(None) == program(None, told=False) != program(4)


# --- four times the base width, by hand ---


def test_matrices_start_half_as_large_and_all_else_as_large_as_ever():
    net, plain = network(init="normal", residual="highway", base_width=4), network(init="normal", residual="highway")
    wide, usual = leaves(start(net)), leaves(start(plain))
    halved = {path for path in wide if path.endswith("kernel")}
    assert len(halved) == 8 and {"blocks/mlp/out/kernel", "blocks/residual/gate_1/kernel"} < halved
    for path, leaf in wide.items():
        np.testing.assert_array_equal(leaf, usual[path] / 2 if path in halved else usual[path], err_msg=path)


@pytest.mark.parametrize(
    ("model", "scale"),
    [
        ({"width": 64, "heads": 4}, 1 / 4),  # K = 16
        ({"width": 64, "heads": 4, "base_width": 64}, 1 / 4),
        ({"width": 64, "heads": 4, "base_width": 16}, 2 / 16),  # base K = 4
        ({"width": 64, "heads": 4, "base_width": 16, "base_heads": 1}, 1 / 4),  # as many heads a width: K stays
        ({"width": 64, "heads": 4, "base_width": 128, "base_heads": 2}, 8 / 16),  # a base that is wider
    ],
)
def test_the_scale_of_attention_by_hand(model, scale):
    assert problems(ModelConfig(**model)) == []
    assert ModelConfig(**model).usual_attention_scale == pytest.approx(scale, rel=1e-15)


def test_the_scale_of_attention_at_the_base_width_is_the_usual_one_to_the_last_bit():
    for width in range(1, 300):
        assert ModelConfig(width=width, heads=1, base_width=width).usual_attention_scale == 1 / math.sqrt(width)


POOLED = {"task": "classification", "outputs": 3, "pooled": True}


@pytest.mark.parametrize(
    ("model", "ends", "apart"),
    [
        pytest.param({}, {}, False, marks=pytest.mark.slow),
        ({"tied_head": False, "logit_cap": 0.3}, {}, False),
        pytest.param({"attention_scale": 0.7}, {}, False, marks=pytest.mark.slow),  # one's own is kept
        pytest.param({}, POOLED, False, marks=pytest.mark.slow),
        ({}, {}, True),
    ],
    ids=["tied", "untied, capped", "attention scale", "pooled", "a head given apart"],
)
def test_logits_are_a_quarter_and_attention_is_flatter(x64, model, ends, apart):
    """sqrt(base K) / K = sqrt(2) / 8 with two heads of 8; the cap comes after the factor."""
    wide = network("float64", ends, base_width=4, **model)
    plain = network("float64", ends, **({"attention_scale": math.sqrt(2) / 8} | model | {"logit_cap": None}))
    params = parameters(wide)
    head = jnp.asarray(np.random.default_rng(2).normal(size=(V, 16))) if apart else None
    wanted = np.asarray(logits(plain, params, head)) / 4
    if cap := model.get("logit_cap"):
        wanted = cap * np.tanh(wanted / cap)
    np.testing.assert_allclose(logits(wide, params, head), wanted, rtol=1e-12, atol=1e-15)  # sums of terms near 1


# --- factors of the updates ---

MATRICES = [f"attn/{name}" for name in ("q", "k", "v", "o")] + [f"mlp/{name}" for name in ("in", "gate", "out")]
COMMON = dict.fromkeys(["embed", "positions", "head", "norm_f/gain", "norm_f/bias"], "vector")
COMMON |= {
    f"blocks/norm_{n}/{leaf}": "vector"
    for n in ("1", "2", *(f"{n}_{slot}" for n in "12" for slot in ("out", "post", "pre")))
    for leaf in ("gain", "bias")
}
COMMON |= {
    f"blocks/{matrix}/{leaf}": kind for matrix in MATRICES for leaf, kind in (("kernel", "hidden"), ("bias", "vector"))
}
PARTS = ("read", "across", "write")
# Parameters of the rules, # for a sublayer.
OWN: dict[str, dict[str, str]] = {
    "rezero": {"alpha_#": "scalar"},
    "skipinit": {"alpha_#": "scalar"},
    "layerscale": {"lambda_#": "vector"},
    "highway": {"gate_#/kernel": "hidden", "gate_#/bias": "vector"},
    "hyper_connections": {f"{part}_#": "scalar" for part in PARTS}
    | {f"dynamic_{part}_#/kernel": "readout" for part in PARTS}
    | {f"dynamic_{part}_#/scale": "scalar" for part in PARTS},
    "mhc": {f"{part}_#/kernel": "readout" for part in PARTS}
    | {f"{part}_#/{leaf}": "scalar" for part in PARTS for leaf in ("bias", "gate")},
    "attnres": {"query_#": "readout"},
    "value_residual": {"lambda": "scalar"},
    "x0_lambda": {"lambda_0": "scalar", "lambda_1": "scalar"},
    "value_skipinit": {"alpha": "scalar", "beta": "scalar"},
    "gpas": {"gate": "scalar"},
    "denseformer": {"alpha": "scalar", "dynamic/hidden": "readout", "dynamic/out": "scalar"},
}


def own_kinds(rule: str) -> dict[str, str]:
    own = OWN.get(rule, {}).items()
    return {f"blocks/residual/{name.replace('#', n)}": kind for name, kind in own for n in "12"}


def everything(rule: str, **model: Any) -> Network:
    """Returns a network of the rule with every parameter that an option can add."""
    residual = {"rule": rule} | ({"dynamic": True} if rule in ("hyper_connections", "denseformer") else {})
    options = {"norm": "layer", "bias": True, "activation": "swiglu", "tied_head": False}
    return network(residual=residual, **(options | model))


@pytest.mark.parametrize("rule", RULES)
def test_every_parameter_of_every_rule_is_classed_as_it_grows(rule):
    """Kinds agree with a table and with the axes that double with the width; attnres' query is the one exception."""
    sizes = [
        jax.tree.map(lambda leaf: np.array(leaf.shape), everything(rule, width=width).shapes()) for width in (8, 16)
    ]
    narrow, wide = map(leaves, sizes)
    table = {path: kind for path, kind in (COMMON | own_kinds(rule)).items() if path in narrow}
    assert {path: growth_of(path, rule) for path in narrow} == table
    assert set(own_kinds(rule)) <= set(narrow)
    for path, shape in narrow.items():
        grown = tuple((shape != wide[path])[1 if path.startswith("blocks/") else 0 :].tolist())
        kinds = {(True, True): "hidden", (True, False): "readout", (False, True): "vector", (True,): "vector"}
        kind = kinds.get(grown, "scalar" if not any(grown) else "?")
        assert table[path] == ("readout" if "/query_" in path else kind), path


def test_a_parameter_without_a_declared_kind_is_an_error(wording):
    for path, rule in (("blocks/residual/new_1", "rezero"), ("blocks/residual/alpha_1", "pre_ln"), ("foot", "pre_ln")):
        with wording.raises(ValueError) as caught:
            growth_of(path, rule)
        assert rule in str(caught.value) and path in str(caught.value)


SGD, ADAM = (0, 1, -1, 0), (-1, 0, -1, 0)
TABLE = dict.fromkeys(("sgd", "momentum", "nesterov"), SGD) | {"adafactor": (-0.5, 0, -1, 0)}
TABLE |= dict.fromkeys(("adam", "adamw", "lion", "rmsprop", "adagrad", "muon"), ADAM)


def test_exponents_by_table():
    kinds = ("hidden", "vector", "readout", "scalar")
    assert {name: tuple(powers[kind] for kind in kinds) for name, powers in EXPONENTS.items()} == TABLE
    for path, power in (("attn/q/kernel", 0), ("mlp/out/kernel", 0), ("residual/gate_1/kernel", -1)):
        assert exponent("muon", f"blocks/{path}", "highway") == power
        assert exponent("adamw", f"blocks/{path}", "highway") == -1


def test_a_step_of_momentum_by_hand(x64):
    """The update is p - lr (m^power g + weight_decay p): the decay a step does not depend on the width."""
    keys: dict[str, Any] = {"train.dtype": "float64", "data.context": T, "data.batch": B, "optimizer.clip": None}
    keys |= {f"model.{key}": size for key, size in (("layers", 2), ("width", 16), ("heads", 2), ("base_width", 4))}
    keys |= {"model.residual": {"rule": "hyper_connections", "dynamic": True, "streams": 2}}
    keys |= {"model.activation": "linear", "model.positions": "none", "optimizer.name": "momentum"}
    keys |= {"optimizer.warmup": 0, "optimizer.lr": 0.01, "optimizer.weight_decay": 0.3}
    config = from_mapping({"name": "a"} | keys).variants[0].config
    net, hp = Network(config.model, V, T, "float64"), hparams_of(config, "float64")
    params, batch = parameters(net), Batch(TOKENS, np.roll(TOKENS, 1, axis=1))
    after = quick(train_step, static_argnums=(0, 1, 5))(net, config, state_at(config, hp, params), hp, batch, False)[0]
    # The first step's momentum is the gradient.
    before, moved, grads = leaves(params), leaves(after.params), leaves(after.optimizer[0].trace)
    factors, met = {"hidden": 1, "vector": 4, "readout": 1 / 4, "scalar": 1}, set()
    for path, g in grads.items():
        kind = (COMMON | own_kinds("hyper_connections"))[path]
        wanted = before[path] - 0.01 * (factors[kind] * g + (0.3 * before[path] if decays(path) else 0))
        np.testing.assert_allclose(moved[path], wanted, rtol=1e-11, atol=1e-14, err_msg=path)
        met |= {kind} if np.abs(g).max() > 1e-6 else set()
    assert met == set(factors)


def decays(path: str) -> bool:
    return path.endswith("kernel") or path in ("embed", "positions")


# --- the coordinate check (Yang et al. 2022, 2203.03466, appendix D.1) ---

WIDTHS = [32, 64, 128, 256]


# Small steps for the stream, whose norm hides larger ones; large ones for the logits, whose part from the initial head
# goes to zero as m^-1/2.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lr", "std", "quantity"),
    [
        ("adamw", 3e-4, 0.02, "stream_change"),
        ("adamw", 1e-2, 0.02, "logits_change"),
        ("sgd", 0.1, 0.1, "stream_change"),
        ("sgd", 0.3, 0.02, "logits_change"),
    ],
)
def test_one_learning_rate_changes_stream_and_logits_alike_at_every_width(corpus, name, lr, std, quantity):
    """As a power of the width, measured: -0.04, 0.00, -0.07, -0.04, and without base_width 0.47, 0.63, 0.55, 1.04.

    Half a power of m too much or too little, for the hidden or the vector kind, makes 0.19 or more of one of them.
    """
    model = {"layers": 2, "heads": 2, "init": "xavier", "init_std": std, "activation": "relu"}
    optimizer = {"name": name, "lr": lr, "weight_decay": 0.0, "clip": None}
    config = {
        **{"name": "a", "model": model, "optimizer": optimizer},
        "data": {"path": corpus, "context": 16, "batch": 8},
        "variants": {"mup": {"model.base_width": 32}, "standard": {}},
    }
    mup, standard = coordcheck(from_mapping(config), {"width": WIDTHS}, steps=4, seeds=3)
    assert abs(mup["slope"][quantity][-1]) < 0.13
    assert standard["slope"][quantity][-1] > 0.3


# --- what a user reads ---


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ("base_heads: 2", ["base_heads"]),
        ("base_width: 0", ["base_width"]),
        ("base_width: 64.5", ["base_width"]),
        ("base_width: 40000", ["base_width"]),
        ("base_width: 30", ["base_width"]),
        ("base_width: 30, base_heads: 4", ["base_heads"]),
        ("base_width: 32, kv_heads: 2, base_heads: 1", ["base_heads"]),  # or K and V would be readouts
        ("base_widht: 32", ["base_widht"]),
        ("base_width: 32, base_heads: 2, kv_heads: 2", []),
        ("base_width: 12", []),
    ],
)
def test_bad_values_are_one_line_each(tmp_path, keys, wrong, wording):
    for line, key in zip(lines(tmp_path, f"name: a\nmodel: {{{keys}}}\n"), wrong, strict=True):
        wording(line, f"a.yaml:2: model.{key}")


def test_an_optimizer_of_one_s_own_has_no_known_factors(tmp_path, wording):
    text = "name: a\nmodel: {base_width: 32}\noptimizer: {name: 'mine:rule'}\n"
    (line,) = lines(tmp_path, text)
    wording(line, "a.yaml:2: model.base_width")


def test_the_page_on_optimizers_has_the_exponents_and_a_config_that_loads(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in page.splitlines() if row.startswith("|")]
    (head,) = [row for row in rows if row[0] == "optimizer"]
    result = {}
    for names, *powers in rows:
        if powers and set(names.split(", ")) <= set(EXPONENTS):
            result |= dict.fromkeys(names.split(", "), dict(zip(head[1:], powers, strict=True)))
    assert result == {
        name: {kind: f"{p:+g}" if p else "0" for kind, p in row.items()} for name, row in EXPONENTS.items()
    }
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.S) if "base_width" in block]
    assert blocks and all(lines(tmp_path, block) == [] for block in blocks)
