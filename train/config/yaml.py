"""YAML 1.2 text to nodes that know their lines. A subset: no anchors, aliases, tags or merge keys.

PyYAML scans the text into events; scalars follow the 1.2 core schema instead of PyYAML's 1.1 (`3e-4` is a float, `no` a
string, `010` ten).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

MAX_DEPTH = 32
MAX_VALUES = 10_000  # PyYAML takes up to 70 us for each: a file is refused within a second
_INDENTED = "; check the indentation, and the space after each colon"
_HINTS = {  # by words of PyYAML's messages
    "'\\t'": "; write spaces, not tabs",
    "while scanning an alias": "; put quotes around a text that begins with *",
    "mapping values are not allowed here": _INDENTED,
    "could not find expected ':'": _INDENTED,
    "found '<block mapping start>'": _INDENTED,
}
BAD: Any = object()  # in place of a refused value, so that no second problem is reported for it

_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORD = re.compile(r"(?!(?i:y|n|yes|no|on|off)$)[A-Za-z_][A-Za-z0-9_./-]*")  # booleans of YAML 1.1 need quotes
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Place:
    """The origin of a value: a file and a line, or the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One fault of a config: its place, its key (may be empty), and what was expected and got."""

    place: Place
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.place), self.key, self.message) if part)


@dataclass(frozen=True)
class Node:
    """A value, its place (in a mapping: the line of its key), and its path as the user wrote it."""

    value: Any  # a scalar, list[Node], dict[str, Node], or BAD
    place: Place
    path: str

    @property
    def plain(self) -> Any:
        """The value in plain Python, lists and mappings included; BAD if any part of it is."""
        if isinstance(self.value, dict):
            values = {key: child.plain for key, child in self.value.items()}
            return BAD if any(value is BAD for value in values.values()) else values
        return [child.plain for child in self.value] if isinstance(self.value, list) else self.value

    def problem(self, message: str) -> Problem:
        return Problem(self.place, clean(self.path), message)

    def repeated(self, first: Place) -> Problem:
        """The problem of a second value for the key that was set at `first`."""
        return self.problem("given twice" + ("" if first.line is None else f"; first on line {first.line}"))


def show(value: Any, limit: int = 60) -> str:
    """A value as YAML would write it, on one line, at most about `limit` characters."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, float):
        text = float_text(value)
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(show(item, limit) for item in value[:limit]) + "]"
    elif isinstance(value, dict):
        text = "a mapping"
    else:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return clean(text, limit)


def unquoted(value: Any, limit: int = 60) -> str:
    """The same, with text as it is."""
    return clean(value, limit) if isinstance(value, str) else show(value, limit)


def clean(text: str, limit: int = 100) -> str:
    """Text for a one-line message: unprintable characters escaped, the middle of a long one left out."""
    if len(text) > limit:
        text = f"{text[: limit - 13]}...{text[-10:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def float_text(value: float) -> str:
    """The shortest text that reads back as the same float, and in YAML: 0.0001, 1e-5, 2.0, .inf."""
    text = float.__repr__(value)  # of numpy's float64 too
    special = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}
    return special.get(text) or re.sub(r"e([+-])0*", lambda sign: "e" + sign[1].replace("+", ""), text)


def dump(value: Any) -> str:
    """A value as one line of YAML 1.1 and 1.2; what has no such form becomes a tag, which `read` refuses."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dump, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{dump(key)}: {dump(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return re.sub(r"^(-?[0-9]+)e", r"\1.0e", float.__repr__(value)) if math.isfinite(value) else float_text(value)
    if value is None or isinstance(value, int):
        return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    if not isinstance(value, str):
        return f"!{type(value).__name__} ''"
    if _WORD.fullmatch(value) and scalar(value) is value:
        return value
    escaped = (f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08x}" for c in value)
    return f'"{"".join(escaped)}"'


def scalar(text: str) -> Any:
    """A plain (unquoted) scalar by the YAML 1.2 core schema; BAD for a whole number beyond 64 bits, signed or not."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        value = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if len(text) <= 100 else 2**64
        return value if -(2**63) <= value < 2**64 else BAD
    return float(text) if _FLOAT.fullmatch(text) else text


