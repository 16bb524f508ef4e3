"""Synthetic tasks whose best possible loss is known: one class a task, by its `data.kind`."""

from .arithmetic import Addition, Modular
from .base import Synthetic, Task
from .markov import Markov
from .recall import Copy, Induction, Reverse, Sort
from .regression import LinearRegression

__all__ = ["TASKS", "Synthetic", "Task"]

TASKS: dict[str, type[Task]] = {
    "markov": Markov,
    "copy": Copy,
    "reverse": Reverse,
    "sort": Sort,
    "induction": Induction,
    "addition": Addition,
    "modular": Modular,
    "linear_regression": LinearRegression,
}
