"""Every config's train step lowers for TPUs and GPUs from a machine that has neither, without a call to the host; with
libtpu it compiles for TPUs too (marker tpu_aot, `make tpu`).
"""

import re
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from data.source import DataSpec, open_source
from train.config.load import ConfigError, load
from train.core.dispatch import run_dispatch
from train.core.state import program_structure
from train.device.chips import devices_to_compile_for
from train.device.memory import need
from train.device.platform import Platform
from train.device.programs import Programs, grouped, model_flops, with_steps
from train.instruments.snapshot import read
from train.run.dispatches import assumed_step_seconds, steps_per_call
from train.run.experiment import build_group

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
VOCAB = 65
# How a program asks for the host while it runs.
HOST = ("callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv", "host_transfer")


TPU = Platform(None, "tpu", jax.devices())
HOPPER = Platform(SimpleNamespace(platform="cuda", compute_capability="9.0"), "gpu", jax.devices()[:1])


def programs_on(members, platform):
    """The programs of a group on a TPU, and shapes of one variant's batches for a window.

    In bfloat16, vmapped, blocks in a loop, a corpus resident. The first step of a window is watched, and those after it
    are plain: both kinds of step are in it.
    """
    config = members[0].config
    if config.data.kind == "text":  # no corpus is read (or downloaded): only its size counts
        spec, corpus = DataSpec("lm", config.data.context, VOCAB, VOCAB), jax.ShapeDtypeStruct((1_000_000,), np.uint8)
        feed = np.zeros((1, config.data.batch), np.int32)
    else:
        if config.data.kind == "digits":
            pytest.importorskip("sklearn")
        source = open_source(config.data)
        spec, corpus, feed = source.spec, None, source.train_batches(config.data.batch, 0, 0, 1)
    group = build_group(members, spec, platform)
    assert group.vmapped == (len(members) > 1)
    K = steps_per_call(config, assumed_step_seconds(group, config.data.batch, platform.kind))
    assert K > 1
    return Programs(group, corpus), with_steps(feed, K)


def traced(members, platform=TPU):
    """The window of a group, traced for one device."""
    programs, feed = programs_on(members, platform)
    group, config, corpus = programs.group, programs.group.config, programs.corpus
    function = programs._mapped(partial(run_dispatch, group.network, config, config.watch.every), (0, 0, None, 0))
    lead = (len(members),) if group.vmapped else ()
    batches = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype), feed)
    return jax.jit(function, donate_argnums=0).trace(programs.abstract_state, programs.hparams[0], corpus, batches)


def programs_of(path: Path, *overrides: str):
    """The groups of a config; blocks are a loop, so of groups that differ in depth alone one is enough."""
    groups = {}
    for members in grouped(load(path, overrides).variants):
        structure = program_structure(members[0].config)
        groups.setdefault(
            structure.model_copy(update={"model": structure.model.model_copy(update={"layers": 1})}), members
        )
    return groups.values()


def test_there_are_configs():
    assert "quickstart" in {path.stem for path in CONFIGS}


