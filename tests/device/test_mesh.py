"""Training on meshes of 8 virtual devices against training on one, in a process of their own."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from model.rules import RULES
from networks import ALIKE
from train.config.instruments import INSTRUMENTS
from train.config.schema import MeshConfig
from train.device.mesh import fetched, mesh_of
from train.device.programs import Programs
from train.errors import UserError
from train.gradflow.norms import Norm

TESTS = Path(__file__).parents[1]
K = 2  # steps of a dispatch
BASE = {
    "model.layers": 2,
    "model.width": 16,
    "model.heads": 4,
    "data.kind": "copy",
    "data.context": 8,
    "data.batch": 8,
    "optimizer.warmup": 0,
    "train.unroll": 1,
    "train.steps": 12,
    "watch.every": 1,
}
SWEPT = {"train.group": "vmap", "sweep": {"optimizer.lr": [1e-3, 3e-3]}}
# In float64, since some gradients are differences. Without an epsilon Adam's first steps divide a gradient by its size,
# and with it the rounding of a small one.
HALVES = {"mesh.fsdp": 2, "mesh.tensor": 2, "train.dtype": "float64", "optimizer.eps": 1e-3}
# Meshes by a name for the test, each with further keys of the config. Without biases: one of the keys changes no score,
# so that its gradient is rounding.
CASES = {
    "variants 2, fsdp 2, tensor 2": {"mesh.variants": 2, "mesh.fsdp": 2, "mesh.tensor": 2, **SWEPT},
}
SLOW = {
    "data 2, fsdp 4": {"mesh.data": 2, "mesh.fsdp": 4},
    "data 2, fsdp 2, tensor 2": {
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "model.activation": "swiglu",
        "model.kv_heads": 2,
        "model.dropout": 0.2,
    },
    "data 8": {"mesh.data": 8},
    "data 6, of 8 devices": {"data.batch": 12},
    "data 1, tensor 2": {"mesh.data": 1, "mesh.tensor": 2},
    "data 2, fsdp 2, tensor 2 in float32": {"mesh.fsdp": 2, "mesh.tensor": 2},
    "data 2, fsdp 2, of micro-batches": {
        "mesh.data": 2,
        "mesh.fsdp": 2,
        "optimizer.accumulate": 2,
        "optimizer.ema": 0.9,
    },
    "data 2, fsdp 2 with muon": {"mesh.data": 2, "mesh.fsdp": 2, "optimizer.name": "muon"},
    "data 2, fsdp 4, logits by chunks": {"mesh.data": 2, "mesh.fsdp": 4, "most_logits": 24},
    "variants 2, data 4": {"mesh.variants": 2, **SWEPT},
    **{f"data 2, fsdp 2, tensor 2, {rule}": {**HALVES, "model.residual": rule} for rule in RULES if rule not in ALIKE},
    **{f"data 2, fsdp 2, tensor 2: {name}": HALVES for name in INSTRUMENTS if name != "residual"},
    "data 2, fsdp 2, tensor 2: residual": {**HALVES, "model.residual": "attnres"},
}


def result(keys: dict, instrument: str | None) -> dict:
    """Trains K steps in this process; returns losses, measurements, the state, and the compiled text."""
    from data.source import open_source
    from train.config.load import from_mapping
    from train.device import platform
    from train.run.experiment import build_group

    variants = from_mapping({"name": "mesh"} | BASE | {k: v for k, v in keys.items() if k != "most_logits"}).variants
    config = variants[0].config
    source = open_source(config.data)
    group = build_group(variants, source.spec, platform.select(config.train))
    if "most_logits" in keys:
        group = replace(group, network=replace(group.network, most_logits=keys["most_logits"]))
    programs = Programs(group, None if source.resident is None else np.asarray(source.resident[0]))
    states, batches = programs.init(), [source.train_batches(config.data.batch, 0, 0, K)] * len(variants)
    if instrument is not None:
        feeds = [source.train_batches(config.data.batch, 0, 0, INSTRUMENTS[instrument].batches(config.watch))]
        figures: Any = programs.instrument(instrument, states, feeds)
        program = programs.prepare_instrument(instrument, feeds[0])
    else:
        program = programs.prepare_dispatch(batches[0], True)
        states, figures = programs.dispatch(states, batches, True)
        figures = figures, programs.evaluate(states, None, *source.heldout_batches(config.data.batch, 2)), states
    leaves = jax.tree_util.tree_leaves_with_path(states[0])
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    return {
        "figures": fetched(figures),
        "collectives": Counter(re.findall(rf"\b({kinds})(?:-start)?\(", program.result().as_text())),
        "layout": {jax.tree_util.keystr(keys): tuple(leaf.sharding.spec) for keys, leaf in leaves},
        "axes": dict(group.mesh.shape),
    }


def results(cases: dict[str, dict], folder: Path) -> dict[str, tuple[dict, dict]]:
    """Returns (on one device, on the mesh) for each case, from one process with 8 virtual devices."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads((folder / "results.pickle").read_bytes())


