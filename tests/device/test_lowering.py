"""Every config's train step lowers for TPUs and GPUs from a machine that has neither, without a call to the host."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from data.source import DataSpec, open_source
from train.config.load import load
from train.core.dispatch import run_dispatch
from train.core.state import program_structure
from train.device.platform import Platform
from train.device.programs import Programs, grouped
from train.run.dispatches import assumed_step_seconds, steps_per_call
from train.run.experiment import build_group

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
VOCAB = 65
# How a program asks for the host while it runs.
HOST = ("callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv", "host_transfer")


def traced(members):
    """The window of a group as it is run on a TPU: bfloat16, vmapped, blocks in a loop, a corpus resident.

    Its first step is watched, and those after it are plain: both kinds of step are in it.
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
    group = build_group(members, spec, Platform(None, "tpu", 1))
    assert group.vmapped == (len(members) > 1)
    K = steps_per_call(config, assumed_step_seconds(group, config.data.batch, "tpu"))
    assert K > 1
    programs = Programs(group, corpus)
    function = programs._mapped(partial(run_dispatch, group.network, config, config.watch.every), (0, 0, None, 0))
    lead = (len(members), K) if group.vmapped else (K,)
    batches = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape[1:]), leaf.dtype), feed)
    return jax.jit(function, donate_argnums=0).trace(programs.abstract_state, programs.hparams[0], corpus, batches)


def programs_of(path: Path):
    """The groups of a config; blocks are a loop, so of groups that differ in depth alone one is enough."""
    groups = {}
    for members in grouped(load(path).variants):
        structure = program_structure(members[0].config)
        groups.setdefault(
            structure.model_copy(update={"model": structure.model.model_copy(update={"layers": 1})}), members
        )
    return groups.values()


def test_there_are_configs():
    assert "quickstart" in {path.stem for path in CONFIGS}


def few(path: Path):
    """The programs of a config that tests look at in every run: the first and the last."""
    programs = list(programs_of(path))
    return programs if len(programs) <= 2 else programs[:: len(programs) - 1]


ONCE = {"quickstart", "shakespeare_char", "attnres"}  # in every run; the others are slow


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.stem in ONCE else [pytest.mark.slow]) for p in CONFIGS],
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


def test_a_call_to_the_host_would_be_seen():
    def step(x):
        jax.debug.print("{}", x)
        return x

    program = jax.jit(step).trace(np.float32(0))
    assert any(word in program.lower(lowering_platforms=("cpu",)).as_text() for word in HOST)
    for platform in ("tpu", "cuda"):
        with pytest.raises((ValueError, NotImplementedError)):
            program.lower(lowering_platforms=(platform,))
