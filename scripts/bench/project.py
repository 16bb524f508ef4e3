"""This project's own training program, as `deltaflow train` runs it."""

from collections.abc import Callable

from . import machine
from .contestant import Contestant, Facts, Unavailable
from .shapes import Shapes


def make(config: str, watch_every: int) -> Callable[[int], float]:
    """The program of a config file's first variant; watch_every 0 watches nothing. The first call may compile.

    The result runs n steps, waits for the device and returns seconds. Where a call does K steps, the result has
    an attribute `window` = K, and n is a multiple of it.
    """
    raise NotImplementedError("train/run/programs.py does not exist yet")


def contestant(config: str, watch_every: int, shapes: Shapes, dtype: str) -> Contestant:
    if not config:
        raise Unavailable("no config was given")
    run = make(config, watch_every)
    facts = Facts(
        versions=machine.versions("deltaflow", "jax"),
        device=machine.jax_device(),
        dtype=machine.compute_dtype(dtype, machine.jax_fast_bfloat16()),
        flops=shapes.flops,
        tokens=shapes.tokens,
        window=getattr(run, "window", 1),
    )
    return Contestant(run, facts)
