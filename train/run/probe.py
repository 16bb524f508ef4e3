"""Probe of the variants of an experiment: one forward and backward pass without training."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.source import Source
from model.config import ModelConfig
from model.network import Params, leaves_by_path
from model.residual import structure_of

from ..config.instruments import INSTRUMENTS
from ..config.load import Experiment, Variant
from ..config.schema import RunConfig
from ..core.batch import batch_of
from ..core.optimizer import HParams
from ..core.probe import as_json, measure
from ..core.state import State, initial_state, state_at
from ..device.platform import Platform
from ..device.programs import Programs, VariantGroup, grouped
from ..errors import UserError
from ..gradflow.verdict import mean_parts
from ..instruments.readings import json_of
from ..instruments.snapshot import read
from ..store.checkpoint import Checkpoints
from ..store.provenance import same_config
from ..store.rundir import differences, read_config
from .experiment import build_group, data_key, device_of, open_all
from .transfer import tokenizer_of, tokenizers_differ


def probe(experiment: Experiment, checkpoint: Path | None, instruments: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns one JSON object a variant, in order, measured on the first batches of its data.

    Raises DataError, UserError, ConfigError.
    """
    sources = open_all(experiment.variants)
    platform = device_of(experiment)
    results, step = {}, 0
    for members in grouped(experiment.variants):
        source = sources[data_key(members[0].config)]
        if checkpoint is not None:
            read_config(checkpoint)  # or it is no run
            here = None if source.tokenizer is None else source.tokenizer.to_json()
            if tokenizers_differ(tokenizer_of(checkpoint), here):
                raise UserError(
                    f"{checkpoint}: has another tokenizer than {source.name}, so its tokens stand for something "
                    "else; probe it on the text it was trained on"
                )
            step = step or Checkpoints(checkpoint).only_newest()
        group = build_group(members, source.spec, platform, one_device=True)
        programs = Programs(group, None if source.resident is None else np.asarray(source.resident[0]))
        for variant, hp in zip(group.variants, group.hparams, strict=True):
            if checkpoint is None:
                # The same program as in training, so that both have the same weights to the last bit.
                state = programs.run(("init",), partial(initial_state, group.network, group.config), hp)
            else:
                whole = any(INSTRUMENTS[name].optimizer for name in instruments)
                state = restored_state(group, variant, hp, checkpoint, step, platform, whole)
            results[variant.name] = {
                "variant": variant.name,
                "config": variant.config.model_dump(mode="json"),
                "platform": platform.label,
                **measurement(programs, source, variant, hp, state, instruments),
            }
    return [results[variant.name] for variant in experiment.variants]


def measurement(
    programs: Programs, source: Source, variant: Variant, hp: HParams, state: State, instruments: Sequence[str]
) -> dict[str, Any]:
    """Returns the figures of one backward pass, and the readings of the instruments, as JSON values."""
    config, network, corpus = variant.config, programs.group.network, programs.corpus
    batches = partial(source.train_batches, config.data.batch, config.data_seed, 0)
    batch = batch_of(jax.tree.map(lambda leaf: leaf[0], batches(1)), corpus, config.data.context)
    rolled = dataclasses.replace(network, unroll=1)  # shorter to compile, and it runs once
    flow = jax.device_get(programs.run(("probe",), partial(measure, rolled), state.params, batch, hp.model))
    result = as_json(config, network, state.params, flow)
    absent, readings = not_for(config, instruments), {}
    for name in (name for name in instruments if name not in absent):
        program = partial(read, name, network, programs.group.config)
        inputs = batches(INSTRUMENTS[name].batches(config.watch))
        values = programs.run(("instrument", name), program, state, hp, corpus, inputs, once=not INSTRUMENTS[name].long)
        readings |= json_of(jax.device_get(values))
    if result["verdict"]["state"] == "dead_qk" and "grad_mean/mean" in readings:
        result["verdict"]["why"] += "; " + mean_parts(readings["grad_mean/mean"])
    return result | ({"instruments": readings} if instruments else {})


def restored_state(
    group: VariantGroup, variant: Variant, hp: HParams, directory: Path, step: int, platform: Platform, whole: bool
) -> State:
    """Returns the state of a run's checkpoint; `whole`: the optimizer's too, not the parameters alone.

    Raises UserError if it is that of another model or optimizer.
    """
    params = restored(group, variant, directory, step, platform)
    if not whole:
        return State(params, None, jnp.asarray(step, jnp.int32))
    if changed := [key for key in differences(read_config(directory), variant.config) if "optimizer." in key]:
        raise UserError(
            f"{directory}: its optimizer differs from that of variant {variant.name} in {', '.join(changed)}, and some "
            "of the instruments read the optimizer's state"
        )
    like = jax.eval_shape(partial(state_at, group.config, hp), params)
    return jax.device_put(Checkpoints(directory).restore(step, like), platform.device)


def not_for(config: RunConfig, instruments: Sequence[str]) -> list[str]:
    """Returns the instruments that do not apply under this config (docs/instruments.md)."""
    return [name for name in instruments if not INSTRUMENTS[name].applies(config)]


def restored(group: VariantGroup, variant: Variant, directory: Path, step: int, platform: Platform) -> Params:
    """Returns the parameters of a run's checkpoint for a variant. Raises UserError if they are of another model."""
    saved = read_config(directory)
    if _shape(saved) != _shape(variant.config):
        changed = [key for key in differences(saved, variant.config) if key.startswith("model.")]
        raise UserError(
            f"{directory}: its model differs from variant {variant.name} in {', '.join(changed)}; "
            "leave the variants out with variants={}, or set these keys as there"
        )
    checkpoints = Checkpoints(directory)
    same_config(checkpoints.path(step), checkpoints.header(step), saved)
    params, shapes = checkpoints.params(step), group.network.shapes()
    there, here = ({path: list(leaf.shape) for path, leaf in leaves_by_path(tree).items()} for tree in (params, shapes))
    for path in sorted(there.keys() | here.keys()):
        if there.get(path) != here.get(path):
            got = f"{there.get(path, 'missing')} in {directory}"
            raise UserError(f"variant {variant.name}: expected {path} {here.get(path, 'missing')}, got {got}")
    cast = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, shapes)
    return jax.device_put(cast, platform.device)


def _shape(config: RunConfig) -> ModelConfig:
    """Returns the model config without traced numbers, init and dropout: equal shapes have compatible parameters."""
    off = {"dropout": 0.0, "dropout_embed": None, "dropout_attention": None, "dropout_residual": None}
    return structure_of(config.model).model_copy(update={"init": "normal", **off})
