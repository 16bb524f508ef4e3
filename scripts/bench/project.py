"""This project's own training program, as `deltaflow train` runs it: with its logging, without evaluation.

Also its compilation at several depths, as a contestant whose step is one compilation.
"""

import atexit
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from data.batches import window_starts
from data.source import DataSpec
from data.tokenizer import token_dtype
from train.config.load import Variant, load
from train.core.tags import watched_scalars
from train.device import platform as platforms
from train.device.process import tune
from train.device.programs import Programs
from train.log.writer import Tracker
from train.run.dispatches import assumed_step_seconds, steps_per_call, watched_steps
from train.run.experiment import build_group

from .contestant import SHAKESPEARE_CHARS, Contestant, Shapes, facts

TOKENS = 1_000_000
PACKAGES = "deltaflow jax"


def programs_of(
    config: str, *overrides: str, watch_every: int | None = None, vocab: int = SHAKESPEARE_CHARS
) -> tuple[Programs, Variant, int]:
    """Returns the programs of a config file's first variant on random tokens, and K; `overrides` are key=value.

    With `watch_every` another watching than the config's, without the counterfactual, in dispatches of the same K.
    """
    first = load(config, ["data.corpus=python-docs", *overrides]).variants[0]
    platform, data = platforms.select(first.config.train), first.config.data
    spec = DataSpec("lm", data.context, vocab, vocab)
    K = steps_per_call(
        first.config, assumed_step_seconds(build_group([first], spec, platform), data.batch, platform.kind)
    )
    if watch_every is not None:
        watch = first.config.watch.model_copy(update={"every": watch_every, "counterfactual": False})
        first = Variant(first.name, first.config.model_copy(update={"watch": watch}))
    tokens = np.random.default_rng(0).integers(0, vocab, TOKENS).astype(token_dtype(vocab))
    return Programs(build_group([first], spec, platform), tokens), first, K


def make(
    config: str, watch_every: int, *overrides: str, vocab: int = SHAKESPEARE_CHARS
) -> tuple[Callable[[int], float], int]:
    """Returns (run, K): the program of a config file's first variant; watch_every 0 watches nothing.

    run(n) runs n steps, a multiple of K, logs what was watched, waits for the device and returns seconds; its first
    call may compile.
    """
    programs, variant, K = programs_of(config, *overrides, watch_every=watch_every, vocab=vocab)
    data = variant.config.data
    windows = jax.ShapeDtypeStruct((K, data.batch), np.int32)
    programs.prepare_dispatch(windows, watch_every > 0)  # as the training loop does, along with the initial draws
    states = programs.init()
    step, dtype = 0, programs.group.network.dtype
    folder = tempfile.TemporaryDirectory(prefix="deltaflow-bench-")
    tracker = Tracker(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(tracker.close)  # before the folder goes

    def run(n: int) -> float:
        nonlocal step, states
        start, pending = time.perf_counter(), []
        for _ in range(n // K):
            batches = window_starts(TOKENS, data.context, data.batch, 0, step, K)
            states, measured = programs.dispatch(states, [batches], bool(watched_steps(step, step + K, watch_every)))
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
    values = [] if watched is None else watched_scalars(watched, dtype)
    rows = [(step + index * watch_every, row) for index, row in enumerate(values)]
    for at, row in (*rows, (step + len(metrics.loss), {"loss/train": float(np.mean(metrics.loss))})):
        tracker.log(at, row)
    tracker.flush()


def contestant(
    config: str,
    shapes: Shapes,
    dtype: str,
    watch_every: int = 0,
    layers: int | None = None,
    overrides: tuple[str, ...] = (),
) -> Contestant:
    """The program itself; with `layers` a contestant whose step is one compilation at that depth."""
    overrides += (f"train.dtype={dtype}",)
    if layers is not None:
        deep = (config, *overrides, f"model.layers={layers}", "train.unroll=1")
        return Contestant(
            lambda n: sum(compile_seconds(*deep, vocab=shapes.vocab) for _ in range(n)), facts(PACKAGES, dtype)
        )
    tune()  # as the command does
    run, K = make(config, watch_every, *overrides, vocab=shapes.vocab)
    return Contestant(run, facts(PACKAGES, dtype, shapes, K))


def compile_seconds(config: str, *overrides: str, vocab: int) -> float:
    """Traces and compiles the step of a config's first variant; returns seconds."""
    programs, variant, K = programs_of(config, *overrides, vocab=vocab)
    batches = jax.ShapeDtypeStruct((K, variant.config.data.batch), np.dtype(np.int32))
    start = time.perf_counter()
    programs.prepare_dispatch(batches, watched=True).result()
    return time.perf_counter() - start
