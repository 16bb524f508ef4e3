"""This project's own training program, as `deltaflow train` runs it: with its logging, without evaluation."""

import atexit
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from data.batches import window_starts
from data.source import DataSpec
from train.config.load import Variant, load
from train.core.tags import watched_scalars
from train.device import platform as platforms
from train.device.process import tune
from train.device.programs import Programs
from train.log.writer import Tracker
from train.run.experiment import build_group
from train.run.windows import assumed_step_seconds, steps_per_call, watched_steps

from . import machine
from .contestant import Contestant, Facts, Unavailable
from .shapes import SHAKESPEARE_CHARS, Shapes

TOKENS = 1_000_000


def programs_of(config: str, *overrides: str) -> tuple[Programs, Variant, int]:
    """The programs of a config file's first variant on random tokens, and K; `overrides` are key=value."""
    first = load(config, ["data.corpus=python-docs", *overrides]).variants[0]
    platform = platforms.select(first.config.train)
    group = build_group(
        [first], DataSpec("lm", first.config.data.context, SHAKESPEARE_CHARS, SHAKESPEARE_CHARS), platform
    )
    tokens = np.random.default_rng(0).integers(0, SHAKESPEARE_CHARS, TOKENS).astype(np.uint8)
    K = steps_per_call(first.config, assumed_step_seconds(group, first.config.data.batch, platform.kind))
    return Programs(group, jax.device_put(tokens)), first, K


def make(config: str, watch_every: int, *overrides: str) -> tuple[Callable[[int], float], int]:
    """The program of a config file's first variant; watch_every 0 watches nothing. The first call may compile.

    Returns (run, K). run(n) runs n steps, a multiple of K, logs what was watched, waits for the device and returns
    seconds. DELTAFLOW_BENCH_COUNTERFACTUAL=1 adds the counterfactual.
    """
    programs, variant, K = programs_of(config, *overrides)
    watch = {"every": watch_every, "counterfactual": os.environ.get("DELTAFLOW_BENCH_COUNTERFACTUAL") == "1"}
    watched = variant.config.model_copy(update={"watch": variant.config.watch.model_copy(update=watch)})
    object.__setattr__(programs.group, "variants", (Variant(variant.name, watched),))
    data = watched.data
    windows = jax.ShapeDtypeStruct((K, data.batch), np.int32)
    programs.prepare_window(windows, watch_every > 0)  # as the training loop does, beside the initial draws
    states = programs.init()
    step, dtype = 0, programs.group.network.dtype
    folder = tempfile.TemporaryDirectory(prefix="deltaflow-bench-")
    tracker = Tracker(Path(folder.name))
    atexit.register(folder.cleanup)

    def run(n: int) -> float:
        nonlocal step, states
        start, pending = time.perf_counter(), []
        for _ in range(n // K):
            batches = window_starts(TOKENS, data.context, data.batch, 0, step, K)
            states, measured = programs.window(states, [batches], bool(watched_steps(step, step + K, watch_every)))
            pending.append((step, measured))
            step += K
            if len(pending) > 1:
                _log(tracker, dtype, watch_every, *pending.pop(0))
        for late in pending:
            _log(tracker, dtype, watch_every, *late)
        return time.perf_counter() - start

    return run, K


def _log(tracker: Tracker, dtype: str, watch_every: int, step: int, measured: list) -> None:
    metrics, watched = jax.device_get(measured[0])
    found = [] if watched is None else watched_scalars(watched, dtype)
    rows = [(step + index * watch_every, row) for index, row in enumerate(found)]
    tracker.log_all([*rows, (step + len(metrics.loss), {"loss/train": float(np.mean(metrics.loss))})])


def contestant(config: str, watch_every: int, shapes: Shapes, dtype: str) -> Contestant:
    if not config:
        raise Unavailable("no config was given")
    tune()  # as the command does
    run, K = make(config, watch_every, f"train.dtype={dtype}")
    facts = Facts(
        versions=machine.versions("deltaflow", "jax"),
        device=machine.jax_device(),
        dtype=machine.compute_dtype(dtype, machine.jax_fast_bfloat16()),
        flops=shapes.flops,
        tokens=shapes.tokens,
        window=K,
    )
    return Contestant(run, facts)
