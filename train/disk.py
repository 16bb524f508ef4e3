"""JSON and text written atomically, and JSON read back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import json_of, replacing

from .errors import Failure, UserError, refusal


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` to a file, which holds all of it or its former content. Raises UserError."""
    content = text.encode()
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise Failure(f"{path}: cannot write: {refusal(error, path.parent, len(content))}") from None
    except ValueError as error:  # "." has no name; a null character
        raise UserError(f"{str(path)!r}: cannot write: {error}") from None


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a value as JSON, atomically. Raises UserError."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of this project. Raises UserError when it cannot be read or holds something else."""
    try:
        value = json_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: cannot read: expected a mapping")
    return value
