"""Argument types whose errors say what was expected."""

import argparse
import math
from collections.abc import Callable


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type for whole numbers from `low` to `high`."""

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


def temperature(text: str) -> float:
    """An argparse type for finite numbers of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value < math.inf):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


def prompt(text: str) -> str:
    """An argparse type for text of at least one character."""
    if not text:
        raise argparse.ArgumentTypeError("expected at least one character")
    return text
