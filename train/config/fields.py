"""What each key of a config expects, in words, and the nearest valid key to one that does not exist."""

import difflib
import types
import typing
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .schema import ExperimentConfig, RunConfig
from .yaml12 import BAD, Node, Place, Problem, clean, show

SPECIAL = tuple(name for name in ExperimentConfig.model_fields if name not in RunConfig.model_fields)


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo | type[BaseModel]]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield prefix + name, kind
            yield from _walk(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


FIELDS: dict[str, FieldInfo] = {key: field for key, field in _walk(RunConfig) if isinstance(field, FieldInfo)}
SECTIONS: dict[str, list[str]] = {"": [*RunConfig.model_fields, *SPECIAL]} | {
    key: list(kind.model_fields) for key, kind in _walk(RunConfig) if not isinstance(kind, FieldInfo)
}

# Sections that a single value stands for: `residual: rezero` is `residual: {rule: rezero}`. The key decides on the
# others of its section, so wherever it is set anew they start from their defaults.
SHORT = {"model.residual": "rule"}


# What other programs call it.
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


def related(key: str, reads: Collection[str]) -> bool:
    """Whether a key is one of these keys and sections, or lies in one, or holds one."""
    return any(f"{key}.".startswith(f"{read}.") or f"{read}.".startswith(f"{key}.") for read in reads)


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known word most like this one, whatever the case; None when nothing is close."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, 1, 0.66) if len(word) <= 100 else []
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`; did you mean X?`, or nothing."""
    found = nearest(word, known)
    return "" if found is None else f"; did you mean {found}?"


def unknown(key: str, full: bool) -> tuple[str, str]:
    """What to say of a dotted key that does not exist, and the key that was probably meant ("" if none).

    `full` names whole dotted keys, for places where the user wrote one.
    """
    section, _, last = key.rpartition(".")
    if section in FIELDS:
        return f"unknown key; {section} expects {expected(FIELDS[section])}", section
    homes = [home for home in (*SHORT, *FIELDS) if home.rpartition(".")[2] == last]
    if not homes and (meant := _SYNONYMS.get(last.lower())):
        return f"unknown key; did you mean {meant}?", meant
    if section not in SECTIONS:
        meant = nearest(section, SECTIONS)
        if meant and f"{meant}.{last}" in FIELDS:
            return f"unknown key; did you mean {meant}.{last}?", f"{meant}.{last}"
        if not homes:
            return f"unknown key{did_you_mean(key, FIELDS)}", nearest(key, FIELDS) or ""
    if homes:
        return f"unknown key; {' and '.join(homes)} {'is' if len(homes) == 1 else 'are'} where {last} lives", homes[0]
    prefix = f"{section}." if section else ""
    if meant := nearest(last, SECTIONS[section]):
        return f"unknown key; did you mean {prefix if full else ''}{meant}?", prefix + meant
    elsewhere = {home.rpartition(".")[2]: home for home in reversed(FIELDS)}
    if meant := nearest(last, elsewhere):
        return f"unknown key; did you mean {elsewhere[meant]}?", elsewhere[meant]
    return f"unknown key; {section or 'the top level'} has {', '.join(SECTIONS[section])}", ""


def _kinds(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _kinds(member)
    else:
        yield annotation


def choices(field: FieldInfo) -> list[Any]:
    """The literal values a field allows, null included when others are."""
    found = [
        v for kind in _kinds(field.annotation) if typing.get_origin(kind) is Literal for v in typing.get_args(kind)
    ]
    return [*found, None] if found and types.NoneType in _kinds(field.annotation) else found


def expected(field: FieldInfo) -> str:
    """What a field expects, in words with its bounds: `a number >= 0`, `one of adamw, sgd`."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounded = [*signs, "min_length", "max_length"]
    limits = {name: getattr(limit, name) for limit in field.metadata for name in bounded if hasattr(limit, name)}
    bounds = " and ".join(f"{sign} {show(limits[name])}" for name, sign in signs.items() if name in limits)
    length = " to ".join(str(limits[name]) for name in ("min_length", "max_length") if name in limits)
    if length and "max_length" not in limits:
        length = f"{length} or more"
    names = choices(field)
    listed = ", ".join(name if isinstance(name, str) else show(name) for name in names)
    parts = [f"one of {listed}" if len(names) > 1 else listed] if names else []
    for kind in _kinds(field.annotation):
        if kind is bool:
            parts.append("true or false")
        elif kind is int or kind is float:
            parts.append(f"a {'whole ' if kind is int else ''}number {bounds}".rstrip())
        elif kind is str:
            parts.append(f"text of {length} characters" if length else "text")
        elif typing.get_origin(kind) is Annotated:
            parts.extend(mark.description or "text" for mark in kind.__metadata__ if isinstance(mark, FieldInfo))
        elif typing.get_origin(kind) is tuple:
            first, *rest = typing.get_args(kind)
            lists = "a list of texts" if first is str else "a list of lists of numbers"
            parts.append(lists if Ellipsis in rest else f"a list of {1 + len(rest)} numbers")
        elif typing.get_origin(kind) is dict and typing.get_origin(typing.get_args(kind)[1]) is Annotated:
            each = FieldInfo.from_annotation(typing.get_args(kind)[1])
            parts.append(f"a mapping whose values are each {expected(each)}")
        elif typing.get_origin(kind) is list:
            parts.append("a list")
        elif typing.get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
            parts.append("a mapping")
        elif kind is types.NoneType and not names:
            parts.append("null")
    return " or ".join(parts)


def mismatch(field: FieldInfo, value: Any) -> str:
    """`expected ..., got ...` for a value that a field refuses, with the nearest name it would take."""
    names = [name for name in choices(field) if isinstance(name, str)]
    hint = did_you_mean(value, names) if isinstance(value, str) else ""
    if not hint and str in _kinds(field.annotation) and isinstance(value, int | float):
        hint = "; put quotes around it"
    size = f" ({len(value)} characters)" if isinstance(value, str) and len(value) > 60 else ""
    got = show(value)
    if isinstance(value, dict) and "a mapping" in expected(field):  # one of its values is what is wrong
        got = clean("{" + ", ".join(f"{key}: {show(each)}" for key, each in value.items()) + "}")
    return f"expected {expected(field)}, got {got}{size}{hint}"


def validated(flat: dict[str, Node], source: Place) -> tuple[RunConfig, list[Problem], set[str]]:
    """A config from dotted keys, what is wrong with single fields, and the keys concerned (defaults stand there)."""
    bad = {key for key, node in flat.items() if node.value is BAD}
    values = {key: node.plain for key, node in flat.items() if key not in bad}
    wrong = [key for key, value in values.items() if not _named(FIELDS[key], value)]
    problems = []
    for _ in range(2):
        for key in wrong:
            if key in values:
                problems.append(Problem(flat[key].place, flat[key].path, mismatch(FIELDS[key], values[key])))
            else:
                problems.append(Problem(source, key, f"missing; expected {expected(FIELDS[key])}"))
        bad.update(wrong)
        kept = {key: value for key, value in values.items() if key not in bad}
        if "name" in bad:
            kept["name"] = "unnamed"
        try:
            return RunConfig.model_validate(_nested(kept)), problems, bad
        except ValidationError as error:
            wrong = list(dict.fromkeys(_dotted(item["loc"]) for item in error.errors(include_url=False)))
    return RunConfig.model_validate({"name": "unnamed"}), problems, bad | set(FIELDS)


def _named(field: FieldInfo, value: Any) -> bool:
    """False when a field takes nothing but certain values and this is none of them (to pydantic, true is 1)."""
    named = all(typing.get_origin(kind) is Literal or kind is types.NoneType for kind in _kinds(field.annotation))
    return not named or any(type(name) is type(value) and name == value for name in choices(field))


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *above, last = key.split(".")
        room = tree
        for part in above:
            room = room.setdefault(part, {})
        room[last] = value
    return tree


def _dotted(location: tuple[int | str, ...]) -> str:
    """The key of the config that a pydantic location lies in; what follows it is inside its value."""
    key = ""
    for part in location:
        key = f"{key}.{part}" if key else str(part)
        if key in FIELDS:
            break
    return clean(key)
