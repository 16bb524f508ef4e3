"""In-context regression: learning from the examples in the window itself."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..source import Batch, DataSpec
from .base import Draws, Task

_ROWS = 256


@dataclass(frozen=True)
class LinearRegression(Task):
    """In-context linear regression (Garg et al. 2022, 2208.01066): x_1, y_1, x_2, y_2, ..., with y = <w, x> + noise.

    Each row has its own w ~ N(0, I / d); x ~ N(0, I), noise of standard deviation `noise`. A token has d + 1 values:
    (x, 0) or (0, y). The target at x_i is y_i, predicted from the examples before it. The floor is the expected squared
    error, at the held-out x, of the posterior mean, which is ridge regression and, without noise, least squares of
    least norm; "zero" is the loss of the prediction 0 on these rows.
    """

    @property
    def form(self) -> DataSpec:
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

    def floors(self, heldout: Batch) -> dict[str, float]:
        d, noise = self.config.dimensions, self.config.noise
        x = heldout.inputs[:, 0::2, :d].astype(np.float64)
        y = heldout.targets[:, 0::2].astype(np.float64)
        # In parts: a covariance for each row, of up to 256 x 256.
        errors = [posterior_error(x[start : start + _ROWS], noise, d) for start in range(0, len(x), _ROWS)]
        return {"": float(np.mean(np.concatenate(errors))), "zero": float(np.mean(y**2))}


def posterior_error(x: NDArray[np.float64], noise: float, d: int) -> NDArray[np.float64]:
    """Expected squared error [N, K] of the posterior mean at each x_k of x [N, K, d], after the k examples before it.

    It is noise^2 + x^T S x, S the posterior covariance of w, updated example by example (the Kalman filter of a
    constant state).
    """
    covariance = np.broadcast_to(np.eye(d) / d, (len(x), d, d)).copy()
    errors = np.empty(x.shape[:2])
    for k in range(x.shape[1]):
        along = np.einsum("nde,ne->nd", covariance, x[:, k])
        spread = np.einsum("nd,nd->n", along, x[:, k])
        errors[:, k] = spread + noise**2
        # A w that is determined up to rounding leaves nothing to learn, or to divide by.
        gain = np.where(errors[:, k] > 1e-12, 1.0 / np.maximum(errors[:, k], 1e-12), 0.0)
        covariance -= along[:, :, None] * along[:, None, :] * gain[:, None, None]
    return errors
