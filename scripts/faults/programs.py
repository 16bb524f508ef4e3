"""Compiled programs shared by all runs of one process, so that a trial costs a training and no compilation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import jax

from train.config.schema import RunConfig
from train.device.programs import compiled


@contextmanager
def shared() -> Iterator[None]:
    """For the time of the `with`, a program that was compiled for a run is also that of later runs of its structure.

    Those later runs are neither traced nor compiled; all else is unchanged.
    """
    programs: dict[Any, Any] = {}

    def once_each(
        function: Callable, arguments: tuple, donate: tuple[int, ...] = (), once: bool = False, *mesh: Any
    ) -> Any:
        key = (_key(function), str(jax.tree.map(_shape, arguments)), donate, once)
        if key not in programs:
            programs[key] = compiled(function, arguments, donate, once, *mesh)
        return programs[key]

    with patch("train.device.programs.compiled", once_each):
        yield


def _shape(leaf: Any) -> str:
    return f"{getattr(leaf, 'dtype', type(leaf))}{getattr(leaf, 'shape', ())}"


def _key(function: Any) -> tuple:
    """Returns the identity of a partial function, vmapped or not: its arguments, less names and folders of a config."""
    inner = getattr(function, "__wrapped__", function)
    assert isinstance(inner, partial), function
    held = [
        arg.model_copy(update={"name": "", "runs_dir": ""}) if isinstance(arg, RunConfig) else arg for arg in inner.args
    ]
    return (inner is function, inner.func.__module__, inner.func.__name__, *map(repr, held))
