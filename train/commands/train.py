"""`deltaflow train CONFIG [key=value ...] [--dry-run]`."""

import argparse
import os
from contextlib import ExitStack, closing

from ..config.load import load
from .types import add_config


def arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "train.steps=100 optimizer.lr=3e-4")
    parser.add_argument(
        "--dry-run", action="store_true", help="print memory, work and expected time of the training; write nothing"
    )
    parser.add_argument(
        "--allow-data-change", action="store_true", help="resume although the data has changed since the run began"
    )
    several = parser.add_argument_group(
        "several processes, one a host (docs/howto/devices.md); found on Slurm and TPUs"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 runs, and a free port there")
    several.add_argument("--processes", type=int, metavar="N", help="number of processes")
    several.add_argument("--process", type=int, metavar="I", help="number of this one, from 0")


def run(parsed: argparse.Namespace) -> int:
    """Trains; returns 1 if a variant stopped at a non-finite step, or an `expect:` was not met.

    Raises ConfigError, DataError, UserError, and Stopped if a signal comes before there is anything to save.
    """
    parsed.stop.doing = "the check of the config"
    experiment = load(parsed.config, parsed.overrides)  # before JAX starts
    from ..device.hosts import connected
    from ..log.console import Console
    from ..run.dry_run import dry_run
    from ..run.experiment import train

    with ExitStack() as stack:
        first = stack.enter_context(connected(parsed.coordinator, parsed.processes, parsed.process))
        stream = None if first else stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        console = stack.enter_context(closing(Console(stream, lasting=first)))
        parsed.stop.show = console.notice
        if parsed.dry_run:
            dry_run(experiment, console, parsed.stop, parsed.allow_data_change)
            return 0
        outcome = train(experiment, console, parsed.stop, parsed.allow_data_change)
        if parsed.stop.signal is not None:
            console.note("stopped and saved; the same command goes on from here")
            return parsed.stop.exit_code
    return 1 if outcome.unmet or outcome.stopped else 0
