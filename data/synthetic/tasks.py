"""The synthetic tasks: Markov chains, recall, arithmetic and in-context regression."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .. import DataError
from ..batches import Draws
from ..source import Batch, DataSpec
from .base import Synthetic, drawn_where, next_token

_OFTEN = 0.125  # probability of a trigger of induction at each place where one may stand
_ROWS = 256  # of regression's windows whose covariances are in memory at once


@dataclass(frozen=True, eq=False)
class Markov(Synthetic):
    """A stationary Markov chain, P[i, j] = p(j after i), given or softmax(sharpness * normal) over each row.

    The ideal predictor is P itself. On average its loss is the entropy rate -sum_i pi_i sum_j P_ij ln P_ij (Shannon
    1948, section 7), and that of token frequencies the entropy of the stationary distribution pi.
    """

    def __post_init__(self) -> None:
        if (values := np.linalg.eigvals(self.transition))[np.abs(values - 1) < 1e-9].size > 1:
            problem = "falls apart: some states never reach some others"
            if self.config.transition is not None:
                raise DataError(f"data.transition: the chain {problem}")
            chain = f"the chain that data.task_seed {self.config.task_seed} draws"
            raise DataError(
                f"data.sharpness: at {self.config.sharpness:g} {chain} {problem}; lower it, or take another seed"
            )

    @property
    def vocab_size(self) -> int:
        return len(self.transition)

    @cached_property
    def transition(self) -> NDArray[np.float64]:
        """Transition probabilities [S, S], a row for each state."""
        if self.config.transition is not None:
            rows = np.array(self.config.transition, np.float64)
        else:
            size = self.config.symbols
            logits = self.config.sharpness * self.drawn_once().normal(size, size)[0]
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

    def known_losses(self, rows: Batch) -> dict[str, float]:
        return {"": float(np.mean(-np.log(self.transition[rows.inputs, rows.targets]))) + 0.0}  # never -0


class _Answer(Synthetic):
    """Padding, n random symbols, a separator, and an answer of n symbols, which alone counts.

    Each row draws its own n, 1 to T / 2, so that place and distance of the answer vary. The separator has the id after
    the symbols, padding the next.
    """

    @property
    def vocab_size(self) -> int:
        return self.config.symbols + 2

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        symbols, width = self.config.symbols, self.config.context + 1
        n = 1 + draws.integers((width - 1) // 2)[:, None]
        drawn = draws.integers(symbols, (width - 1) // 2)
        place = np.arange(width)[None, :] - (width - 1 - 2 * n)  # 0 at the first symbol, n at the separator
        answers = self.answer(np.where(np.arange(drawn.shape[1]) < n, drawn, symbols), n)
        question = np.take_along_axis(drawn, np.clip(place, 0, drawn.shape[1] - 1), axis=1)
        answer = np.take_along_axis(answers, np.clip(place - n - 1, 0, drawn.shape[1] - 1), axis=1)
        strings = np.select([place < 0, place < n, place == n], [symbols + 1, question, symbols], answer)
        return next_token(strings, place > n)

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        """The answer to the first n [N, 1] of symbols [N, M], in its first n places; the other inputs are larger."""
        raise NotImplementedError


class Copy(_Answer):
    """Copying: n random symbols, a separator, the same symbols."""

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        return symbols


class Reverse(_Answer):
    """Reversal: n random symbols, a separator, the symbols in reverse order."""

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.take_along_axis(symbols, np.maximum(n - 1 - np.arange(symbols.shape[1]), 0), axis=1)


class Sort(_Answer):
    """Sorting: n random symbols, a separator, the symbols in ascending order."""

    def answer(self, symbols: NDArray[np.integer], n: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.sort(symbols, axis=1)


class Induction(Synthetic):
    """The symbol after a trigger is the same throughout a row (after Fu et al. 2022, 2212.14052, section 3.1).

    Random symbols, and at two or more places, the last of them at the end of the row, the trigger (the id after the
    symbols) followed by the answer, which counts from its second occurrence on.
    """

    @property
    def vocab_size(self) -> int:
        return self.config.symbols + 1

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        symbols, width = self.config.symbols, self.config.context + 1
        slots = width // 2  # of two tokens, counted from the end
        strings = draws.integers(symbols, width)
        answer = draws.integers(symbols, 1)
        trigger: NDArray[np.bool_] = draws.uniform(slots) < _OFTEN
        trigger[:, 0] = True
        trigger[np.arange(len(trigger)), 1 + draws.integers(slots - 1)] = True
        places = width - 2 - 2 * np.arange(slots)
        strings[:, places] = np.where(trigger, symbols, strings[:, places])
        strings[:, places + 1] = np.where(trigger, answer, strings[:, places + 1])
        first = trigger & (np.cumsum(trigger[:, ::-1], axis=1)[:, ::-1] == 1)
        answers = np.zeros(strings.shape, bool)
        answers[:, places + 1] = trigger & ~first
        return next_token(strings, answers)


class Addition(Synthetic):
    """a + b = c, digit by digit, the highest first: k digits of a, `+`, k of b, `=`, k + 1 of c. Only c counts.

    Tokens 0 to 9 are the digits, 10 is `+`, 11 is `=`. `val_fraction` of the pairs (a, b), chosen by a hash, are never
    trained on; held-out rows have only these.
    """

    @property
    def vocab_size(self) -> int:
        return 12

    def is_heldout(self, pairs: NDArray[np.integer]) -> np.ndarray:
        """True [...] for those of pairs [..., 2] that are held out."""
        flat = pairs[..., 0] * 10**self.config.digits + pairs[..., 1]
        return mixed(flat, self.config.task_seed) < self.config.val_fraction

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        k = self.config.digits
        pairs = drawn_where(draws, lambda rows: self.is_heldout(rows) == heldout, 10**k, 2)
        a, b = pairs[:, :1], pairs[:, 1:]

        def digits(x: np.ndarray, count: int) -> np.ndarray:
            return x // 10 ** np.arange(count - 1, -1, -1) % 10

        plus, equals = np.full_like(a, 10), np.full_like(a, 11)
        strings = np.concatenate([digits(a, k), plus, digits(b, k), equals, digits(a + b, k + 1)], axis=1)
        return next_token(strings, np.broadcast_to(np.arange(strings.shape[1]) > 2 * k + 1, strings.shape))


class Modular(Synthetic):
    """a (op) b = c modulo p: the tokens a, b, `=` and c; only c counts (Power et al. 2022, 2201.02177, grokking).

    All p^2 pairs are shuffled once; `val_fraction` of them are held out, training draws from the others. `=` is p.
    """

    @property
    def vocab_size(self) -> int:
        return self.config.modulus + 1

    @cached_property
    def split(self) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """The pairs (a, b) to train on [n, 2], and those held out [m, 2]."""
        p = self.config.modulus
        order = np.argsort(self.drawn_once().uniform(p * p)[0], kind="stable")
        pairs = np.stack([order // p, order % p], axis=1)
        n = round(p * p * (1 - self.config.val_fraction))
        if not 0 < n < p * p:
            raise DataError(f"data.val_fraction: {self.config.val_fraction} of {p * p} pairs leaves a split empty")
        return pairs[:n], pairs[n:]

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        pairs = self.split[heldout]
        return self._strings(pairs[draws.integers(len(pairs))])

    def heldout_rows(self) -> Batch:
        return self._strings(self.split[1])

    def _strings(self, pairs: NDArray[np.integer]) -> Batch:
        p = self.config.modulus
        a, b = pairs[:, 0], pairs[:, 1]
        c = {"add": a + b, "subtract": a - b, "multiply": a * b}[self.config.operation] % p
        strings = np.stack([a, b, np.full_like(a, p), c], axis=1)
        return next_token(strings, np.broadcast_to(np.arange(4) == 3, strings.shape))


def mixed(values: NDArray[np.integer], seed: int) -> NDArray[np.floating]:
    """A hash in [0, 1) of each whole number (SplitMix64: Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = np.asarray(values).astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


class LinearRegression(Synthetic):
    """In-context linear regression (Garg et al. 2022, 2208.01066): x_1, y_1, x_2, y_2, ..., with y = <w, x> + noise.

    Each row has its own w ~ N(0, I / d); x ~ N(0, I), noise of standard deviation `noise`. A token has d + 1 values:
    (x, 0) or (0, y). The target at x_i is y_i, predicted from the examples before it. The ideal predictor is the
    posterior mean, which is ridge regression and, without noise, least squares of least norm; "zero" is the prediction
    0.
    """

    @property
    def spec(self) -> DataSpec:
        return DataSpec("regression", self.config.context, None, 1, channels=self.config.dimensions + 1)

    def rows(self, draws: Draws, heldout: bool) -> Batch:
        d, pairs = self.config.dimensions, self.config.context // 2
        x, w = draws.normal(pairs, d), draws.normal(d) / np.sqrt(d)
        y = np.einsum("nkd,nd->nk", x, w) + self.config.noise * draws.normal(pairs)
        inputs = np.zeros((len(x), pairs, 2, d + 1))
        inputs[:, :, 0, :d], inputs[:, :, 1, d] = x, y
        targets = np.stack([y, np.zeros_like(y)], axis=2)
        weights = np.broadcast_to(np.array([1.0, 0.0]), targets.shape)
        flat = (len(x), 2 * pairs)
        return Batch(inputs.reshape(*flat, d + 1), targets.reshape(flat), weights.reshape(flat))

    def known_losses(self, rows: Batch) -> dict[str, float]:
        d, noise = self.config.dimensions, self.config.noise
        x = rows.inputs[:, 0::2, :d].astype(np.float64)
        y = rows.targets[:, 0::2].astype(np.float64)
        # In parts: a covariance for each row, of up to 256 x 256.
        parts = [slice(start, start + _ROWS) for start in range(0, len(x), _ROWS)]
        means = np.concatenate([posterior_means(x[part], y[part], noise) for part in parts])
        return {"": float(np.mean((means - y) ** 2)), "zero": float(np.mean(y**2))}


def posterior_means(x: NDArray[np.float64], y: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Posterior mean [N, K] of each y_k of y [N, K] at x_k of x [N, K, d], given the k examples before it.

    Mean and covariance of w are updated example by example (the Kalman filter of a constant state).
    """
    n, count, d = x.shape
    covariance, w = np.broadcast_to(np.eye(d) / d, (n, d, d)).copy(), np.zeros((n, d))
    means = np.empty((n, count))
    for k in range(count):
        along = np.einsum("nde,ne->nd", covariance, x[:, k])
        variance = np.einsum("nd,nd->n", along, x[:, k]) + noise**2
        means[:, k] = np.einsum("nd,nd->n", w, x[:, k])
        # A w that is determined up to rounding leaves nothing to learn, or to divide by.
        gain = along * np.where(variance > 1e-12, 1.0 / np.maximum(variance, 1e-12), 0.0)[:, None]
        w += gain * (y[:, k] - means[:, k])[:, None]
        covariance -= gain[:, :, None] * along[:, None, :]
    return means
