"""`deltaflow probe --json`: by its schema, and its figures against each other and against plain JAX."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from model.network import Network
from model.residual import RULES
from runs import rows
from train.core.loss import tapped_loss
from train.core.probe import _delta, finite, measure, numbers
from train.gradflow.delta import Flow
from train.gradflow.norms import Norm, named, value
from train.gradflow.verdict import float_or_zero

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "probe.schema.json").read_text(encoding="utf-8"))


def validate(value):
    validator = Draft202012Validator(SCHEMA)
    errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.path)))
    assert not errors, [(list(error.path), error.message[:200], error.context) for error in errors]


@pytest.fixture
def probe(trained, tmp_path, call):
    """A function that probes the trained run's config: (its JSON, valid under the schema; standard output)."""

    def measured(*arguments):
        file = tmp_path / "p.json"
        code, out, err = call("probe", trained[0], *arguments, "--json", file)
        assert (code, err) == (0, "")
        result = json.loads(file.read_text(encoding="utf-8"))
        validate(result)
        return result, out

    return measured


def test_the_schema_is_one_and_says_what_everything_is():
    Draft202012Validator.check_schema(SCHEMA)
    fields = []

    def walk(node):
        if isinstance(node, dict):
            fields.extend(node.get("properties", {}).items())
            fields.extend(node.get("patternProperties", {}).items())
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(SCHEMA)
    assert len(fields) > 50
    for name, field in fields:
        assert field["description"].endswith(".") and field["unit"], name


def test_what_probe_writes_is_what_the_schema_says(probed):
    validate(probed)
    assert [result["variant"] for result in probed] == ["with", "without_skip", "bare"]
    for wrong in ({"loss": "low"}, {"gain": [-1.0]}, {"extra": 1}, {"verdict": {"state": "fine"}}):
        with pytest.raises(AssertionError):
            validate([probed[0] | wrong])
    with pytest.raises(AssertionError):
        validate({key: field for key, field in probed[0].items() if key != "delta"})


# Streams of another shape, and parameters of the rule's own. The full grid is slow.
@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_what_probe_writes_of_every_rule_is_what_the_schema_says(probe, rule):
    assert len(probe(f"variants={{{rule}: {{model.residual: {rule}}}}}")[0]) == 1


@pytest.mark.slow
def test_a_config_without_variants_gives_an_object_and_a_table(probe, probed):
    result, out = probe("variants={}")
    assert result == dict(probed[0], variant="main")  # the same numbers, too
    title, columns, *rows, verdict = out.splitlines()
    assert title == f"main: loss {result['loss']:.4f} nats per token" and columns.split()[:2] == ["l", "|δ_l|"]
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]
    assert [float(row.split()[1]) for row in rows] == pytest.approx(result["delta"]["norm"], rel=1e-2)
    assert verdict == f"main: {result['verdict']['state']}: {result['verdict']['why']}"


@pytest.mark.slow
def test_the_unit_of_a_loss_is_that_of_its_task(probe):
    keys = ("data.kind=linear_regression", "data.dimensions=3", "data.path=null", "data.tokenizer=char")
    result, out = probe("variants={}", *keys)
    assert result["task"] == "regression"
    assert out.splitlines()[0] == f"main: loss {result['loss']:.4f} squared error"


def test_lengths_and_figures_of_a_probe_agree_with_each_other(probed):
    for result in probed:
        deltas, layers = result["delta"], result["config"]["model"]["layers"]
        assert len(deltas["norm"]) == len(deltas["log10_norm"]) == len(deltas["rms_weighted"]) == layers + 1
        np.testing.assert_allclose(np.log10(deltas["norm"]), deltas["log10_norm"], rtol=1e-9)
        np.testing.assert_allclose(np.array(deltas["norm"]) * result["act"]["rms"], deltas["rms_weighted"], rtol=1e-6)
        np.testing.assert_allclose(np.divide(deltas["norm"][:-1], deltas["norm"][1:]), result["gain"], rtol=1e-9)
        assert result["verdict"]["ratio"] == pytest.approx(np.prod(result["gain"]), rel=1e-9)
        assert result["tokens"] == 32 and len(result["act"]["rank"]) == layers + 1
        assert result["loss"] == pytest.approx(np.log(24), abs=0.5)
        whole = ("embed", "positions", "norm_f", *(["head"] if not result["config"]["model"]["tied_head"] else []))
        for group in ("grad", "grad_without", "weight"):
            norms = result[group]
            if norms is None:
                assert group == "grad_without"
                continue
            inner = [v for tag, v in norms.items() if tag != "layer" and isinstance(v, list)]
            np.testing.assert_allclose(np.sqrt(np.sum(np.square(inner), axis=0)), norms["layer"], rtol=1e-6)
        parts = [*result["grad"]["layer"], *(result["grad"][tag] for tag in whole if tag in result["grad"])]
        assert result["grad_global"] == pytest.approx(np.sqrt(np.sum(np.square(parts))), rel=1e-6)
        if not result["config"]["model"]["tied_head"]:
            assert result["grad"]["embed"] == result["grad"]["lookup"]
            assert result["weight"]["embed"] != result["weight"]["head"]
            assert result["weight_dot_grad"]["embed"] == result["weight_dot_grad"]["lookup"]
        assert result["grad"].keys() == result["weight"].keys() == result["weight_dot_grad"].keys()
        for tag, norm in result["grad"].items():
            np.testing.assert_allclose(np.log10(norm), result["grad_log10"][tag], rtol=1e-6, atol=1e-7)
            bound = np.array(norm) * np.array(result["weight"][tag])  # Cauchy and Schwarz
            assert (np.abs(result["weight_dot_grad"][tag]) <= bound * (1 + 1e-6)).all()


