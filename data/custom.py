"""A data set of the user's own: one class in a file of the current folder, named by `data.kind: module:Class`."""

import importlib
import os
import sys

import numpy as np

from data.config import DataConfig
from data.source import Batch, Form, Source, Whole
from data.tokenizer import DataError

_NEEDED = ("form", "source", "details", "sha256", "tokenizer", "floors", "resident", "train_batches", "heldout_batches")
_TASKS = ("lm", "classification", "regression")


class OwnSource(Whole):
    """What a data set of your own may inherit: all but `form`, `train_batches` and `heldout_batches` has a default."""

    def __init__(self, config: DataConfig):
        self.config = config

    @property
    def form(self) -> Form:
        raise NotImplementedError

    @property
    def source(self) -> str:
        return self.config.kind

    @property
    def details(self) -> str:
        return f"{self.form.context} tokens a window"

    @property
    def sha256(self) -> str:
        return ""

    @property
    def floors(self) -> dict[str, float]:
        return {}

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> Batch:
        raise NotImplementedError

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[Batch, np.ndarray]:
        raise NotImplementedError


def open_own(config: DataConfig) -> Source:
    """Imports the module from the current folder and builds the class. Raises DataError in one line."""
    module, _, name = config.kind.partition(":")
    label = f"data.kind: {config.kind}"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise DataError(f"{label}: {error} (the current folder is {os.getcwd()!r})") from None
    except AttributeError:
        raise DataError(f"{label}: module {module} has no {name}") from None
    except Exception as error:
        raise DataError(f"{label}: {_said(error)} on import") from error
    try:
        own = made(config)
        missing = [attribute for attribute in _NEEDED if not hasattr(own, attribute)]
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{label}: {_said(error)} while it was built") from error
    if missing:
        raise DataError(f"{label}: {name} has no {', '.join(missing)}; inherit from data.custom.OwnSource")
    _check(own, label)
    return own


def _check(own: Source, label: str) -> None:
    """The first batches of the class against its form."""
    try:
        form = own.form
        if not isinstance(form, Form) or form.task not in _TASKS:
            raise DataError(f"{label}: form: expected a data.source.Form of {', '.join(_TASKS)}, got {form!r}")
        given = {"train_batches": (own.train_batches(2, 0, 0, 3), 3)}
        given["heldout_batches"] = (own.heldout_batches(2, 1)[0], 1)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{label}: {_said(error)} in its first batch") from error
    channels = () if form.channels is None else (form.channels,)
    for method, (batch, steps) in given.items():
        if own.resident is not None or not isinstance(batch, Batch):
            continue  # starts, or windows of tokens
        wanted, got = (steps, 2, form.context, *channels), np.shape(batch.inputs)
        if got != wanted:
            raise DataError(f"{label}: {method}: expected inputs {list(wanted)}, got {list(got)}")
        lead = wanted[:2] if form.pooled else wanted[:3]
        if np.shape(batch.targets)[: len(lead)] != lead:
            raise DataError(f"{label}: {method}: expected targets {list(lead)}, got {list(np.shape(batch.targets))}")
        if batch.weights is not None and np.shape(batch.weights) != lead:
            raise DataError(f"{label}: {method}: expected weights {list(lead)}, got {list(np.shape(batch.weights))}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
