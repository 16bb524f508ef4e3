"""`deltaflow train CONFIG [key=value ...]`."""

import argparse

from ..config.load import load


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, or the name of a shipped config such as quickstart")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="e.g. train.steps=100 optimizer.lr=3e-4"
    )
    parser.add_argument(
        "--allow-data-change", action="store_true", help="go on although the data is not what the run was trained on"
    )


def run(parsed: argparse.Namespace) -> int:
    """Trains; 1 when a variant stopped at a step that is not finite, or a promise of `expect:` was broken.

    Raises ConfigError, DataError, UserError, and Stopped where a signal finds nothing to save.
    """
    parsed.stop.doing = "the check of the config"
    experiment = load(parsed.config, parsed.overrides)  # before JAX starts
    from ..log.console import Console
    from ..run.experiment import train

    with Console(lasting=True) as console:
        outcome = train(experiment, console, parsed.stop, parsed.allow_data_change)
        if parsed.stop.signal is not None:
            console.note("stopped and saved; the same command goes on from here")
            return parsed.stop.exit_code
        for line in outcome.unmet:
            console.warn(f"expect: {line}")
    return 1 if outcome.unmet or outcome.stopped else 0
