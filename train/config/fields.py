"""The keys of a config: what each expects, in words, and the nearest valid key to one that does not exist."""

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from .schema import ExperimentConfig, RunConfig
from .yaml import clean, scalar, show

SPECIAL = tuple(name for name in ExperimentConfig.model_fields if name not in RunConfig.model_fields)
FIXED = ("name", "runs_dir", *SPECIAL)  # shared by all variants of an experiment


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section of its own."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The dotted keys of a config's class, each section before the keys in it."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        if section := section_of(field):
            yield from walk(section, f"{prefix}{name}.")


FIELDS: dict[str, FieldInfo] = {key: field for key, field in walk(RunConfig) if not section_of(field)}
SECTIONS: dict[str, list[str]] = {"": [*RunConfig.model_fields, *SPECIAL]} | {
    key: list(section.model_fields) for key, field in walk(RunConfig) if (section := section_of(field))
}

# Sections that a single value stands for: `residual: rezero` is `residual: {rule: rezero}`.
SHORT = {"model.residual": "rule"}
RULES = tuple(f"{section}.{head}" for section, head in SHORT.items())

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
# Ways to write a number that YAML takes for text: 3e-4, and 0,001 and 10_000 and 10k.
_RESPELT = ((r",$", ""), (r"(?<=\d),(?=\d)", "."), (r"(?<=\d)_(?=\d)", ""), (r"(?<=\d)[kK]$", "000"))
_NO, _YES = ("none", "off", "no", "false"), ("on", "yes", "true")  # words that YAML 1.2 takes for text
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
    first, _, rest = key.partition(".")
    if first in SPECIAL and rest:  # dotted on the command line alone
        name, _, inner = rest.partition(".")
        nested = f"{name}: {{{inner}: ...}}" if inner and first != "sweep" else f"{rest}: ..."
        return f"unknown key; write {clean(f'{first}: {{{nested}}}')}"
    if section in FIELDS:
        return f"unknown key; {section} expects {expected(FIELDS[section])}"
    for mark, missing in ((":", "a space after the colon"), (" ", "a colon before the blank")):
        if mark in key and key.partition(mark)[0] in (*FIELDS, *SECTIONS):  # {layers:2}, {layers 2}
            return f"unknown key; put {missing}"
    if keys := suggestions(key):
        return f"unknown key; did you mean {' or '.join(keys)}?"
    if section in SECTIONS:
        return f"unknown key; {section or 'the top level'} has {', '.join(SECTIONS[section])}"
    return "unknown key"


def suggestions(key: str) -> list[str]:
    """The keys that may be meant by a dotted key that does not exist; empty when none is close."""
    section, _, last = key.rpartition(".")
    homes = [home for home in SHORT if home.rpartition(".")[2] == last]
    homes = homes or sorted((home for home in FIELDS if home.rpartition(".")[2] == last), key=len)
    if not homes and (meant := _SYNONYMS.get(last.lower())):
        return [meant]
    if section not in SECTIONS and (meant := nearest(key, FIELDS)):
        return [meant]
    if homes:
        return homes
    if sibling := nearest(last, SECTIONS.get(section, ())):
        return [f"{section}.{sibling}" if section else sibling]
    by_last = {home.rpartition(".")[2]: home for home in reversed(FIELDS)}
    near = nearest(last, by_last)
    return [] if near is None else [by_last[near]]


def not_a_mapping(value: Any, of: str = "keys", key: str = "") -> str:
    """The message for another value in the place of a mapping, of the section `key` if it is one: `optimizer: sgd`."""
    hint = "; {} is an empty one" if value is None else ""
    if isinstance(value, str):
        inner = [name for name in (*naming(value), f"{key}.path") if name.startswith(f"{key}.") and name in FIELDS]
        hint = f"; did you mean {clean(f'{inner[0]}={value}')}?" if inner else "; write key: value" * ("=" in value)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        hint = "; leave out the dashes"
    elif isinstance(value, list) and value and key and all(name in SECTIONS[key] for name in value):
        hint = f"; give each a value: {{{', '.join(f'{name}: ...' for name in value)}}}"
    return f"expected a mapping of {of}, got {'nothing' if value is None else show(value)}{hint}"


