"""Sums in float64 on a CPU, with or without jax_enable_x64."""

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
    """Returns `result()`, traced with float64 enabled, on a CPU; `otherwise()` on accelerators and for float64 entries.

    `dtype` is that of the entries; `result` must not return float64 arrays. The square of every float32 is in float64's
    range, so one pass over the entries is enough, where float32 needs a second one to factor out the largest. (GPUs
    are slow at float64, TPUs lack it.)
    """

    def enabled() -> Result:
        with _enabled():
            return result()

    if wide(dtype) == jnp.dtype("float64"):
        return otherwise()
    return jax.lax.platform_dependent(cpu=enabled, default=otherwise)
