"""Compiled programs shared by all runs of one process, so that a trial costs a training and no compilation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import jax

from train.config.schema import RunConfig
from train.core.state import program_structure
from train.device.programs import compiled

# When the loop calls a program and what becomes of the results.
_OF_THE_LOOP = {
    "train": ("init_from", "eval_every", "checkpoint_every", "stop_when", "steps_per_call"),
    "watch": ("instruments", "matrices", "diagnose_spikes"),
}


@contextmanager
def shared() -> Iterator[None]:
    """For the time of the `with`, a program that was compiled for a run is also that of later runs of its structure.

    Those later runs are neither traced nor compiled; all else is unchanged. A program that reads a key of the loop
    raises AttributeError, unless it is vmapped.
    """
    programs: dict[Any, Any] = {}

    def once_each(
        function: Callable, arguments: tuple, donate: tuple[int, ...] = (), once: bool = False, *mesh: Any
    ) -> Any:
        inner = getattr(function, "__wrapped__", function)
        assert isinstance(inner, partial), function
        own = partial(inner.func, *map(_without_the_loop, inner.args))
        structures = [
            program_structure(arg).model_copy(update={"runs_dir": ""}) if isinstance(arg, RunConfig) else arg
            for arg in own.args
        ]
        shapes = str(jax.tree.map(_shape, arguments))
        key = (inner is function, own.func, *map(repr, structures), shapes, donate, once)
        if key not in programs:
            programs[key] = compiled(own if inner is function else function, arguments, donate, once, *mesh)
        return programs[key]

    with patch("train.device.programs.compiled", once_each):
        yield


def _shape(leaf: Any) -> str:
    return f"{getattr(leaf, 'dtype', type(leaf))}{getattr(leaf, 'shape', ())}"


def _without_the_loop(argument: Any) -> Any:
    """Returns a config without the keys of the loop, so that reading one fails; anything else as it is."""
    if not isinstance(argument, RunConfig):
        return argument
    sections = {name: getattr(argument, name).model_copy() for name in _OF_THE_LOOP}
    for name, keys in _OF_THE_LOOP.items():
        for key in keys:
            del sections[name].__dict__[key]
    return argument.model_copy(update=sections)
