"""float64 for single sums, whether or not jax_enable_x64 is on."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax

try:
    _enabled = partial(jax.enable_x64, True)
except AttributeError:  # jax 0.7
    from jax.experimental import enable_x64 as _enabled  # pyright: ignore[reportAttributeAccessIssue]

Result = TypeVar("Result")


def in_double(result: Callable[[], Result]) -> Result:
    """`result()`, traced where float64 exists; it hands out nothing of that dtype.

    For sums on a CPU: float64 holds the square of every float32, so one pass over the entries is right wherever they
    lie, where float32 takes a second one to factor the largest out. (A GPU has few units for it, a TPU none.)
    """
    with _enabled():
        return result()
