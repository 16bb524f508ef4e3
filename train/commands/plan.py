"""`deltaflow plan CONFIG [key=value ...] [--devices v5e:16x16]`."""

import argparse

from ..config.load import load
from .types import add_config


def arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "mesh.fsdp=4 data.batch=512")
    parser.add_argument(
        "--devices",
        metavar="CHIP:SHAPE",
        help="chips that need not be here: v5e:2x4, v6e:16x16, A100:8, H100:8, H200:8 (default: the devices here)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Prints mesh, memory, work and bounds on the step of each group. Raises ConfigError, DataError, UserError."""
    parsed.stop.doing = "the check of the config"
    experiment = load(parsed.config, parsed.overrides)
    from ..log.console import Console
    from ..run.plan import plan

    plan(experiment, Console(), parsed.stop, parsed.devices)
    return 0
