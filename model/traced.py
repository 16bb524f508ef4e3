"""Which numbers of a config are inputs of a compiled program, and not part of it.

A field marked `Traced()` only changes numbers, so variants that differ in nothing else share one program. The mark is
the one place that says so: what programs take as input and what groups variants both follow from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class Traced:
    """Marks a field that programs take as an input.

    `off` is the value, null beside it, that leaves something out: without dropout there is no dropout in the program.
    """

    off: float | None = None


def numbers(config: BaseModel) -> dict[str, Any]:
    """The traced numbers that are on, by dotted key within the section: {"skip_scale": 1.0, "residual.alpha": 0.5}."""
    return {".".join(path): value for path, value in _walk(config, ())}


def structure(config: Config) -> Config:
    """`config` with every traced number that is on set to 1: what is left decides on the program."""
    changes: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            changes[name] = structure(value)
        elif _on(field.metadata, value):
            changes[name] = _ones(value)
    return config.model_copy(update=changes)


def _ones(value: Any) -> Any:
    if isinstance(value, dict):
        return type(value)(dict.fromkeys(value, 1.0))
    return (1.0,) * len(value) if isinstance(value, tuple) else 1.0


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
