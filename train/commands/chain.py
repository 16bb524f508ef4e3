"""`deltaflow chain [CONFIG] [key=value ...] [--only PATTERN] [--html FILE] [--json FILE]`."""

import argparse
import itertools
import time

from ..config.load import ConfigError, load
from ..errors import UserError
from .types import named_file, new_file


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        nargs="?",
        help="YAML file or name of a shipped config, whose model is checked too, made small; without it a built-in one",
    )
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--only", metavar="PATTERN", help="of claims, such as optimizer or 'scalar/skip*'")
    parser.add_argument("--html", type=named_file(".html"), metavar="FILE", help="write the claims there as a page")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the claims there as JSON")


def run(parsed: argparse.Namespace) -> int:
    """Prints a table a group; 1 when a claim is not what it should be. Raises ConfigError, DataError, UserError."""
    # After an option argparse takes the config for an override.
    path, *overrides = [*([] if parsed.config is None else [parsed.config]), *parsed.overrides] or [None]
    try:
        experiment = None if path is None else load(path, overrides)  # before JAX starts
    except ConfigError:
        from ..chain.run import GROUPS

        if str(path).partition("/")[0] in GROUPS:
            raise UserError(f"{path}: no such config; did you mean --only {path}?", "command line") from None
        raise
    from ..chain.run import result_of, selected
    from ..chain.subject import BUILT_IN, subject_of
    from ..device import platform as platforms
    from ..disk import write_atomically, write_json
    from ..log.console import Console
    from ..report.chain import chain_page, chain_table, closing_line, complaint

    console, began = Console(), time.monotonic()
    platform = platforms.exact()
    if experiment is None:
        subject = subject_of(BUILT_IN, "the built-in model")
    else:
        variant = experiment.variants[0]
        subject = subject_of(variant.config, f"{path}, variant {variant.name}")
    try:
        claims = selected(parsed.only)
    except ValueError as error:
        raise UserError(f"--only: {error}", "command line") from None
    versions = platforms.versions()
    about = {"platform": platform.label, "dtype": "float64", "versions": versions, "model": subject.note}
    numbers = ", ".join(f"{name} {number}" for name, number in versions.items())
    rows = [("device", f"{platform.label}, float64"), ("versions", numbers), ("model", subject.note)]
    console.block("deltaflow chain", rows)
    console.note("")
    results = []
    for _, group in itertools.groupby(claims, key=lambda claim: claim.group):
        rows = [result_of(claim, subject) for claim in group]
        console.table(rows[0]["group"], *chain_table(rows))
        console.note("")
        results += rows
    for result in results:
        if not result["good"]:
            console.warn(complaint(result))
    about["seconds"] = round(time.monotonic() - began, 1)
    console.note(closing_line(results, about["seconds"]))
    if parsed.json is not None:
        value = {**about, "good": all(result["good"] for result in results), "claims": results}
        write_json(parsed.json, value)
    if parsed.html is not None:
        write_atomically(parsed.html, chain_page(results, about))
    return 0 if all(result["good"] for result in results) else 1
