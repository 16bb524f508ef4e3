"""Probing the variants of an experiment: programs shared by structure, one batch, nothing trained."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data.source import Source
from model.config import ModelConfig
from model.network import Params
from model.residual import structure_of
from train.config.load import Experiment, Variant
from train.config.schema import RunConfig
from train.core.batch import batch_of
from train.core.compile import compiled
from train.core.paths import path_of
from train.core.probe import as_json, measure
from train.core.state import initial_state
from train.run import platform as platforms
from train.run.checkpoint import Checkpoints
from train.run.errors import RunError
from train.run.experiment import build_group, data_key, open_all
from train.run.platform import Platform
from train.run.programs import Group, grouped
from train.run.rundir import differences, read_config
from train.run.transfer import another, tokenizer_of


def probe(experiment: Experiment, checkpoint: Path | None) -> list[dict[str, Any]]:
    """One JSON object a variant, in their order, on the first batch of each variant's data.

    Raises DataError, RunError, ConfigError.
    """
    sources = open_all(experiment.variants)
    platform = platforms.select(experiment.variants[0].config.train)
    results = {}
    for members in grouped(experiment.variants):
        source = sources[data_key(members[0].config)]
        if checkpoint is not None:
            _same_tokens(checkpoint, source)
        group = build_group(members, source.form, platform)
        rolled = dataclasses.replace(group.network, unroll=1)  # short to compile, and it runs a few times only
        start = program = None
        for variant, hp in zip(members, group.hparams, strict=True):
            if checkpoint is not None:
                params = restored(group, variant, checkpoint, platform)
            else:
                # The very program that training starts with, so that both look at the same weights to the last bit.
                make = partial(initial_state, group.network, group.config)
                start = start or compiled(make, (hp,), once=True)
                params = start(hp).params
            data = variant.config.data
            first = jax.tree.map(lambda leaf: leaf[0], source.train_batches(data.batch, data.seed or 0, 0, 1))
            corpus = None if source.resident is None else jnp.asarray(source.resident[0])
            batch = batch_of(first, corpus, data.context)
            program = program or compiled(partial(measure, rolled), (params, batch, hp.model), once=True)
            measured = jax.device_get(program(params, batch, hp.model))
            results[variant.name] = {
                "variant": variant.name,
                "config": variant.config.model_dump(mode="json"),
                "platform": platform.label,
                **as_json(group.network, params, measured, data.batch * data.context),
            }
    return [results[variant.name] for variant in experiment.variants]


def _same_tokens(directory: Path, source: Source) -> None:
    """Raises RunError when a run's parameters belong to other tokens than those of `source`."""
    read_config(directory)  # or it is no run
    here = None if source.tokenizer is None else source.tokenizer.to_json()
    if another(tokenizer_of(directory), here):
        raise RunError(
            f"{directory}: has another tokenizer than {source.source}, so its tokens stand for something else; "
            "probe it on the text it was trained on"
        )


def restored(group: Group, variant: Variant, directory: Path, platform: Platform) -> Params:
    """The parameters in a run's newest checkpoint, for a variant whose model they are of. Raises RunError."""
    saved = read_config(directory)
    if _shape(saved) != _shape(variant.config):
        changed = [key for key in differences(saved, variant.config) if key.startswith("model.")]
        raise RunError(
            f"{directory}: its model differs from variant {variant.name} in {', '.join(changed)}; "
            "leave the variants out with variants={}, or set these keys as there"
        )
    checkpoints = Checkpoints(directory)
    steps = checkpoints.steps()
    if not steps:
        raise RunError(f"{directory}: no checkpoint in {checkpoints.directory}")
    params, wanted = checkpoints.params(steps[-1], platform.device), group.network.shapes()
    there, here = (_sizes(tree) for tree in (params, wanted))
    for path in sorted(there.keys() | here.keys()):
        if there.get(path) != here.get(path):
            got = f"{there.get(path, 'missing')} in {directory}"
            raise RunError(f"variant {variant.name}: expected {path} {here.get(path, 'missing')}, got {got}")
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, wanted)


def _sizes(params: Any) -> dict[str, list[int]]:
    return {path_of(keys): list(leaf.shape) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _shape(config: RunConfig) -> ModelConfig:
    """What decides on the parameters and what they compute, but for traced numbers, init and dropout."""
    off = {"dropout": 0.0, "dropout_embed": None, "dropout_attention": None, "dropout_residual": None}
    return structure_of(config.model).model_copy(update={"init": "normal", **off})
