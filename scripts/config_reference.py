"""Writes docs/config.md, the reference of every config key and residual rule, from the classes that own them.

python scripts/config_reference.py docs/config.md
"""

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from data.synthetic import TASKS
from model.rules import RULES
from model.traced import Traced
from train.config.schema import ExperimentConfig

HEAD = """# The config, key by key

Written by `python scripts/config_reference.py docs/config.md` from the classes that check a config; edit those.
YAML 1.2: `3e-4` is a number, `no` a word. Unknown keys, duplicate keys, aliases and tags are errors. `key=value` on the
command line sets any key by its dotted name. *Traced* keys may differ between variants of one compiled program.
"""

RULES_HEAD = """`model.residual: NAME`, or `{rule: NAME, option: value}`. x is the stream, F a sublayer, N its norm, L
the number of blocks, s the skip scale (`model.skip_scale`); with one there is a counterfactual, the same weights
at s = 0.
"""
TASKS_HEAD = """Rows are drawn by a counter-based generator from (data.seed, step), held-out ones from `data.task_seed`.
The best possible loss is logged as `loss/floor`, others as `loss/floor_NAME`.
"""


def _type(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{'null' if value is None else value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is typing.Annotated:
        described = [mark.description for mark in arguments[1:] if getattr(mark, "description", None)]
        return described[0] if described else _type(arguments[0])
    if origin is tuple and ... in arguments:
        return f"[{_type(arguments[0])}, ...]"
    if origin is tuple:
        return f"[{', '.join(_type(argument) for argument in arguments)}]"
    if annotation is type(None):
        return "null"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return names.get(annotation, "mapping") if isinstance(annotation, type) else "mapping"


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _rows(section: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        meaning = (field.description or "").replace("|", "\\|")
        meaning += "; traced" if any(isinstance(mark, Traced) for mark in field.metadata) else ""
        rows.append(f"| `{prefix}{name}` | {_type(field.annotation)} | {_default(field.default)} | {meaning} |")
    return rows


def reference() -> str:
    """The whole page."""
    header = ["| key | values | default | meaning |", "|---|---|---|---|"]
    parts = [HEAD, "## Top level\n", "\n".join(header + _rows(ExperimentConfig, "")), ""]
    for name, section in _sections(ExperimentConfig, ""):
        doc = " ".join((section.__doc__ or "").split())
        parts += [f"## {name}\n", doc + "\n", "\n".join(header + _rows(section, f"{name}.")), ""]
    parts += ["## Residual rules\n", RULES_HEAD, "| rule | skip scale | what it is |", "|---|---|---|"]
    for name, rule in RULES.items():
        doc = rule.meaning or " ".join(rule.implementation().__doc__.split())
        parts.append(f"| `{name}` | {'yes' if rule.additive else 'no'} | {doc.replace('|', chr(92) + '|')} |")
    parts += ["", "## Synthetic data\n", TASKS_HEAD, "| data.kind | what it is |", "|---|---|"]
    for name, task in TASKS.items():
        doc = " ".join((task.__doc__ or "").split())
        parts.append(f"| `{name}` | {doc.replace('|', chr(92) + '|')} |")
    return "\n".join(parts) + "\n"


def _sections(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield prefix + name, field.annotation
            yield from _sections(field.annotation, f"{prefix}{name}.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