def read(text: str, place: Place, problems: list[Problem], path: str = "") -> Node:
    """Reads one document, raising nothing.

    Args:
        place: of the first line; every line of a place without one.
        problems: gathers those of the text.
        path: the key that the whole document is the value of.

    Returns:
        The document, in which each refused value is BAD; all of it where it cannot be read to its end.
    """
    reader, line, loader = _Reader(text, place, problems), None, None
    try:
        if bad := _CONTROL.search(text):
            raise _Stop(len((text[: bad.start()] + ".").splitlines()) - 1, _control(bad))
        loader = reader.loader = yaml.SafeLoader(text)
        loader.get_event()  # the stream's start
        if loader.check_event(yaml.StreamEndEvent):
            return Node(None, place, path)
        loader.get_event()  # the document's start
        node = reader.node(loader.get_event(), path, place, 0)
        loader.get_event()  # the document's end
        if not loader.check_event(yaml.StreamEndEvent):
            second = reader.place(loader.peek_event().start_mark.line)
            reader.report(second, path, "a second document starts here; expected one")
        return node
    except _Stop as error:
        line, message = error.args
    except yaml.MarkedYAMLError as error:
        mark, begun = error.problem_mark or error.context_mark, error.context_mark
        message = "not valid YAML: " + ", ".join(clean(part) for part in (error.context, error.problem) if part)
        message += next((hint for words, hint in _HINTS.items() if words in message), "")
        if "document start" in message:  # [model], as in an INI file
            message = "not valid YAML: expected one mapping of keys; write key: value"
        line = mark and mark.line
        if begun and (first := reader.place(begun.line).line) not in (None, reader.place(line).line):
            message += f"; begun on line {first}"
    except Exception as error:  # crafted text makes PyYAML raise nearly anything: ValueError, RecursionError ...
        line, message = loader and loader.line, clean(str(error)) or type(error).__name__
        if isinstance(error, OverflowError) or message.startswith("chr()"):
            message = "an escape beyond \\U0010FFFF, the last character"  # chr() words it differently by version
        message = f"not valid YAML: {message}"
    reader.report(reader.place(line), path, message)
    return Node(BAD, place, path)


class _Stop(Exception):
    """Nothing more can be read: the line, counted from 0, and the reason."""


class _Reader:
    def __init__(self, text: str, start: Place, problems: list[Problem]):
        self.start, self.last, self.problems = start, max(len(text.splitlines()), 1), problems
        self.values = 0
        self.loader: Any = None

    def place(self, line: int | None) -> Place:
        """The place of a line counted from 0; the start for None."""
        if line is None or self.start.line is None:
            return self.start
        return Place(self.start.source, min(line + 1, self.last))

    def report(self, place: Place, path: str, message: str) -> None:
        self.problems.append(Problem(place, clean(path), message))

    def node(self, event: Any, path: str, place: Place, depth: int) -> Node:
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            most = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_VALUES} values"
            raise _Stop(event.start_mark.line, f"expected at most {most}")
        refused, value = [], BAD
        if isinstance(event, yaml.AliasEvent):
            refused.append(f"aliases are not supported; write the value of *{clean(event.anchor, 30)} out")
        elif event.anchor is not None:
            refused.append(f"anchors are not supported; remove &{clean(event.anchor, 30)}")
        if (tag := getattr(event, "tag", None)) is not None:
            refused.append(f"tags are not supported; remove {clean(tag.replace('tag:yaml.org,2002:', '!!'), 40)}")
        if isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := self.loader.get_event(), yaml.SequenceEndEvent):
                value.append(self.node(item, f"{path}[{len(value)}]", self.place(item.start_mark.line), depth + 1))
            value = BAD if any(item.value is BAD for item in value) else value
        elif isinstance(event, yaml.MappingStartEvent):
            value = self.mapping(path, depth)
        elif isinstance(event, yaml.ScalarEvent):
            value = scalar(event.value) if event.implicit[0] else event.value
            if value is BAD:
                refused.append(f"expected a whole number that fits in 64 bits, got {clean(event.value, 40)}")
            elif isinstance(value, str) and (bad := _CONTROL.search(value)):
                refused.append(_control(bad))
        for message in refused:
            self.report(place, path, message)
        return Node(BAD if refused else value, place, path)

    def mapping(self, path: str, depth: int) -> dict[str, Node]:
        mapping: dict[str, Node] = {}
        while not isinstance(event := self.loader.get_event(), yaml.MappingEndEvent):
            place, before = self.place(event.start_mark.line), len(self.problems)
            key = self.node(event, path, place, depth + 1).value
            inner = path if not isinstance(key, str) else f"{path}.{key}" if path else key
            child = self.node(self.loader.get_event(), inner, place, depth + 1)
            if key == "<<" and event.implicit[0]:
                self.report(place, path, "merge keys (<<) are not supported; write the keys out")
            elif isinstance(key, str) and key in mapping:
                self.problems.append(child.repeated(mapping[key].place))
            elif isinstance(key, str):
                mapping[key] = child
            elif len(self.problems) == before:
                what = "a list" if isinstance(key, list) else show(key)
                hint = "" if isinstance(key, list | dict) else "; put quotes around it"
                self.report(place, path, f"expected a key that is text, got {what}{hint}")
        return mapping


def _control(found: re.Match[str]) -> str:
    return f"control character U+{ord(found[0]):04X}; expected text"
