"""Markov chains: tokens that depend only on the one before them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..floors import entropy
from ..source import Batch, DataSpec
from .base import Draws, Task, next_token


@dataclass(frozen=True)
class Markov(Task):
    """A stationary Markov chain, P[i, j] = p(j after i), given or softmax(sharpness * normal) over each row.

    The floor is the entropy rate -sum_i pi_i sum_j P_ij ln P_ij (Shannon 1948, section 7); that of a prediction by
    token frequencies alone is the entropy of the stationary distribution pi.
    """

    def __post_init__(self) -> None:
        shape = self.transition.shape
        if len(shape) != 2 or shape[0] != shape[1]:
            raise DataError(f"data.transition: expected a square matrix, got {' x '.join(map(str, shape))}")
        if (values := np.linalg.eigvals(self.transition))[np.abs(values - 1) < 1e-9].size > 1:
            problem = "falls apart: some states never reach some others"
            if self.config.transition is not None:
                raise DataError(f"data.transition: the chain {problem}")
            chain = f"the chain that data.task_seed {self.config.task_seed} draws"
            raise DataError(
                f"data.sharpness: at {self.config.sharpness:g} {chain} {problem}; lower it, or take another seed"
            )

    @property
    def form(self) -> DataSpec:
        states = len(self.transition)
        return DataSpec("lm", self.config.context, states, states)

    @cached_property
    def transition(self) -> NDArray[np.float64]:
        """Transition probabilities [S, S], a row for each state."""
        if self.config.transition is not None:
            rows = np.array(self.config.transition, np.float64)
            return rows / rows.sum(axis=1, keepdims=True)  # 1 but for rounding: checked by data/config.py
        size = self.config.symbols
        logits = self.config.sharpness * self._once().normal(size, size)[0]
        rows = np.exp(logits - logits.max(axis=1, keepdims=True))
        return rows / rows.sum(axis=1, keepdims=True)

    @cached_property
    def stationary(self) -> NDArray[np.float64]:
        """The stationary distribution pi [S]: pi P = pi, sum pi = 1."""
        size = len(self.transition)
        equations = np.vstack([self.transition.T - np.eye(size), np.ones((1, size))])
        pi = np.maximum(np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0], 0.0)
        return pi / pi.sum()

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        uniform = draws.uniform(self.config.context + 1)
        steps = np.cumsum(self.transition, axis=1)
        last = len(steps) - 1
        tokens = np.empty(uniform.shape, np.int64)
        tokens[:, 0] = np.minimum(np.searchsorted(np.cumsum(self.stationary), uniform[:, 0], side="right"), last)
        for t in range(1, uniform.shape[1]):
            passed = uniform[:, t, None] >= steps[tokens[:, t - 1]]
            tokens[:, t] = np.minimum(passed.sum(axis=1), last)
        return next_token(tokens)

    def floors(self, heldout: Batch) -> dict[str, float]:
        return {"": float(self.stationary @ entropy(self.transition)), "unigram": float(entropy(self.stationary))}
