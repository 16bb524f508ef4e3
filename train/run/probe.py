"""Probe of the variants of an experiment: one forward and backward pass without training."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data.source import Source
from model.config import ModelConfig
from model.network import Params, path_of
from model.residual import structure_of

from ..config.instruments import INSTRUMENTS
from ..config.load import Experiment, Variant
from ..config.schema import RunConfig
from ..core.batch import batch_of
from ..core.optimizer import HParams
from ..core.probe import as_json, measure
from ..core.state import State, initial_state, state_at
from ..device.platform import Platform
from ..device.programs import VariantGroup, compiled, grouped
from ..errors import UserError
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
                    f"{checkpoint}: has another tokenizer than {source.source}, so its tokens stand for something "
                    "else; probe it on the text it was trained on"
                )
            step = step or Checkpoints(checkpoint).only_newest()
        bench = _Bench(build_group(members, source.form, platform), source, platform, checkpoint, step)
        for index, variant in enumerate(members):
            results[variant.name] = bench.result(index, instruments)
    return [results[variant.name] for variant in experiment.variants]


@dataclass
class _Bench:
    """The programs of one group, each compiled once."""

    group: VariantGroup
    source: Source
    platform: Platform
    checkpoint: Path | None
    step: int  # of the checkpoint
    _programs: dict[str, Any] = field(default_factory=dict)

    def result(self, index: int, instruments: Sequence[str]) -> dict[str, Any]:
        variant, hp, network = self.group.variants[index], self.group.hparams[index], self.group.network
        rolled = dataclasses.replace(network, unroll=1)  # shorter to compile, and it runs a few times only
        state = self._state(variant, hp, any(INSTRUMENTS[name].optimizer for name in instruments))
        data = variant.config.data
        first = jax.tree.map(lambda leaf: leaf[0], self._feeds(variant, 1))
        batch = batch_of(first, self._corpus, data.context)
        measured = jax.device_get(self._run("probe", partial(measure, rolled), state.params, batch, hp.model))
        result = {
            "variant": variant.name,
            "config": variant.config.model_dump(mode="json"),
            "platform": self.platform.label,
            **as_json(variant.config, network, state.params, measured),
        }
        if instruments:
            result["instruments"] = {}
        for name in instruments:
            if name in not_for(variant.config, instruments):
                continue
            feeds = self._feeds(variant, INSTRUMENTS[name].batches(variant.config.watch))
            program = partial(read, name, rolled, self.group.config)
            readings = self._run(name, program, state, hp, self._corpus, feeds, once=not INSTRUMENTS[name].long)
            result["instruments"] |= json_of(jax.device_get(readings))
        return result

    def _run(self, name: str, function: Callable, *arguments: Any, once: bool = True) -> Any:
        if name not in self._programs:
            self._programs[name] = compiled(function, arguments, once=once)
        return self._programs[name](*arguments)

    def _state(self, variant: Variant, hp: HParams, whole: bool) -> State:
        """Returns the state to probe. `whole`: restore the optimizer's state too, not the parameters alone."""
        group = self.group
        if self.checkpoint is None:
            # The same program as in training, so that both have the same weights to the last bit.
            return self._run("init", partial(initial_state, group.network, group.config), hp)
        params = restored(group, variant, self.checkpoint, self.step, self.platform)
        if not whole:
            return State(params, None, jnp.asarray(self.step, jnp.int32))
        changed = [key for key in differences(read_config(self.checkpoint), variant.config) if "optimizer." in key]
        if changed:
            raise UserError(
                f"{self.checkpoint}: its optimizer differs from that of variant {variant.name} in "
                f"{', '.join(changed)}, and some of the instruments read the optimizer's state"
            )
        like = jax.eval_shape(partial(state_at, group.config, hp), params)
        return Checkpoints(self.checkpoint).restore(self.step, like, self.platform.device)

    def _feeds(self, variant: Variant, steps: int) -> Any:
        data = variant.config.data
        return self.source.train_batches(data.batch, data.seed or 0, 0, steps)

    @cached_property
    def _corpus(self) -> Any:
        return None if self.source.resident is None else jnp.asarray(self.source.resident[0])


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
    there, here = (_sizes(tree) for tree in (params, shapes))
    for path in sorted(there.keys() | here.keys()):
        if there.get(path) != here.get(path):
            got = f"{there.get(path, 'missing')} in {directory}"
            raise UserError(f"variant {variant.name}: expected {path} {here.get(path, 'missing')}, got {got}")
    cast = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, shapes)
    return jax.device_put(cast, platform.device)


def _sizes(params: Any) -> dict[str, list[int]]:
    return {path_of(keys): list(leaf.shape) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _shape(config: RunConfig) -> ModelConfig:
    """Returns the model config without traced numbers, init and dropout: equal shapes have compatible parameters."""
    off = {"dropout": 0.0, "dropout_embed": None, "dropout_attention": None, "dropout_residual": None}
    return structure_of(config.model).model_copy(update={"init": "normal", **off})
