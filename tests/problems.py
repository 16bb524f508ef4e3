"""The problems of a config, as the user sees them."""

import os
from collections.abc import Sequence
from pathlib import Path

from train.config.load import ConfigError, Problem, load


def problems(folder: Path, text: str | bytes, *overrides: str) -> Sequence[Problem]:
    """The problems of a file called a.yaml; none when it can be used."""
    path = folder / "a.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        load(path, overrides)
    except ConfigError as error:
        assert str(error).splitlines() == [str(problem) for problem in error.problems]
        return error.problems
    return ()


def lines(folder: Path, text: str | bytes, *overrides: str) -> list[str]:
    """The same as printed, without the folder."""
    return [str(problem).removeprefix(f"{folder}{os.sep}") for problem in problems(folder, text, *overrides)]