def test_without_is_the_twin_at_skip_scale_zero(probed):
    with_, without, bare = probed
    assert bare["delta_without"] is not None  # post_ln has a skip scale too
    assert with_["loss"] != without["loss"]
    np.testing.assert_allclose(with_["delta_without"]["norm"], without["delta"]["norm"], rtol=1e-5)
    np.testing.assert_allclose(without["delta_without"]["norm"], without["delta"]["norm"], rtol=1e-5)
    for tag, norm in without["grad"].items():
        np.testing.assert_allclose(with_["grad_without"][tag], norm, rtol=1e-4, atol=1e-7, err_msg=tag)


def test_delta_at_step_0_is_what_probe_measures(trained, probed):
    _, run = trained
    ends = [f"layer_{depth:03d}" for depth in range(3)]
    for measured in probed[:2]:
        row = rows(run.parent / measured["variant"])[0]
        for name in ("delta", "delta_without"):
            logged = [row[f"{name}/norm_log10/{layer}"] for layer in ends]
            np.testing.assert_allclose(logged, measured[name]["log10_norm"], rtol=0, atol=1e-5)
        matrices = [tag.split("/")[-1] for tag in row if tag.startswith("grad/norm_log10/layer_000/")]
        assert len(matrices) == 8
        for matrix in matrices:
            logged = [row[f"grad/norm_log10/{layer}/{matrix}"] for layer in ends[:2]]
            np.testing.assert_allclose(logged, measured["grad_log10"][matrix], rtol=0, atol=1e-5)
        assert row["grad/norm_log10/embed"] == pytest.approx(np.log10(measured["grad"]["embed"]), abs=1e-5)
        np.testing.assert_allclose([row[f"act/rms/{end}"] for end in ends], measured["act"]["rms"], rtol=1e-5)
        weighted = [10 ** row[f"delta/rms_weighted_log10/{end}"] for end in ends]
        np.testing.assert_allclose(weighted, measured["delta"]["rms_weighted"], rtol=1e-4)


def test_a_checkpoint_is_measured_at_its_weights(trained, probe, call, probed, wording):
    config, run = trained
    (after,), _ = probe("--checkpoint", run, "variants={with: {}}", "watch.counterfactual=false")
    assert after["loss"] < probed[0]["loss"] - 0.2
    assert after["weight"]["attn_q"] != probed[0]["weight"]["attn_q"]
    for key, place in (("model.layers=3", run), ("data.context=6", "variant with")):
        code, out, err = call("probe", config, "--checkpoint", run, "variants={with: {}}", key)
        assert (code, out, err.count("\n")) == (2, "", 1)
        wording(err, place)


@pytest.mark.slow
def test_a_checkpoint_is_measured_in_the_dtype_of_the_config(x64, trained, probe):
    """Whatever the run was trained in."""
    losses = []
    for dtype in ("float32", "float64"):
        (measured,), _ = probe("--checkpoint", trained[1], "variants={with: {}}", f"train.dtype={dtype}")
        assert measured["dtype"] == dtype
        losses.append(measured["loss"])
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=1e-6)


