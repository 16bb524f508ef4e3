"""Ahead-of-time compilation, with fewer optimizations for programs that run only a few times."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax

# At optimization level 0 XLA's old CPU emitters compile in half the time of the new ones; jaxlib 0.11 removed them.
_ONCE: dict[str, Any] = {"xla_backend_optimization_level": 0}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    _ONCE["xla_cpu_use_fusion_emitters"] = False


def compiled(function: Callable, arguments: tuple, donate: tuple[int, ...] = (), once: bool = False) -> Any:
    """Compiles `function` for `arguments` (arrays, or their shapes and dtypes).

    `once`: the program runs a few times at most, so it is compiled without optimization on a CPU. The initial draws
    then compile 3.5 times faster; their last bit may differ.
    """
    options = _ONCE if once and jax.default_backend() == "cpu" else None
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile(compiler_options=options)


def called_once(function: Callable, *arguments: Any) -> Any:
    """Returns `function(*arguments)`, run as a separate program that is compiled without optimization."""
    return compiled(function, arguments, once=True)(*arguments)
