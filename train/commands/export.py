"""`deltaflow export RUN --to FILE.safetensors [--step N]`."""

import argparse
from pathlib import Path

from ..text import size
from .types import named_file, step


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run directory, e.g. runs/quickstart/with")
    parser.add_argument(
        "--to",
        type=named_file(".safetensors"),
        required=True,
        metavar="FILE",
        help="write the parameters there (a name that ends in .safetensors), and a .json with the config next to it",
    )
    parser.add_argument(
        "--step",
        type=step,
        default="newest",
        metavar="N",
        help="of the checkpoint: newest (default), best (the least held-out loss that is saved), or its number",
    )


def run(parsed: argparse.Namespace) -> int:
    """Writes both files, and prints what is in them. Raises ConfigError, DataError, UserError."""
    from ..run.export import export

    about = export(Path(parsed.run_directory), parsed.step, parsed.to)
    loss = "" if about["loss/val"] is None else f", loss/val {about['loss/val']:.4f}"
    print(f"step {about['step']}{loss}: {about['parameters']:,} parameters")
    print(f"written: {parsed.to} ({size(parsed.to.stat().st_size)}), {parsed.to.with_suffix('.json')}")
    return 0
