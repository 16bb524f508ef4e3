"""`deltaflow probe CONFIG [key=value ...] [--checkpoint RUN] [--json FILE] [--instruments NAMES]`."""

import argparse
from pathlib import Path

from ..config.load import load
from ..config.schema import InstrumentsConfig
from .types import add_config, names_of, new_file


def arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--checkpoint", metavar="RUN", help="a run directory; without it, the initial parameters")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the measurement there as JSON")
    names = tuple(InstrumentsConfig.model_fields)
    listed = f"also run these, separated by commas, or all: {', '.join(names)} (docs/instruments.md)"
    parser.add_argument("--instruments", type=names_of(names), default=(), metavar="NAMES", help=listed)


def run(parsed: argparse.Namespace) -> int:
    """Prints one table a variant, and one of all variants. Raises ConfigError, DataError, UserError."""
    experiment = load(parsed.config, parsed.overrides)
    from ..disk import write_json
    from ..log.console import Console
    from ..report.probe import flow_table, instruments_table, probe_table
    from ..report.tables import UNITS, verdict_lines
    from ..run.probe import not_for, probe

    console, configs = Console(), {variant.name: variant.config for variant in experiment.variants}
    results = probe(experiment, None if parsed.checkpoint is None else Path(parsed.checkpoint), parsed.instruments)
    for result in results:
        loss = "not finite" if result["loss"] is None else f"{result['loss']:.4f} {UNITS[result['task']]}"
        title = f"{result['variant']}: loss {loss}"
        console.table(title, *probe_table(result))
        for line in verdict_lines(result["variant"], result["verdict"]):
            console.note(line)
        if parsed.instruments:
            if absent := not_for(configs[result["variant"]], parsed.instruments):
                console.note(f"{result['variant']}: nothing to measure here for {', '.join(absent)}")
            rows, table = instruments_table(result["instruments"])
            console.table(f"{result['variant']}: instruments by layer", *table)
            console.block(f"{result['variant']}: instruments", rows)
    if len(results) > 1:
        console.table("side by side", *flow_table(results))
    if parsed.json is not None:
        value = results[0] if [v.name for v in experiment.variants] == ["main"] else results
        write_json(parsed.json, value)
    return 0
