"""Arguments that commands share, and types whose errors give the expected and the actual value."""

import argparse
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config.fields import did_you_mean


def add_config(parser: argparse.ArgumentParser, example: str | None = None) -> None:
    """Adds the arguments `config` and `overrides`; `example` of overrides."""
    parser.add_argument("config", help="YAML file, or the name of a shipped config such as quickstart")
    about = None if example is None else f"e.g. {example}"
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=about)


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Returns an argparse type for whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
            raise argparse.ArgumentTypeError(f"expected a whole number {bounds}, got {text!r}")
        return value

    return parse


def integers(low: int, high: int) -> Callable[[str], tuple[int, ...]]:
    """Returns an argparse type for two or more rising whole numbers from `low` to `high`, separated by commas."""

    def parse(text: str) -> tuple[int, ...]:
        numbers = tuple(map(integer(low, high), text.split(",")))
        if len(numbers) < 2 or any(a >= b for a, b in itertools.pairwise(numbers)):
            raise argparse.ArgumentTypeError(f"expected two or more rising numbers separated by commas, got {text!r}")
        return numbers

    return parse


def step(text: str) -> int | str:
    """Parses newest, best, or the number of a step."""
    try:
        return text if text in ("newest", "best") else integer(0)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected newest, best or the number of a step, got {text!r}") from None


def new_file(text: str) -> Path:
    """Parses a file that can be written; its folders may be missing."""
    path = Path(text)
    try:
        if not text or path.exists() and not path.is_file():  # a file would replace a device
            kind = "" if not text else "a folder, " if path.is_dir() else "a device, "
            raise argparse.ArgumentTypeError(f"expected a file, got {kind}{text!r}")
        folder = next(above for above in path.absolute().parents if above.exists())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"expected a file, got {text!r} ({error})") from None
    if not folder.is_dir() or not all(os.access(p, os.W_OK) for p in (folder, path) if p.exists()):
        raise argparse.ArgumentTypeError(f"cannot write {text!r}")
    return path


def named_file(*endings: str, hint: str = "") -> Callable[[str], Path]:
    """Returns an argparse type for a file that can be written and has one of these endings, such as `.html`.

    hint: in place of a file that is a folder.
    """

    def parse(text: str) -> Path:
        if not text.endswith(endings):  # so that `--html RUN` cannot overwrite a file of a run
            names, near = " or ".join(endings), hint if Path(text).is_dir() else ""
            raise argparse.ArgumentTypeError(f"expected a name that ends in {names}, got {text!r}{near}")
        return new_file(text)

    return parse


def names_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Returns an argparse type for `all`, or some of the choices separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(choices if text == "all" else text.split(",")))
        for name in chosen:
            if name not in choices:
                near = did_you_mean(name, choices) or f"; there are {', '.join(choices)}"
                raise argparse.ArgumentTypeError(f"expected all, or names separated by commas, got {name!r}{near}")
        return chosen

    return parse


def temperature(text: str) -> float:
    """Parses 0, or a number that float32 can divide by."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value and not (1e-30 <= value <= 1e30):
        raise argparse.ArgumentTypeError(f"expected 0, or a number from 1e-30 to 1e30, got {text!r}")
    return value


def prompt(text: str) -> str:
    """Parses text of at least one character."""
    if not text:
        raise argparse.ArgumentTypeError("expected at least one character")
    return text
