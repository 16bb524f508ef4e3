"""Tasks drawn on the fly whose best possible loss is known: one class a task, under the name that `data.kind` gives."""

from data.synthetic.arithmetic import Addition, Modular
from data.synthetic.base import Synthetic, Task
from data.synthetic.markov import Markov
from data.synthetic.recall import Copy, Induction, Reverse, Sort
from data.synthetic.regression import LinearRegression

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
