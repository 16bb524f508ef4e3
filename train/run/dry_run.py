"""A training without its steps: memory, work and time, from the compiled programs and a few timed calls of them."""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64

from ..config.instruments import INSTRUMENTS
from ..config.load import Experiment
from ..device.hosts import agreed
from ..device.programs import model_flops
from ..device.signals import Stop
from ..log.console import Console
from ..text import duration
from .dispatches import dispatches, watched_steps
from .experiment import prepared
from .loop import Hook
from .setup import GroupSetup
from .start import overview


def dry_run(
    experiment: Experiment,
    console: Console,
    stop: Stop,
    allow_data_change: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Prints a block a group, and the sums over groups. Writes no file, and refuses what a training would refuse.

    Raises UserError, ConfigError, DataError.
    """
    _, platform, groups = prepared(experiment, console, stop)
    stop.doing = "compilation and timed calls"
    totals = []
    while groups:
        (source, group), *groups = groups
        setup = GroupSetup(group, source, platform, console, allow_data_change)
        if (total := show_estimate(setup, clock)) is not None:
            totals.append(total)
        groups = setup.waves + groups
    if len(totals) > 1:
        seconds, flops, tokens = zip(*totals, strict=True)
        console.note(f"all groups: {spread(np.sum(seconds, axis=0))}, {sum(flops):.3g} FLOP, {sum(tokens):,} tokens")
    if totals:
        console.note(
            "time: the median of a few timed calls times the calls to come (and the same of the fastest and the "
            "slowest), on a machine as busy as it is now; the start of JAX, checkpoints, pictures and the report come "
            "on top"
        )
    console.note("dry run: nothing was written")


def show_estimate(setup: GroupSetup, clock: Callable[[], float]) -> tuple[Float64[np.ndarray, "3"], float, int] | None:
    """Prints the block of a group; returns its seconds, FLOPs and tokens, None if it has waves or none is to train.

    Seconds are those of the median, the fastest and the slowest of the timed calls.
    """
    group, config, began = setup.group, setup.config, clock()
    start = setup.start
    if start.finished is not None:
        return None
    with setup.compiling() as budget:
        if setup.waves:
            return None
        states = setup.programs.init() if start.step else setup.initial(setup.console)
        if setup.divided(budget):
            return None
        compile_s = clock() - began
        parts = {"to compile": np.full(3, compile_s)} | timed(setup, states, clock)
    title, rows = overview(group, start, compile_s, budget.line, setup.directories[0].parent)
    steps, seconds = len(group.variants) * (config.train.steps - start.step), np.sum([*parts.values()], axis=0)
    flops = steps * model_flops(group.network, config.data.batch)
    tokens = steps * config.data.batch * config.data.context
    rows[-1] = "run directory", f"{rows[-1][1]}, {f'goes on at step {start.step:,}' if start.step else 'from step 0'}"
    rows.append(("in all", f"{flops:.3g} FLOP, {tokens:,} tokens"))
    rows.append(
        ("expected time", f"{spread(seconds)}: {', '.join(f'{duration(s[0])} {what}' for what, s in parts.items())}")
    )
    setup.console.block(title, rows)
    return seconds, flops, tokens


def spread(seconds: Float64[np.ndarray, "3"]) -> str:
    """
    >>> spread(np.array([70.0, 68.0, 80.2])), spread(np.array([0.3, 0.2, 0.4]))
    ('1m 10s (1m 08s to 1m 20s)', 'less than 1s')
    """
    middle, low, high = map(duration, seconds)
    if seconds.max() < 0.5:
        return "less than 1s"
    return middle if low == high else f"{middle} ({low} to {high})"


def timed(setup: GroupSetup, states: list[Any], clock: Callable[[], float]) -> dict[str, Float64[np.ndarray, "3"]]:
    """Returns the seconds of a group's calls to come, by purpose, as `seconds_of`. `states` are donated.

    Variants that take turns run the same program, so that one of them is timed for all.
    """
    config, programs, start_step = setup.config, setup.programs, setup.start.step
    steps = config.train.steps
    states = [states[0], *[None] * (programs.calls - 1)]
    shapes = Counter(
        (end - start, bool(watched_steps(start, end, config.watch.every)))
        for start, end in dispatches(start_step, steps, setup.start.K, config.watch.every)
    )
    train_s = instruments_s = np.zeros(3)
    for (length, watched), count in shapes.items():
        batches = setup.batches(0, length)

        def dispatch(batches=batches, watched=watched) -> Any:
            nonlocal states
            states, measured = programs.dispatch(states, batches, watched)
            return measured

        train_s = train_s + count * seconds_of(dispatch, clock)

    evaluate = Hook(config.train.eval_every, lambda _: programs.evaluate(states, *setup.heldout), at_end=True)
    evaluations = len(setup.evaluations) * evaluate.calls(start_step, steps)
    parts = {"to train": train_s, "to evaluate": evaluations * seconds_of(partial(evaluate.function, 0), clock)}
    for name, every in setup.instruments.items():
        batches = setup.batches(0, INSTRUMENTS[name].batches(config.watch))
        measure = Hook(every, lambda _, n=name, b=batches: programs.instrument(n, states, b))
        seconds = seconds_of(partial(measure.function, 0), clock)
        instruments_s = instruments_s + measure.calls(start_step, steps) * seconds
    parts |= {"for instruments": instruments_s} if setup.instruments else {}
    return {what: programs.calls * seconds for what, seconds in parts.items()}


def seconds_of(call: Callable[[], Any], clock: Callable[[], float]) -> Float64[np.ndarray, "3"]:
    """Returns the seconds of a call with its results on the host: median, fastest and slowest of several.

    They are five, or as many as take 2 s, equally many in all processes; one more call before them allocates memory.
    """
    jax.device_get(call())
    times: list[float] = []
    while agreed(len(times) < 5 and sum(times) < 2):
        began = clock()
        jax.device_get(call())
        times.append(clock() - began)
    return np.array([statistics.median(times), min(times), max(times)])
