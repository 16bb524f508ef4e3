"""A mean over seeds and how sure it is: the two-sided 95 % interval of Student's t (Student 1908, Biometrika 6:1-25).

With three seeds it is 2.2 times as wide as a normal distribution's 1.96 standard errors, with two 6.5 times.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LEVEL = 0.95


class Estimate(NamedTuple):
    """`half`: half the width of the interval around the mean; None for one value, of which nothing is known."""

    mean: Float[np.ndarray, "..."]
    half: Float[np.ndarray, "..."] | None


def estimate(values: Float[np.ndarray, "n ..."]) -> Estimate:
    """Mean over the first axis, and t · s / √n with s the sample's standard deviation (n - 1).

    What is not finite in one of them is not finite in the mean.

    Raises ValueError: no values.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if not n:
        raise ValueError("expected at least one value")
    with np.errstate(invalid="ignore"):
        mean = values.mean(axis=0)
        if n == 1:
            return Estimate(mean, None)
        return Estimate(mean, quantile(n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n))


def quantile(degrees: int) -> float:
    """Student's t for `LEVEL`, two-sided: 12.706 at 1 degree of freedom, 4.303 at 2, 1.960 at infinity."""
    # scipy comes with jax; its special functions load in a tenth of the time of scipy.stats.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + LEVEL) / 2))
