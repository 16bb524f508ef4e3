"""Programs compiled ahead of their first call, some of them in a hurry."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax

# Without optimization XLA's old emitters compile in half the time of the new; 0.11 does not have them any more.
_ONCE: dict[str, Any] = {"xla_backend_optimization_level": 0}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    _ONCE["xla_cpu_use_fusion_emitters"] = False


def compiled(function: Callable, arguments: tuple, donate: tuple[int, ...] = (), once: bool = False) -> Any:
    """`function` compiled for `arguments` (arrays, or their shapes and dtypes).

    `once`: it runs a few times at most, so a CPU's compiler need not try hard: that makes the initial draws 3.5 times
    cheaper to compile, and may change their last bit.
    """
    options = _ONCE if once and jax.default_backend() == "cpu" else None
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile(compiler_options=options)


def called_once(function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)` as a program of its own, compiled in a hurry."""
    return compiled(function, arguments, once=True)(*arguments)
