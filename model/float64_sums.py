"""float64 for single sums on a CPU, whether or not jax_enable_x64 is on."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from .layers import wide

try:
    _enabled = partial(jax.enable_x64, True)
except AttributeError:  # jax 0.7
    from jax.experimental import enable_x64 as _enabled  # pyright: ignore[reportAttributeAccessIssue]

Result = TypeVar("Result")


def in_double(dtype: jax.typing.DTypeLike, result: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
    """`result()` on a CPU, traced where float64 exists, for entries of `dtype`; it hands out nothing of float64.
    `otherwise()` on accelerators, and for entries that are float64 themselves.

    float64 holds the square of every float32, so one pass over the entries is right wherever they lie, where float32
    takes a second one to factor the largest out. (A GPU has few units for it, a TPU none.)
    """

    def enabled() -> Result:
        with _enabled():
            return result()

    if wide(dtype) == jnp.dtype("float64"):
        return otherwise()
    return jax.lax.platform_dependent(cpu=enabled, default=otherwise)