@pytest.fixture(scope="module")
def measured(request, tmp_path_factory):
    return results(request.param, tmp_path_factory.mktemp("mesh"))


def differences(one: dict, other: dict) -> dict[str, float]:
    """Returns the largest difference of each figure, in units of its largest entry, or of 1e-6: some are zero."""

    def values(leaf: Any) -> np.ndarray:
        if isinstance(leaf, Norm):
            return np.ldexp(np.asarray(leaf.mantissa, np.float64), np.asarray(leaf.exponent, np.int32))
        return np.asarray(leaf, np.float64)

    def difference(a: Any, b: Any) -> float:
        a, b = values(a), values(b)
        finite = np.isfinite(a)
        assert a.shape == b.shape and np.array_equal(finite, np.isfinite(b))
        return float(np.abs(a - b)[finite].max(initial=0) / max(np.abs(a[finite]).max(initial=0), 1e-6))

    tree = jax.tree.map(difference, one["figures"], other["figures"], is_leaf=lambda node: isinstance(node, Norm))
    return {jax.tree_util.keystr(keys): value for keys, value in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.slow
@pytest.mark.parametrize("measured", [CASES, SLOW], indirect=True, ids=["some", "all"])
def test_every_figure_is_that_of_one_device_with_no_more_traffic_than_on_paper(measured):
    worst = {}
    for name, (one, mesh) in measured.items():
        different = differences(one, mesh)
        different.pop("[0]['sharpness/top_residual']", None)  # rounding, once the iteration has converged
        path, largest = max(different.items(), key=lambda item: item[1])
        if largest > (1e-6 if ":" in name else 1e-10 if "float64" in (CASES | SLOW)[name].values() else 3e-5):
            worst[name] = path, largest
        axes = {axis: int(size) for axis, size in re.findall(r"(data|fsdp|tensor|variants) (\d)", name)}
        assert {axis: size for axis, size in mesh["axes"].items() if size > 1 or axis in axes} == axes
        collectives = mesh["collectives"]
        if "muon" not in name and ":" not in name:  # muon multiplies divided matrices; some instruments sort
            assert set(collectives) <= {"all-reduce", "all-gather", "reduce-scatter"}, (name, collectives)
        assert ("all-gather" in collectives) == bool({"fsdp", "variants"} & set(axes)) or ":" in name, (
            name,
            collectives,
        )
        assert not one["collectives"]
    assert not worst


@pytest.mark.slow
@pytest.mark.parametrize("measured", [CASES], indirect=True, ids=["some"])
def test_parameters_and_the_averages_of_the_optimizer_are_divided(measured):
    layout = measured["variants 2, fsdp 2, tensor 2"][1]["layout"]
    for lead in (".params", ".optimizer[0].mu", ".optimizer[0].nu"):
        specs = {path: spec for path, spec in layout.items() if path.startswith(lead)}
        assert specs[f"{lead}['blocks']['attn']['q']['kernel']"] == ("variants", None, "fsdp", "tensor")
        assert specs[f"{lead}['blocks']['mlp']['out']['kernel']"] == ("variants", None, "tensor", "fsdp")
        assert specs[f"{lead}['embed']"] == ("variants", None, "fsdp")
        assert sum("fsdp" in spec for spec in specs.values()) == 8  # six matrices a block, and two tables
    assert layout[".step"] == ("variants",)


@pytest.mark.parametrize(
    ("axes", "rows", "variants", "key"),
    [
        ({"data": 3}, 12, 1, "mesh"),
        ({"fsdp": 2, "tensor": 2}, 12, 1, "mesh"),
        ({"variants": 2}, 12, 3, "mesh.variants"),
        ({"variants": 2}, 12, 1, "mesh.variants"),
    ],
)
def test_a_mesh_that_does_not_fit(axes, rows, variants, key, wording):
    with wording.raises(UserError, key):
        mesh_of(MeshConfig(**axes), rows, variants, jax.devices() * 2)


def test_a_mesh_of_tpus_divides_them(monkeypatch, wording):
    """libtpu ends the process where a group is 6 of 8 chips."""
    chips = [SimpleNamespace(platform="tpu", process_index=0)] * 8
    monkeypatch.setattr(jax, "make_mesh", lambda sizes, *_, devices: (sizes, len(devices)))
    assert mesh_of(MeshConfig(), 12, 1, chips) == ((1, 4, 1, 1), 4)  # 6 on other devices
    assert mesh_of(MeshConfig(fsdp=2), 12, 1, chips) == ((1, 2, 2, 1), 4)
    with wording.raises(UserError, "mesh"):
        mesh_of(MeshConfig(data=6), 12, 1, chips)


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    folder, both = Path(sys.argv[1]), {}
    for name, keys in json.loads((folder / "cases.json").read_text()).items():
        instrument = name.partition(": ")[2] or None
        alone = {key: value for key, value in keys.items() if not key.startswith("mesh.")} | {"mesh.data": 1}
        both[name] = result(alone, instrument), result(keys, instrument)
    (folder / "results.pickle").write_bytes(pickle.dumps(both))