def few(path: Path, *overrides: str):
    """The programs of a config that tests look at in every run: the first and the last."""
    programs = list(programs_of(path, *overrides))
    return programs if len(programs) <= 2 else programs[:: len(programs) - 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    CONFIGS,
    ids=[p.stem for p in CONFIGS],
)
def test_the_window_lowers_and_stays_on_the_device(path):
    lowers(few(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_window_lowers(path):
    lowers(programs_of(path))


def lowers(programs):
    for members in programs:
        text = traced(members).lower(lowering_platforms=("tpu", "cuda")).as_text()
        assert text.count("stablehlo.dot_general") >= 10  # it is the model that was lowered
        assert not [word for word in HOST if word in text]


@pytest.fixture
def with_cudnn(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [["train.group=vmap"], ["model.window=8", "model.kv_heads=2", "train.remat=dots"]])
def test_attention_on_a_gpu_is_cudnns_forwards_and_backwards(with_cudnn, keys):
    path, kernel = CONFIGS[0].parent / "quickstart.yaml", "custom_call @__cudnn$fmhaSoftmax"
    members = grouped(load(path, [*keys, "model.layers=2"]).variants)[0]
    text = traced(members, HOPPER).lower(lowering_platforms=("cuda",)).as_text()
    # A watched step, its counterfactual, and the others.
    assert text.count(f"{kernel}Backward(") == 3 <= text.count(f"{kernel}(")
    assert not [word for word in HOST if word in text]
    unfused = ["train.fused_attention=false", "watch.every=0", "model.layers=2"]
    off = traced(grouped(load(path, unfused).variants)[0][:1], HOPPER)
    assert kernel not in off.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("fused", ["true", "false"])
def test_products_of_a_bfloat16_program_are_in_bfloat16(with_cudnn, fused):
    """The rest, in the dtype of the stream or of the parameters, is named here; every other product stays as it is."""
    small = [f"train.fused_attention={fused}", "model.layers=2", "variants={}", "watch.counterfactual=false"]

    def products(*keys: str) -> tuple[int, int]:
        """Returns the numbers of products of bfloat16 factors, and of others."""
        members = grouped(load(CONFIGS[0].parent / "quickstart.yaml", [*small, *keys]).variants)[0]
        text = traced(members, HOPPER).lower(lowering_platforms=("cuda",)).as_text()
        factors = re.findall(r"stablehlo\.dot_general .*: \((\S+), (\S+)\) ->", text)
        narrow = sum("xbf16>" in left and "xbf16>" in right for left, right in factors)
        return narrow, len(factors) - narrow

    narrow, wide = products()
    assert narrow >= 20 and wide == 0
    assert products("model.logit_cap=5.0", "model.positions=rope", "model.qk_norm=true") == (narrow, 0)
    for key in (
        "model.residual=attnres",  # attention over the blocks below
        "model.residual=mhc",  # the logits of its mixing weights
        "optimizer.name=muon",  # Newton-Schulz iterations
    ):
        same, more = products(key)
        assert same == narrow and more > 0, key


def test_instruments_differentiate_forwards_and_so_do_without_it(with_cudnn):
    members = grouped(load(CONFIGS[0].parent / "quickstart.yaml", ["model.layers=2"]).variants)[0][:1]
    group = build_group(members, DataSpec("lm", members[0].config.data.context, VOCAB, VOCAB), HOPPER)
    assert group.network.fused == "cudnn"
    programs = Programs(group, jax.ShapeDtypeStruct((1_000,), np.uint8))
    program = jax.jit(partial(read, "sharpness", group.network, group.config))
    feeds = np.zeros((1, group.config.data.batch), np.int32)
    traced = program.trace(programs.abstract_single, group.hparams[0], programs.corpus, feeds)
    assert "fmha" not in traced.lower(lowering_platforms=("cuda",)).as_text()


MESHES = {
    "v5e:1x1": (),
    "v6e:1x1": (),
    "v5e:2x4": (),
    "v5e:2x4, fsdp 2, tensor 2": ("mesh.fsdp=2", "mesh.tensor=2"),
}


@pytest.mark.tpu_aot
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_window_compiles_for_a_tpu_and_fits(path, mesh):
    """Prints config, variants, mesh, MB held and passing and GFLOP a chip, and the seconds to compile."""
    chip, devices, compiler = devices_to_compile_for(mesh.partition(",")[0])
    if not compiler.startswith("libtpu"):
        pytest.skip(compiler)
    platform = Platform(devices[0], "tpu", devices, chip, compiler)
    try:
        groups = few(path, *MESHES[mesh])
    except ConfigError as error:  # heads that tensor=2 does not divide
        pytest.skip(str(error))
    for members in groups:
        began = time.perf_counter()
        programs, feed = programs_on(members, platform)
        programs.prepare_dispatch(feed, watched=True).result()
        needed, group = need(programs, programs.corpus), programs.group
        assert 0 < needed.total < chip.memory
        flops = len(members) * model_flops(group.network, group.config.data.batch) / group.mesh.size
        print(
            f"\n| {path.stem}: {', '.join(variant.name for variant in members[:2])} | {mesh} ({group.mesh.size}) "
            f"| {needed.held / 1e6:,.0f} | {needed.passing / 1e6:,.0f} | {flops / 1e9:,.3g} "
            f"| {time.perf_counter() - began:.0f} |"
        )


def test_a_call_to_the_host_would_be_seen():
    def step(x):
        jax.debug.print("{}", x)
        return x

    program = jax.jit(step).trace(np.float32(0))
    assert any(word in program.lower(lowering_platforms=("cpu",)).as_text() for word in HOST)
    for platform in ("tpu", "cuda"):
        with pytest.raises((ValueError, NotImplementedError)):
            program.lower(lowering_platforms=(platform,))