def naming(value: Any) -> list[str]:
    """The keys that list a word among their values: optimizer.name for sgd."""
    return [key for key, field in FIELDS.items() if isinstance(value, str) and value in _literals(_members(field))]


@cache
def _members(field: FieldInfo) -> list[dict[str, Any]]:
    """The JSON schemas of the types that a field may have."""
    schema = TypeAdapter(field.rebuild_annotation()).json_schema()
    return schema.get("anyOf", [schema])


def _literals(members: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The values that a field lists, null included when others are."""
    names = [name for member in members for name in member.get("enum", [member["const"]] if "const" in member else [])]
    return [*names, None] if names and {"type": "null"} in members else names


def expected(field: FieldInfo) -> str:
    """The values a field takes, in words with their bounds: `a number >= 0`, `one of adamw, sgd`."""
    return _in_words(_members(field))


_TYPES = {
    **{"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text"},
    **{"array": "a list", "object": "a mapping", "null": "null"},
}
_SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _in_words(members: Sequence[Mapping[str, Any]]) -> str:
    names = [name if isinstance(name, str) else show(name) for name in _literals(members)]
    parts = [f"one of {', '.join(names)}"] if len(names) > 1 else [*names]
    for member in members:
        if "enum" in member or "const" in member or (names and member == {"type": "null"}):
            continue
        words = _TYPES[member["type"]]
        if bounds := " and ".join(f"{sign} {show(member[name])}" for name, sign in _SIGNS.items() if name in member):
            words += f" {bounds}"
        if "pattern" in member:
            words = member["description"]
        elif "minLength" in member:
            most = f"to {member['maxLength']}" if "maxLength" in member else "or more"
            words += f" of {member['minLength']} {most} characters"
        elif items := member.get("prefixItems"):
            words += f" of {len(items)}, each {_in_words(items[:1])}"
        elif items := member.get("items"):
            words += f", each {_in_words([items])}"
        elif isinstance(values := member.get("additionalProperties"), dict):
            words += f", each value {_in_words([values])}"
        parts.append(words)
    return " or ".join(parts)


def _fits(field: FieldInfo, value: Any) -> bool:
    """True for a value that a field takes as it is."""
    try:
        TypeAdapter(field.rebuild_annotation()).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def mismatch(key: str, value: Any) -> str:
    """`expected ..., got ...` for a value that the field of a key refuses, with the nearest one it would take."""
    words, got = expected(FIELDS[key]), show(value)
    if isinstance(value, dict) and "a mapping" in words:  # one of its values is wrong
        got = clean("{" + ", ".join(f"{key}: {show(each)}" for key, each in value.items()) + "}")
    elif isinstance(value, str) and len(value) > 60:
        got += f" ({len(value)} characters)"
    return f"expected {words}, got {got}{next(filter(None, _hints(key, value)), '')}"


def _hints(key: str, value: Any) -> Iterator[str]:
    """Ways to right a value, the likeliest first; some are empty."""
    field = FIELDS[key]
    members = _members(field)
    if isinstance(value, str):
        word = value.lower()
        yield did_you_mean(_VALUES.get(word, word), [name for name in _literals(members) if isinstance(name, str)])
        yield "; leave out the quotes" if _fits(field, scalar(value)) else ""
        meant: list[Any] = [scalar(re.sub(pattern, right, value)) for pattern, right in _RESPELT]
        meant += (None, False) if word in _NO else (True,) if word in _YES else ()
        yield from (f"; did you mean {show(each)}?" for each in meant if _fits(field, each))
        yield f"; write {show([value])}" if _fits(field, (value,)) else ""
    elif isinstance(value, list):
        if value and key not in FIXED and all(_fits(field, item) for item in value):
            yield f"; a run for each of them: sweep.{key}={show(value)}"
        names = _literals([member.get("items") or {} for member in members])
        yield from (did_you_mean(str(item), names) for item in value if item not in names)
    elif isinstance(value, dict) and key in RULES:
        yield f"; options are keys of their own, {key.rpartition('.')[0]}.OPTION; or use variants"
    elif isinstance(value, float) and not math.isfinite(value):
        yield ", which is not finite"
    elif isinstance(value, int | float):
        whole = isinstance(value, float) and value.is_integer() and _fits(field, int(value))
        yield f"; write {int(value)}" if whole else ""
        yield "; put quotes around it" if _fits(field, str(value)) else ""
