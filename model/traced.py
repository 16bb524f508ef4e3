"""Traced config fields: inputs of a compiled program, where all other fields are part of it.

Variants that differ only in fields marked `Traced()` share one program. Both the inputs of programs and the grouping of
variants are derived from the mark.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class Traced:
    """Marks a config field as an input of programs.

    At the value `off`, or null, a feature is left out of the program: a dropout rate of 0 compiles no dropout.
    """

    off: float | None = None


def numbers(config: BaseModel) -> dict[str, Any]:
    """Returns the traced numbers that are not off, by dotted key: {"skip_scale": 1.0, "residual.alpha": 0.5}."""
    return {".".join(path): value for path, value in _walk(config, ())}


def structure(config: Config) -> Config:
    """Returns `config` with every traced number that is not off set to 1: the part that determines the program."""
    changes: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            changes[name] = structure(value)
        elif _on(field.metadata, value):
            if isinstance(value, dict):
                changes[name] = type(value)(dict.fromkeys(value, 1.0))
            else:
                changes[name] = (1.0,) * len(value) if isinstance(value, tuple) else 1.0
    return config.model_copy(update=changes)


def _walk(config: BaseModel, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, (*prefix, name))
        elif _on(field.metadata, value):
            yield (*prefix, name), dict(value) if isinstance(value, dict) else value


def _on(metadata: list[Any], value: Any) -> bool:
    mark = next((entry for entry in metadata if isinstance(entry, Traced)), None)
    return mark is not None and value is not None and value not in (mark.off, {})
