"""Central finite differences that know how good they are. Numpy only."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Of what is varied: large ones are cut off late, and small ones stay on one side of a ReLU's kink.
STEPS: Float[np.ndarray, "K"] = 4.0 ** -np.arange(2, 11)


class Slopes(NamedTuple):
    """Derivatives and how far each may be off, by its own account."""

    value: Float[np.ndarray, "n"]
    doubt: Float[np.ndarray, "n"]


def slopes(up: Float[np.ndarray, "n K"], down: Float[np.ndarray, "n K"], sizes: Float[np.ndarray, "n"]) -> Slopes:
    """Derivatives of n functions from their values at +size * STEPS and -size * STEPS.

    Each two neighbouring steps are extrapolated to zero (Richardson 1911), which leaves an error of h^4. Of what comes
    out, that one is taken which differs least from its neighbour, the rounding of the values counted in (Ridders 1982,
    "Accurate computation of F'(x) and F'(x)F''(x)").

    >>> h = STEPS[None, :]
    >>> bool(abs(slopes(np.exp(h), np.exp(-h), np.ones(1)).value[0] - 1) < 1e-11)
    True
    """
    steps = sizes[:, None] * STEPS[None, :]
    plain = (up - down) / (2 * steps)
    better = (16 * plain[:, 1:] - plain[:, :-1]) / 15
    rounding = 4 * np.finfo(np.float64).eps * np.maximum(np.abs(up), np.abs(down)) / steps
    doubt = np.abs(np.diff(better, axis=1)) + rounding[:, 2:]
    best = doubt.argmin(axis=1)[:, None]
    return Slopes(np.take_along_axis(better[:, 1:], best, 1)[:, 0], np.take_along_axis(doubt, best, 1)[:, 0])
