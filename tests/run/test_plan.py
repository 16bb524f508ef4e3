"""`deltaflow plan`: its figures against those computed by hand, and against each other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from data.source import open_source
from model.transformer import MOST_LOGITS
from train.cli import main
from train.config.load import from_mapping
from train.device.platform import Platform
from train.device.programs import Programs, model_flops
from train.run import plan
from train.run.experiment import build_group
from train.text import size

ROOT = Path(__file__).parents[2]
L, D, T, B, V = 2, 32, 16, 8, 8
CONFIG = f"""
name: planned
model: {{layers: {L}, width: {D}, heads: 2}}
data: {{kind: copy, symbols: {V - 2}, context: {T}, batch: {B}}}
train: {{steps: 20, eval_every: 10, steps_per_call: 2, unroll: 1}}
"""


def rows(out: str) -> dict[str, str]:
    """The rows of the last block."""
    return dict(re.findall(r"^  (.+?)  +(.+)$", out, re.M))


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "planned.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.mark.slow
def test_memory_and_work_on_four_chips_are_those_by_hand(config, tmp_path):
    keys = ["mesh.fsdp=4", "mesh.data=1"]
    command = [sys.executable, "-m", "train", "plan", str(config), *keys, "--devices", "H100:4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = rows(done.stdout)
    matrices, tables = L * 12 * D * D, (V + T) * D
    gains = (2 * L + 1) * D
    # float32; parameters and Adam's two averages; counters of the step and of Adam.
    held = 3 * 4 * ((matrices + tables) // 4 + gains) + 2 * 4
    assert result["memory a chip"].startswith(f"{size(held)} held, ") and result["memory a chip"].endswith("of 80 GB")
    flops = 6 * B * T * (matrices + V * D + 2 * L * T * D)
    assert result["work a step"].startswith(f"{flops:.3g} FLOP of matmuls a variant; a chip: ")
    counted = float(re.findall(r"a chip: ([\d.e+]+) FLOP", result["work a step"])[0])
    assert flops / 4 < counted < 1.4 * flops / 4  # the compiler counts norms, softmax and Adam too
    # Each matrix is gathered once, and its gradient is summed by an all-reduce, which sends it twice.
    sent = float(re.findall(r"([\d.]+) kB sent", result["work a step"])[0]) * 1e3
    assert sent == pytest.approx(3 * 4 * (matrices + tables) * 3 / 4, rel=0.05)
    assert result["mesh"].startswith("fsdp 4, ") and result["time of a step"].endswith(
        ": limited by memory, by the kernels of XLA for CPUs"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["planned.yaml"]


@pytest.mark.slow
def test_the_work_of_a_deep_model_is_that_of_its_blocks():
    """Extrapolated from 2 and 4 blocks as counted with all 6, and a loop over them is not counted as one block."""
    experiment = from_mapping(
        {"name": "deep", "model.layers": 6, "model.width": D, "model.heads": 2, "data.kind": "copy"}
        | {"data.context": T, "data.batch": B, "train.unroll": 1}
    )
    source = open_source(experiment.variants[0].config.data)
    group = build_group(experiment.variants, source.spec, Platform(jax.devices()[0], "cpu", jax.devices()[:1]))
    programs, batch = Programs(group, None), source.train_batches(B, 0, 0, 1)
    extrapolated = plan.work(programs, batch)
    counted = plan.work(programs, batch, most=6)
    np.testing.assert_allclose(extrapolated[:2], counted[:2], rtol=0.02)
    assert model_flops(group.network, B) < counted.flops < 1.4 * model_flops(group.network, B)
    assert extrapolated.sent == counted.sent == 0


@pytest.mark.slow
def test_logits_in_parts_are_all_counted(config, capsys):
    assert 64 * 64 * 10002 > 2 * MOST_LOGITS  # in four parts
    keys = ["mesh.data=1", "model.layers=1", "data.batch=64", "data.context=64", "data.symbols=10000"]
    assert main(["plan", str(config), *keys]) == 0
    matmuls, chip = re.findall(r"([\d.e+]+) FLOP", rows(capsys.readouterr().out)["work a step"])
    assert float(chip) >= float(matmuls) > 6 * 64 * 64 * 10002 * D


def test_padding_by_hand():
    """Width 64 fills half a tile in each direction, and heads of 32 a quarter of one in one."""
    keys = {"model.layers": 1, "model.width": 64, "model.heads": 2, "data.kind": "copy", "data.context": 128}
    experiment = from_mapping({"name": "padded", "data.batch": 2, "model.tied_head": True} | keys)
    source = open_source(experiment.variants[0].config.data)
    group = build_group(experiment.variants, source.spec, Platform(jax.devices()[0], "cpu", jax.devices()[:1]))
    vocabulary = source.spec.vocab_size or 0
    useful = 4 * 64 * 64 + 2 * 64 * 256 + vocabulary * 64 + 2 * 2 * 128 * 32
    full = 4 * 128 * 128 + 2 * 128 * 256 + 128 * 128 + 2 * 2 * 128 * 128
    assert plan.padding(Programs(group, None)) == pytest.approx(full / useful)


@pytest.mark.parametrize("devices", ["v5e", "H100:0", "H100:9x999x999", "T4:1", "v5e:2x4x"])
def test_chips_that_do_not_exist(config, devices, capsys, wording):
    assert main(["plan", str(config), "--devices", devices]) == 2
    out, err = capsys.readouterr()
    assert devices in err and err.count("\n") == 1
    wording(err, "--devices")
