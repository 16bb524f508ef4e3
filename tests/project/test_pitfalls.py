"""Silent errors of tools that measure gradients, each at the level of a whole step.

docs/pitfalls.md lists all of them with their tests; those of one module are tested with it.
"""

import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.network import Network
from networks import B, T, V, network, parameters
from train.config.instruments import INSTRUMENTS
from train.config.schema import OptimizerConfig
from train.core.batch import batch_of
from train.core.loss import tapped_loss
from train.core.optimizer import transformation
from train.core.state import hparams_of, initial_state
from train.core.step import train_step
from train.core.tags import watched_scalars
from train.gradflow.delta import backward, flow
from train.gradflow.norms import log10, value
from train.instruments.snapshot import read

ROOT = Path(__file__).parents[2]
WINDOWS = np.random.default_rng(0).integers(0, V, size=(B, T + 1)).astype(np.int32)


def measured(net: Network, params, windows=WINDOWS):
    """(loss, gradient flow) of one batch."""

    @jax.jit
    def run(params):
        loss, result, _ = backward(tapped_loss(net, batch_of(windows), {}, None), params, net.config.layers)
        return loss, flow(result)

    return run(params)


def step_of(config, dtype="float64"):
    """(the watched step jitted, its state, hyperparameters and windows)."""
    model = Network(config.model, V, config.data.context, dtype)
    hp = hparams_of(config, dtype)
    windows = np.random.default_rng(1).integers(0, V, (config.data.batch, config.data.context + 1), np.int32)
    state = jax.jit(lambda: initial_state(model, config, hp))()
    return jax.jit(lambda state, windows: train_step(model, config, state, hp, windows, True)), state, hp, windows


def test_a_final_norm_hides_the_scale_of_delta(x64):
    """The stream 1024 times as large computes the same function, and delta is 1024 times smaller: nothing is wrong
    with it. Only rms(x) and their product say so."""
    net = network(norm_eps=0.0, tied_head=False)
    params = parameters(net)
    large = jax.tree.map(jnp.copy, params)
    for name in ("embed", "positions"):
        large[name] = 1024 * large[name]
    for part, matrix in (("attn", "o"), ("mlp", "out")):
        kernel = large["blocks"][part][matrix]
        large["blocks"][part][matrix] = jax.tree.map(lambda leaf: 1024 * leaf, kernel)
    (loss, plain), (same, scaled) = measured(net, params), measured(net, large)
    assert float(same) == pytest.approx(float(loss), rel=1e-12)
    np.testing.assert_allclose(log10(scaled.delta), log10(plain.delta) - 10 * np.log10(2), rtol=1e-12)
    weighted = value(scaled.delta) * np.asarray(scaled.stream.rms)
    np.testing.assert_allclose(weighted, value(plain.delta) * np.asarray(plain.stream.rms), rtol=1e-12)


@pytest.mark.slow
def test_delta_never_stands_alone(tiny):
    """Every depth that has delta has the stream's rms and their product too."""
    step, state, _, windows = step_of(tiny({"watch.counterfactual": False}).variants[0].config, "float32")
    stats = jax.device_get(step(state, windows)[2])
    (tags,) = watched_scalars(jax.tree.map(lambda leaf: leaf[None], stats), "float32")
    depths = [tag.rsplit("/", 1)[1] for tag in tags if tag.startswith("delta/norm_log10/")]
    assert len(depths) == 3
    for depth in depths:
        delta, rms = tags[f"delta/norm_log10/{depth}"], tags[f"act/rms/{depth}"]
        assert delta is not None and rms is not None
        assert tags[f"delta/rms_weighted_log10/{depth}"] == pytest.approx(delta + math.log10(rms), rel=1e-6)


@pytest.mark.slow
def test_a_tied_table_is_of_neither_layer(x64):
    """Its two paths are added in `embed` and shown apart; no block's norm has a part in them."""
    tied, untied = network(tied_head=True), network(tied_head=False)
    params = parameters(tied)
    one = measured(tied, params)[1]
    two = measured(untied, params | {"head": params["embed"]})[1]
    assert value(one.grad["lookup"]) == pytest.approx(value(two.grad["embed"]), rel=1e-12)
    assert value(one.grad["head"]) == pytest.approx(value(two.grad["head"]), rel=1e-12)
    for name in ("layer", "attn_q", "mlp_out"):
        np.testing.assert_allclose(value(one.grad[name]), value(two.grad[name]), rtol=1e-12)
    np.testing.assert_allclose(value(one.delta), value(two.delta), rtol=1e-12)
    loss = tapped_loss(untied, batch_of(WINDOWS), {}, None)
    grads = jax.jit(jax.grad(lambda p: loss(p, None, None)[0]))(params | {"head": params["embed"]})
    both = float(jnp.linalg.norm(grads["embed"] + grads["head"]))  # added before the norm is taken
    assert value(one.grad["embed"]) == pytest.approx(both, rel=1e-12)
    assert both != pytest.approx(math.hypot(value(one.grad["lookup"]), value(one.grad["head"])), rel=1e-3)


