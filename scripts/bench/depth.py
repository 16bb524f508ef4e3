"""What depth costs in compilation: the project's training step at 8 blocks and at 96."""

import time

import jax
import numpy as np

from . import machine
from .contestant import Contestant, Facts, Unavailable
from .project import programs_of

DEPTHS = (8, 96)


def compile_seconds(config: str, layers: int, dtype: str) -> float:
    """Traces and compiles the step of a config file's first variant anew, with `layers` blocks; seconds."""
    programs, variant, K = programs_of(config, f"model.layers={layers}", "train.unroll=1", f"train.dtype={dtype}")
    batches = jax.ShapeDtypeStruct((K, variant.config.data.batch), np.dtype(np.int32))
    start = time.perf_counter()
    programs.prepare_window(batches, watched=True).result()
    return time.perf_counter() - start


def contestant(config: str, layers: int, dtype: str) -> Contestant:
    """A "step" is one compilation."""
    if not config:
        raise Unavailable("no config was given")
    facts = Facts(
        versions=machine.versions("deltaflow", "jax"),
        device=machine.jax_device(),
        dtype=machine.compute_dtype(dtype, machine.jax_fast_bfloat16()),
    )
    return Contestant(lambda n: sum(compile_seconds(config, layers, dtype) for _ in range(n)), facts)
