"""The instrument `residual`: a rule's parameters by hand, its mixing weights by what they mix, and both in a run."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

from data.source import Batch
from model.config import ModelConfig
from model.network import Network
from model.residual.attnres import AttnRes
from model.residual.streams import ManifoldHyperConnections
from runs import events_of
from train.cli import main
from train.gradflow.mixing import depth_mixing, matrices, own_parameters, sizes, source_weights, stream_mixing
from train.gradflow.per_block import carries
from train.instruments.blocks import residual
from train.instruments.readings import Matrix, scalars_of
from train.instruments.snapshot import Snapshot
from train.report.heatmaps import matrix_chart
from train.report.read import read_run

ROOT = Path(__file__).parents[2]
TOKENS = np.random.default_rng(0).integers(0, 7, (2, 5))


def network(rule, dtype="float64", **model):
    return Network(ModelConfig(layers=3, width=8, heads=2, residual=rule, **model), 7, 5, dtype)


def drawn(net):
    """Parameters away from their start."""
    params, keys = jax.jit(lambda: net.init(0))(), iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape, leaf.dtype), params)


def test_numbers_and_matrices_by_hand():
    own = {
        "alpha_1": jnp.array([1.0, -2.0]),
        "gate_1/kernel": jnp.array([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, -1.0]]]),
        "alpha": jnp.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]),  # a row a block over all sources, as denseformer has
        "across_1": jnp.arange(8.0).reshape(2, 2, 2),
    }
    result = {name: values.tolist() for name, values in sizes(own).items()}
    assert result["alpha_1"] == [1.0, -2.0] and result["gate_1/kernel"] == [2.5, 1.0]
    assert result["alpha"] == pytest.approx([3**-0.5, 6**-0.5]) and list(result) == list(own)
    drawn = matrices(own, ["alpha*", "across_*"])
    assert {name: leaf.shape for name, leaf in drawn.items()} == {"alpha": (2, 1, 3), "across_1": (2, 2, 2)}
    assert drawn["across_1"][1].tolist() == [[4.0, 5.0], [6.0, 7.0]]


@pytest.mark.slow
@pytest.mark.parametrize(("block", "heads"), [(None, 2), (1, None)])
def test_weights_of_sources_are_those_that_attnres_mixes_with(x64, block, heads):
    """sum_i alpha_i v_i is the h that a block passes on, by the model itself."""
    net = network({"rule": "attnres", "block": block, "heads": heads}, norm_eps=1e-3)
    rule, eps = AttnRes(net.config), jnp.float64(1e-3)
    counts = [2 + done // rule.size for done in range(6)]

    @jax.jit
    def measured(params):
        anatomy, own = net.anatomy(params, TOKENS), own_parameters(params)
        entered = carries(anatomy)
        sources, h = jax.tree.map(lambda leaf: leaf[1:], entered)  # that leave each block
        queries, H = own["query_2"].reshape(3, heads or 1, -1), heads or 1
        weights = [source_weights(sources[i], queries[i], jnp.int64(counts[2 * i + 1]), eps) for i in range(3)]
        mixed = jnp.einsum("lsnh,lsnhk->lnhk", jnp.stack(weights), sources.reshape(*sources.shape[:-1], H, -1))
        zero = {name: jnp.zeros_like(query) for name, query in own.items()}
        result = depth_mixing(rule, anatomy, own, eps), depth_mixing(rule, anatomy, zero, eps)
        return result, mixed.reshape(h.shape), h, jnp.stack(weights)

    (result, alike), mixed, h, weights = jax.device_get(measured(drawn(net)))
    assert result.shape == (3, 2, rule.rows)
    np.testing.assert_allclose(mixed, h, rtol=1e-9)
    np.testing.assert_allclose(result[:, 1], weights.mean(axis=(2, 3)), rtol=1e-9)
    assert np.ptp(result[2, 1]) > 0.01  # or any weights would do
    for done, count in enumerate(counts):  # queries of 0 weigh all sources alike
        for each in (result, alike):
            row = each[done // 2, done % 2]
            assert (row[count:] == 0).all() and (row[:count] > 0).all() and row.sum() == pytest.approx(1, rel=1e-12)
        np.testing.assert_allclose(row[:count], 1 / count, rtol=1e-12)


@pytest.mark.parametrize(
    "mixing", ["sinkhorn", *(pytest.param(x, marks=pytest.mark.slow) for x in ("identity", "lite"))]
)
def test_mhc_without_its_dynamic_part_by_its_equations(x64, mixing):
    net = network({"rule": "mhc", "streams": 3, "mixing": mixing})
    params = drawn(net)
    own = jax.device_get(own_parameters(params))
    result = jax.device_get(stream_mixing(ManifoldHyperConnections(net.config), params["blocks"]["residual"]))
    for k in "12":
        np.testing.assert_allclose(result[f"read_{k}"][:, 0], 1 / (1 + np.exp(-own[f"read_{k}/bias"])), rtol=1e-9)
        np.testing.assert_allclose(result[f"write_{k}"][:, 0], 2 / (1 + np.exp(-own[f"write_{k}/bias"])), rtol=1e-9)
        for axis in (1, 2):
            np.testing.assert_allclose(result[f"across_{k}"].sum(axis=axis), 1, atol=3e-3)
    if mixing == "sinkhorn":  # its scaling of rows and columns leaves such ratios as they are; (from, to) is transposed
        logs, logits = np.log(result["across_2"][1]), np.reshape(own["across_2/bias"][1], (3, 3)).T
        gaps = [x[0, 1] + x[1, 2] - x[0, 2] - x[1, 1] for x in (logs, logits, logits.T)]
        assert gaps[0] == pytest.approx(gaps[1], rel=1e-6) and gaps[0] != pytest.approx(gaps[2], rel=1e-2)
    if mixing == "identity":
        assert (result["across_1"] == np.eye(3)).all()


def test_a_picture_has_each_entry_at_its_place():
    chart = matrix_chart(np.array([[[0.0, 0.25, 0], [0.5, np.nan, 0]], [[1.0, 2.0, 0], [-1.0, 0.0, 0]]]), "t")
    cells = {(cell["x"] + 0.5, cell["y"]): cell["v"] for cell in chart["data"]["values"]}
    assert cells[1, 0.0] == 0.25 and cells[0, 0.5] == 0.5 and cells[1, 0.5] is None and cells[1, 1.0] == 2.0
    assert len(cells) == 12 and chart["encoding"]["color"]["scale"]["domain"] == [-1.0, 2.0]


@pytest.mark.parametrize(
    ("rule", "numbers", "pictures"),
    [
        pytest.param("rezero", {"alpha_1", "alpha_2"}, {}, marks=pytest.mark.slow),
        ("layerscale", {"lambda_2"}, {}),
        pytest.param(
            {"rule": "hyper_connections", "streams": 2},
            {"read_1", "across_2"},
            {"read_#": (1, 2), "across_#": (2, 2), "write_#": (1, 2)},
            marks=pytest.mark.slow,
        ),
        ("mhc", {"across_1/bias", "read_1/gate"}, {"read_#": (1, 4), "across_#": (4, 4), "write_#": (1, 4)}),
        pytest.param("attnres", {"query_1"}, {"mixing": (2, 7)}, marks=pytest.mark.slow),
        pytest.param("denseformer", {"alpha"}, {"alpha": (1, 4)}, marks=pytest.mark.slow),
    ],
)
def test_every_rule_has_its_numbers_and_pictures(rule, numbers, pictures):
    net = network(rule, dtype="float32")
    params, hp = jax.jit(lambda: net.init(0))(), SimpleNamespace(model={"norm_eps": np.float32(1e-6)})
    batch = Batch(TOKENS[None], TOKENS[None])
    config = SimpleNamespace(model=net.config)
    readings = jax.jit(lambda: residual(Snapshot(net, config, SimpleNamespace(params=params), hp, batch)))()
    tags = scalars_of(jax.device_get(readings))
    assert {f"residual/{name}/layer_002" for name in numbers} <= tags.keys()
    assert all(re.fullmatch(r"residual/.+/layer_00[012]", tag) for tag in tags)
    drawn = {name: reading.values.shape for name, reading in readings.items() if isinstance(reading, Matrix)}
    names = [(name.replace("#", sublayer), shape) for name, shape in pictures.items() for sublayer in "12"]
    assert drawn == {f"residual/{name}/matrix": (3, *shape) for name, shape in names}


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """The config and the folder of runs of three rules, measured at every second step."""
    folder = tmp_path_factory.mktemp("residual")
    config = {
        "name": "rules",
        "runs_dir": str(folder),
        "model": {"layers": 2, "width": 8, "heads": 2, "init_std": 0.1},
        "data": {"path": corpus, "context": 8, "batch": 4},
        "optimizer": {"warmup": 0, "lr": 1e-2, "min_lr": 1e-2},
        "train": {"steps": 4, "eval_every": 4, "eval_batches": 1, "checkpoint_every": 4, "unroll": 1},
        "watch": {"every": 2, "counterfactual": False, "instruments": {"residual": 2}},
        "variants": {name: {"model.residual": name} for name in ("pre_ln", "layerscale", "attnres")},
    }
    path = folder / "rules.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    assert main(["train", str(path)]) == 0
    return path, folder / "rules"


@pytest.mark.slow
def test_a_run_logs_each_number_at_its_step(run):
    """The same as the norms of the watched steps, which of a vector of 8 entries are its rms times sqrt(8)."""
    steps = read_run(run[1] / "layerscale").steps
    for layer in ("layer_000", "layer_001"):
        at, values = steps[f"residual/lambda_1/{layer}"]
        assert at.tolist() == [0, 2, 4] and values[0] == pytest.approx(0.1) and values[2] != values[1]
        norms = steps[f"weight/norm/{layer}/residual_lambda_1"][1]
        np.testing.assert_allclose(values[:2] * 8**0.5, norms, rtol=1e-5)
    assert not [tag for tag in read_run(run[1] / "pre_ln").steps if tag.startswith("residual/")]


@pytest.mark.slow
def test_mixing_weights_are_pictures_and_json(run, tmp_path, capsys):
    events = events_of(run[1] / "attnres")
    assert [image.step for image in events.Images("residual/mixing/matrix")] == [0, 2, 4]
    assert "residual/lambda_1/matrix" not in events_of(run[1] / "layerscale").Tags()["images"]
    file = tmp_path / "p.json"
    assert main(["probe", str(run[0]), "--instruments", "residual", "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    jsonschema.validate(results, json.loads((ROOT / "docs" / "probe.schema.json").read_text()))
    readings = {result["variant"]: result["instruments"] for result in results}
    thirds = readings["attnres"]["residual/mixing/matrix"]["matrix"][0][1]
    assert thirds == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert readings["layerscale"]["residual/lambda_2"] == pytest.approx([0.1, 0.1]) and readings["pre_ln"] == {}
    assert "pre_ln: nothing to measure here for residual" in capsys.readouterr().out
