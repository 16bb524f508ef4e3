"""Trainings that cost no more than their steps: compiled programs shared by all runs of a process, and no pictures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import jax

from train.config.schema import RunConfig
from train.core.state import program_structure
from train.device.programs import compiled
from train.run.metrics import RunMetrics
from train.run.summary import write_report

_WRITE_REPORT, _DRAW = write_report, RunMetrics.draw
# When the loop calls a program and what becomes of the results.
_OF_THE_LOOP = {
    "train": ("init_from", "eval_every", "checkpoint_every", "stop_when", "steps_per_call"),
    "watch": ("instruments", "matrices", "diagnose_spikes"),
}


@contextmanager
def shared(programs: dict[Any, Any]) -> Iterator[None]:
    """For the time of the `with`, a program that was compiled for a run is also that of later runs of its structure.

    programs: compiled programs by their keys; new ones are added.

    Those later runs are neither traced nor compiled; all else is unchanged. A program that reads a key of the loop
    raises AttributeError, unless it is vmapped.
    """

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


@contextmanager
def drawing(report: bool = False, pictures: bool = False) -> Iterator[None]:
    """For the time of the `with`, trainings write their report, and draw their heatmaps, or leave that out.

    Both take longer than a tiny training.
    """
    with (
        patch("train.run.summary.write_report", _WRITE_REPORT if report else lambda *_: None),
        patch("train.run.metrics.RunMetrics.draw", _DRAW if pictures else lambda _: None),
    ):
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
