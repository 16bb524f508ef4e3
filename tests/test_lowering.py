"""Every config's train step lowers for TPUs and GPUs from a machine that has neither, without a call to the host."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from model.network import Network
from train.config.load import load
from train.core.window import run_window
from train.run.programs import Group, Programs, assumed_step_seconds, grouped, steps_per_call

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
VOCAB = 65
# How a program asks for the host while it runs.
HOST = ("callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv", "host_transfer")


def traced(members, kind: str, watched: bool):
    """The window of a group as it is run on an accelerator: bfloat16, vmapped, blocks in a loop, corpus resident."""
    config = members[0].config
    network = Network(config.model, VOCAB, config.data.context, "bfloat16")
    group = Group(members, network, vmapped=len(members) > 1)
    K = steps_per_call(config, assumed_step_seconds(group, config.data.batch, kind))
    corpus = jax.ShapeDtypeStruct((1_000_000,), np.uint8)
    programs = Programs(group, corpus)
    function = programs._mapped(
        partial(run_window, network, config, config.watch.every if watched else 0), (0, 0, None, 0)
    )
    lead = (len(members),) if group.vmapped else ()
    batches = jax.ShapeDtypeStruct((*lead, K, config.data.batch), np.int32)
    return jax.jit(function, donate_argnums=0).trace(programs.abstract_state, programs._hp(0), corpus, batches)


def test_there_are_configs():
    assert "quickstart" in {path.stem for path in CONFIGS}


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "plain"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_window_lowers_and_stays_on_the_device(path, watched):
    for members in grouped(load(path).variants):
        text = traced(members, "tpu", watched).lower(lowering_platforms=("tpu", "cuda")).as_text()
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