# 24 characters, as many as its own text has, or fewer: either way they have the ids of others; and no tokenizer at all.
@pytest.mark.parametrize(
    ("letters", "keys", "name"),
    [
        ("abcdefghijklmnopqrstuvw ", (), "other.txt"),
        ("abc ", (), "other.txt"),
        ("", ("data.kind=copy", "data.symbols=22", "data.path=null"), "copy"),
    ],
)
def test_a_checkpoint_is_not_measured_on_tokens_of_another_text(trained, tmp_path, call, letters, keys, name, wording):
    config, run = trained
    (tmp_path / "other.txt").write_text(letters * 300, encoding="utf-8")
    keys = [f"data.path={tmp_path / 'other.txt'}", "variants={}", *keys]
    code, out, err = call("probe", config, "--checkpoint", run, *keys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert name in err
    wording(err, run)


@pytest.mark.slow
def test_weights_and_their_products_with_gradients_are_named_alike(x64, tiny):
    """Against plain jax.grad, without taps; a tied table has two uses."""
    keys = {"model.bias": True, "model.norm": "layer", "train.dtype": "float64"}
    config = tiny(keys).variants[0].config
    network = Network(config.model, 11, 8, "float64")
    params = jax.jit(network.init)(np.uint32(0), {"init_std": np.float64(0.3)})
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)  # no bias at zero
    windows, numbers = np.random.default_rng(0).integers(0, 11, (2, 9)), {"skip_scale": np.float64(1)}
    loss = tapped_loss(network, windows, numbers, None)

    @jax.jit
    def both(params):
        probe = measure(network, params, windows, numbers)
        plain = jax.grad(lambda p, head: loss(p, head, None)[0], (0, 1))(params, params["embed"])
        return (probe.weight, probe.dot), plain

    (sizes, dots), (grads, head) = jax.device_get(both(params))
    embed, lookup, slopes = params["embed"], grads["embed"], named(grads["blocks"])
    pairs = {
        tag: (np.reshape(w, (2, -1)), np.reshape(slopes[tag], (2, -1))) for tag, w in named(params["blocks"]).items()
    }
    pairs["layer"] = tuple(np.concatenate(parts, axis=1) for parts in zip(*pairs.values(), strict=True))
    pairs |= {"lookup": (embed, lookup), "head": (embed, head), "embed": (embed, lookup + head)}
    for name in ("positions", "norm_f"):
        pairs[name] = tuple(np.concatenate([*map(np.ravel, jax.tree.leaves(tree[name]))]) for tree in (params, grads))
    assert dots.keys() == sizes.keys() == pairs.keys()
    for tag, (weight, grad) in pairs.items():
        axis = 1 if tag in slopes or tag == "layer" else None
        dot, square = np.sum(weight * grad, axis=axis), np.sum(np.square(weight), axis=axis)
        np.testing.assert_allclose(value(dots[tag]), dot, rtol=1e-9, atol=1e-15, err_msg=tag)
        np.testing.assert_allclose(value(sizes[tag]), np.sqrt(square), rtol=1e-12, err_msg=tag)


def test_an_exact_zero_is_zero_and_nothing_else_is():
    norms = Norm(np.array([0.5, 0.0, 0.5, 0.5, np.nan, np.inf]), np.array([1.0, 0.0, -1200.0, 1300.0, 0.0, 0.0]))
    delta = _delta(Flow(norms, {}, None), np.ones(6))
    assert delta["norm"] == [1.0, 0.0, None, None, None, None]
    logs = delta["log10_norm"]
    assert logs[:2] == [0.0, None] and logs[4:] == [None, None]
    assert logs[2] == pytest.approx(-1201 * np.log10(2)) and logs[3] == pytest.approx(1299 * np.log10(2))
    assert delta["rms_weighted"] == [1.0, 0.0, None, None, None, None]
    assert numbers(Norm(np.float64(0.0), np.float64(0.0))) == 0.0
    assert numbers(Norm(np.float64(-0.75), np.float64(3.0))) == -6.0
    assert float_or_zero(-np.inf) == 0.0 and float_or_zero(-400.0) is None
    assert finite(np.array([1.0, np.inf, np.nan])) == [1.0, None, None]
    json.dumps([delta, finite(np.array(-np.inf))], allow_nan=False)


PLAIN = ("variants={}", "model.residual=none", "model.norm=none", "model.init=normal")


@pytest.mark.slow
def test_what_a_stream_out_of_range_leaves_is_null_and_not_zero(probe):
    """1e-30 times 1e-30 is zero in float32 and not in float64: what cannot be told from zero is null."""
    result, _ = probe(*PLAIN, "model.init_std=1e-30")
    norms, logs = result["delta"]["norm"], result["delta"]["log10_norm"]
    assert norms[:2] == [None, None] and logs[:2] == [None, None] and result["gain"] == [None, 0.0]
    assert 1e-32 < norms[2] < 1e-29 and logs[2] == pytest.approx(np.log10(norms[2]))
    assert result["grad"]["attn_q"] == [None, None] and result["grad_log10"]["attn_q"] == [None, None]
    assert result["verdict"]["state"] == "vanishing" and result["verdict"]["ratio"] == 0.0


@pytest.mark.slow
def test_no_float32_zero_where_float64_has_a_value(x64, probe):
    """A plain network whose stream falls below 1e-38: zeros of the float32 probe are zeros of the float64 one."""
    keys = (*PLAIN, "model.init_std=1e-4", "model.layers=6", "model.bias=false")
    results = [probe(*keys, f"train.dtype={dtype}")[0] for dtype in ("float32", "float64")]
    low, exact = (result["grad"] | result["act"] for result in results)
    nulls = 0
    for name in (*(key for key in low if key.startswith(("attn", "mlp"))), "layer", "rms"):
        for a, b in zip(low[name], exact[name], strict=True):
            nulls += a is None
            assert a is None or a == pytest.approx(b, rel=1e-2, abs=0), name
    assert nulls > 10 and all(x is None or x > 0 for x in exact["rms"])
