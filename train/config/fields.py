"""The keys of a config: what each expects, in words, and the nearest valid key to one that does not exist."""

import difflib
import types
import typing
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from .schema import ExperimentConfig, RunConfig
from .yaml import clean, show

SPECIAL = tuple(name for name in ExperimentConfig.model_fields if name not in RunConfig.model_fields)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section of its own."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        if section := section_of(field):
            yield from _walk(section, f"{prefix}{name}.")


FIELDS: dict[str, FieldInfo] = {key: field for key, field in _walk(RunConfig) if not section_of(field)}
SECTIONS: dict[str, list[str]] = {"": [*RunConfig.model_fields, *SPECIAL]} | {
    key: list(section.model_fields) for key, field in _walk(RunConfig) if (section := section_of(field))
}

# Sections that a single value stands for: `residual: rezero` is `residual: {rule: rezero}`.
SHORT = {"model.residual": "rule"}

# Names of other programs.
_ELSEWHERE = {
    "data.context": ("block_size", "seq_len", "max_seq_len", "seq_length", "sequence_length", "context_length"),
    "data.batch": ("batch_size",),
    "data.path": ("file", "filename", "data_path"),
    "data.corpus": ("dataset",),
    "model.layers": ("n_layer", "n_layers", "num_layers", "depth"),
    "model.heads": ("n_head", "n_heads", "num_heads"),
    "model.width": ("n_embd", "d_model", "hidden_size", "embed_dim", "dim"),
    "optimizer.lr": ("learning_rate",),
    "optimizer.clip": ("grad_clip", "clip_norm", "max_grad_norm"),
    "optimizer.warmup": ("warmup_iters", "warmup_steps"),
    "optimizer.name": ("type",),
    "train.steps": ("step", "epochs", "max_iters", "max_steps", "num_steps", "iterations"),
    "train.eval_every": ("eval_interval",),
    "watch.every": ("log_interval", "log_every"),
}
_SYNONYMS = {other: key for key, others in _ELSEWHERE.items() for other in others}
_VALUES = {"cuda": "gpu", "fp16": "bfloat16", "prenorm": "pre_ln", "postnorm": "post_ln"}  # and those of their values


def nearest(word: str, names: Collection[str]) -> str | None:
    """The name closest to a word, whatever the case; None when none is close."""
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), by_lower, 1, 0.66) if len(word) <= 100 else []
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, names: Collection[str]) -> str:
    """`; did you mean X?` with the closest name, or nothing."""
    name = nearest(word, names)
    return "" if name is None else f"; did you mean {name}?"


def unknown(key: str) -> str:
    """The message for a dotted key that does not exist."""
    section = key.rpartition(".")[0]
    if section in FIELDS:
        return f"unknown key; {section} expects {expected(FIELDS[section])}"
    if ":" in key and key.partition(":")[0] in FIELDS:  # {layers:2}
        return "unknown key; put a space after the colon"
    if keys := suggestions(key):
        return f"unknown key; did you mean {' or '.join(keys)}?"
    if section in SECTIONS:
        return f"unknown key; {section or 'the top level'} has {', '.join(SECTIONS[section])}"
    return "unknown key"


def suggestions(key: str) -> list[str]:
    """The keys that may be meant by a dotted key that does not exist; empty when none is close."""
    section, _, last = key.rpartition(".")
    homes = sorted((home for home in (*SHORT, *FIELDS) if home.rpartition(".")[2] == last), key=len)
    by_last = {home.rpartition(".")[2]: home for home in reversed(FIELDS)}
    meant = None if homes else _SYNONYMS.get(last.lower())
    if meant is None and section not in SECTIONS:
        meant = nearest(key, FIELDS)
    if meant is None and homes:
        return homes
    if meant is None and (sibling := nearest(last, SECTIONS.get(section, ()))):
        meant = f"{section}.{sibling}" if section else sibling
    if meant is None:
        meant = by_last.get(nearest(last, by_last) or "")
    return [] if meant is None else [meant]


def choices(field: FieldInfo) -> list[Any]:
    """The literal values a field allows, null included when others are."""
    members = _members(field.annotation)
    names = [name for kind in members if typing.get_origin(kind) is Literal for name in typing.get_args(kind)]
    return [*names, None] if names and types.NoneType in members else names


def _members(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(annotation) for inner in _members(member)]
    return [annotation]


def expected(field: FieldInfo) -> str:
    """The values a field takes, in words with their bounds: `a number >= 0`, `one of adamw, sgd`."""
    limits = {
        name: getattr(mark, name)
        for mark in field.metadata
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length")
        if hasattr(mark, name)
    }
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = " and ".join(f"{sign} {show(limits[name])}" for name, sign in signs.items() if name in limits)
    names = [name if isinstance(name, str) else show(name) for name in choices(field)]
    parts = [f"one of {', '.join(names)}"] if len(names) > 1 else [*names]
    for kind in _members(field.annotation):
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind is bool:
            parts.append("true or false")
        elif kind in (int, float):
            parts.append(f"a {'whole ' if kind is int else ''}number {bounds}".rstrip())
        elif kind is str and limits:
            most = f"to {limits['max_length']}" if "max_length" in limits else "or more"
            parts.append(f"text of {limits.get('min_length', 0)} {most} characters")
        elif kind is str:
            parts.append("text")
        elif origin is Annotated:
            inner = FieldInfo.from_annotation(kind)
            parts.append(inner.description or expected(inner))
        elif origin in (tuple, list, dict):
            inner = FieldInfo.from_annotation(arguments[origin is dict])
            size = f" of {len(arguments)}" if origin is tuple and ... not in arguments else ""
            start = "a mapping, each value" if origin is dict else f"a list{size}, each"
            parts.append(start.partition(",")[0] if inner.annotation is Any else f"{start} {expected(inner)}")
        elif kind is types.NoneType and not names:
            parts.append("null")
    return " or ".join(parts)


def exact(key: str, value: Any) -> bool:
    """False for a field that takes literals alone and has none of this type and value (to pydantic, true is 1)."""
    members = _members(FIELDS[key].annotation)
    literal = all(typing.get_origin(kind) is Literal or kind is types.NoneType for kind in members)
    return not literal or any(type(name) is type(value) and name == value for name in choices(FIELDS[key]))


def _takes(field: FieldInfo, value: Any) -> bool:
    try:
        create_model("Lone", value=(cast(Any, field.annotation), field))(value=value)
    except ValidationError:
        return False
    return True


def mismatch(field: FieldInfo, value: Any) -> str:
    """`expected ..., got ...` for a value that a field refuses, with the nearest name it would take."""
    names = [name for name in choices(field) if isinstance(name, str)]
    hint = ""
    if isinstance(value, str):
        name = _VALUES.get(value.lower())
        hint = f"; did you mean {name}?" if name in names else did_you_mean(value, names)
    elif isinstance(value, float) and value.is_integer() and _takes(field, int(value)):
        hint = f"; write {int(value)}"
    if not hint and str in _members(field.annotation) and isinstance(value, int | float):
        hint = "; put quotes around it"
    size = f" ({len(value)} characters)" if isinstance(value, str) and len(value) > 60 else ""
    got = show(value)
    if isinstance(value, dict) and "a mapping" in expected(field):  # one of its values is wrong
        got = clean("{" + ", ".join(f"{key}: {show(each)}" for key, each in value.items()) + "}")
    return f"expected {expected(field)}, got {got}{size}{hint}"