@pytest.mark.parametrize(("name", "feels"), [("adamw", False), ("lion", False), ("sgd", True)])
def test_the_gradient_s_norm_does_not_say_who_learns(x64, name, feels):
    """A gradient 1e-9 times as large: Adam and Lion take the same step, sgd one 1e-9 times as long."""
    params: Any = {"blocks": {"attn": {"q": {"kernel": jnp.ones((2, 3, 3))}}}}
    grads = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape)), params)
    config = OptimizerConfig(name=name, schedule="constant", warmup=0)
    numbers: Any = {"lr": 0.1, "min_lr": 0.0, "weight_decay": 0.0, "betas": (0.9, 0.99), "eps": 1e-30, "momentum": 0.0}
    numbers = jax.tree.map(np.float64, numbers)

    def size(scale):
        with jax.numpy_dtype_promotion("standard"):
            rule = transformation(config, numbers, jnp.int32(0), 10)
            updates, _ = rule.update(jax.tree.map(lambda g: scale * g, grads), rule.init(params), params)
        return float(jnp.linalg.norm(jax.tree.leaves(updates)[0].ravel()))

    assert size(1e-9) / size(1.0) == pytest.approx(1e-9 if feels else 1.0, rel=1e-9)


@pytest.mark.slow
def test_starved_matrices_move_as_much_as_the_others_under_adam(x64, tiny):
    """Without skips the last block's Q gets a thousandth of V's gradient: their update ratios, which are logged too,
    are alike."""
    keys = {"model.layers": 10, "model.residual": "none", "optimizer.eps": 1e-30, "watch.counterfactual": False}
    step, state, _, windows = step_of(tiny(keys | {"model.init": "xavier"}).variants[0].config)
    stats = step(state, windows)[2]
    starved = log10(stats.flow.grad["attn_q"]) - log10(stats.flow.grad["attn_v"])
    moved = {name: log10(stats.update[name]) - log10(stats.weight[name]) for name in ("attn_q", "attn_v")}
    assert starved[-1] < -3
    assert np.abs(moved["attn_q"] - moved["attn_v"]).max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("residual", [pytest.param("attnres", marks=pytest.mark.slow), {"rule": "attnres", "block": 2}])
def test_no_query_of_attnres_has_one_source_alone(x64, residual):
    """With nothing to choose from a query has a gradient of exactly zero, at any weights: the first sublayer reads the
    embedding itself, and every query that there is learns."""
    net = network(residual=residual)
    result = measured(net, parameters(net))[1]
    for name in ("residual_query_1", "residual_query_2"):
        assert np.isfinite(log10(result.grad[name])).all()


def precisions(jaxpr):
    """Yields the precision of each matmul of a program, loops included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from precisions(inner)


QUICK = ("sharpness", "jacobian", "split", "entries")  # to trace


@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in INSTRUMENTS])
def test_instruments_ask_for_the_highest_precision(tiny, name):
    """Those that take differences or iterate, for each of their matmuls; the others read what training computes."""
    keys = {"watch.curvature_batches": 1} | ({"model.residual": "attnres"} if name == "residual" else {})
    config = tiny(keys).variants[0].config
    model, hp = Network(config.model, V, config.data.context, "float32"), hparams_of(config, "float32")
    state = jax.eval_shape(lambda: initial_state(model, config, hp))
    feeds = np.zeros((INSTRUMENTS[name].batches(config.watch), config.data.batch, config.data.context + 1), np.int32)
    program = jax.make_jaxpr(lambda state, hp, feeds: read(name, model, config, state, hp, None, feeds))
    asked = list(precisions(program(state, hp, feeds).jaxpr))
    assert len(asked) > 5
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    assert set(asked) == ({highest} if INSTRUMENTS[name].precise else {None})


def test_the_page_names_tests_that_are_there():
    page = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "test_" in line]
    assert len(rows) >= 13
    for row in rows:
        for module, name in re.findall(r"`(test_\w+)::(test_\w+)`", row):
            (file,) = (ROOT / "tests").rglob(f"{module}.py")
            assert f"def {name}(" in file.read_text(encoding="utf-8"), row
