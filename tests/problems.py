"""The problems of a config, as the user sees them."""

import os
from pathlib import Path

from train.config.load import ConfigError, load


def lines(folder: Path, text: str | bytes, *overrides: str) -> list[str]:
    """The problems of a file called a.yaml, without its folder; [] when it can be used."""
    path = folder / "a.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        load(path, overrides)
    except ConfigError as error:
        assert str(error).splitlines() == [str(problem) for problem in error.problems]
        return [line.removeprefix(f"{folder}{os.sep}") for line in str(error).splitlines()]
    return []
