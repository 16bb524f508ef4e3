"""YAML 1.2 text to values that remember their line. A subset: no anchors, aliases, tags or merge keys.

PyYAML does the scanning, as a stream of events; scalars follow the 1.2 core schema instead of PyYAML's 1.1
(`3e-4` is a float, `no` a string, `010` ten). Whatever is wrong becomes a `Problem`; no exception leaves `read`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

MAX_DEPTH = 32
MAX_VALUES = 10_000  # PyYAML takes up to 70 us for each: a file is refused within a second
BAD: Any = object()  # stands where a value was refused, so that no second problem is found in it

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = {".nan", ".NaN", ".NAN"}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and a line, or the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, under which key (may be empty), and what was expected and got."""

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
        """The value in plain Python, lists and mappings included."""
        if isinstance(self.value, dict):
            return {key: child.plain for key, child in self.value.items()}
        return [child.plain for child in self.value] if isinstance(self.value, list) else self.value


def show(value: Any, limit: int = 60) -> str:
    """A value as YAML would write it, on one line, at most about `limit` characters."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, float):
        text = number(value)
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(show(item, limit) for item in value[:limit]) + "]"
    elif isinstance(value, dict):
        text = "a mapping"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = str(value)
    return clean(text, limit)


def clean(text: str, limit: int = 100) -> str:
    """Text for a one-line message: unprintable characters escaped, the middle of a long one left out."""
    if len(text) > limit:
        text = f"{text[: limit - 13]}...{text[-10:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def number(value: float) -> str:
    """The shortest text that reads back as the same float, and in YAML: 0.0001, 1e-5, 2.0, .inf."""
    if value != value or value in (float("inf"), float("-inf")):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[repr(value)]
    return re.sub(r"e([+-])0*", lambda sign: "e" + sign[1].replace("+", ""), repr(value))


def fits(value: int) -> bool:
    """Whether 64 bits, signed or not, can hold it."""
    return -(2**63) <= value < 2**64


def scalar(text: str) -> Any:
    """A plain (unquoted) scalar by the YAML 1.2 core schema.

    Raises:
        ValueError: a whole number that 64 bits cannot hold.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        value = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if len(text) <= 100 else None
        if value is None or not fits(value):
            raise ValueError(f"expected a whole number that fits in 64 bits, got {clean(text, 40)}")
        return value
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INF.fullmatch(text):
        return float("-inf" if text[0] == "-" else "inf")
    return float("nan") if text in _NAN else text


def read(text: str, place: Place, path: str = "") -> tuple[Node | None, list[Problem]]:
    """Reads one document. `place` is its first line, or a place without lines; `path` its own key.

    The node is None when the text cannot be read to its end; otherwise each part that was refused is BAD.
    """
    reader = _Reader(place, path)
    try:
        return reader.document(text), reader.problems
    except _Stop:
        return None, reader.problems
    except yaml.MarkedYAMLError as error:
        reader.syntax(error)
    except Exception as error:  # crafted text makes PyYAML raise nearly anything: ValueError, RecursionError ...
        reader.report(reader.here(), path, f"not valid YAML: {clean(str(error)) or type(error).__name__}")
    return None, reader.problems


def wrap(value: Any, place: Place) -> tuple[Node, list[Problem]]:
    """Plain Python values as nodes, refusing what YAML could not have said."""
    reader = _Reader(place, "")
    return reader.wrap(value, "", ()), reader.problems


class _Stop(Exception):
    """Nothing more can be read; the reason is reported."""


class _Reader:
    def __init__(self, place: Place, path: str):
        self.start, self.path, self.problems, self.values = place, path, [], 0
        self.loader: Any = None
        self.lines = 1

    def report(self, place: Place, path: str, message: str) -> None:
        self.problems.append(Problem(place, clean(path), message))

    def line(self, line: int) -> Place:
        """The place of a line counted from 0."""
        return self.start if self.start.line is None else Place(self.start.source, min(line, self.lines - 1) + 1)

    def here(self) -> Place:
        return self.start if self.loader is None else self.line(self.loader.line)

    def syntax(self, error: yaml.MarkedYAMLError) -> None:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(clean(part) for part in (error.context, error.problem) if part)
        if "'\\t'" in message:
            message += "; indent with spaces, not tabs"
        self.report(self.start if mark is None else self.line(mark.line), self.path, f"not valid YAML: {message}")

    def document(self, text: str) -> Node:
        self.lines = max(len(text.splitlines()), 1)
        if bad := _CONTROL.search(text):
            place = self.line(len((text[: bad.start()] + ".").splitlines()) - 1)
            self.report(place, self.path, f"control character U+{ord(bad[0]):04X}; expected text")
            raise _Stop
        self.loader = yaml.SafeLoader(text)
        self.loader.get_event()  # the stream's start
        if self.loader.check_event(yaml.StreamEndEvent):
            return Node(None, self.start, self.path)
        self.loader.get_event()  # the document's start
        node = self.node(self.loader.get_event(), self.path, self.start, 0)
        self.loader.get_event()  # the document's end
        if not self.loader.check_event(yaml.StreamEndEvent):
            place = self.line(self.loader.peek_event().start_mark.line)
            self.report(place, self.path, "a second document starts here; expected one")
        return node

    def node(self, event: Any, path: str, place: Place, depth: int) -> Node:
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            what = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_VALUES} values"
            self.report(self.line(event.start_mark.line), self.path, f"expected at most {what}")
            raise _Stop
        refused = self.refused(event, path, place)
        if isinstance(event, yaml.SequenceStartEvent):
            value: Any = self.sequence(path, depth)
        elif isinstance(event, yaml.MappingStartEvent):
            value = self.mapping(path, depth)
        else:
            value = BAD if refused else self.scalar(event, path, place)
        return Node(BAD if refused else value, place, path)

    def refused(self, event: Any, path: str, place: Place) -> bool:
        """Reports aliases, anchors and tags; true when the value cannot be used."""
        name = clean(event.anchor or "", 30)
        if isinstance(event, yaml.AliasEvent):
            self.report(place, path, f"aliases are not supported; write the value of *{name} out")
            return True
        if event.anchor is not None:
            self.report(place, path, f"anchors are not supported; remove &{name}")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.report(place, path, f"tags are not supported; remove {clean(tag, 40)}")
        return event.tag is not None

    def scalar(self, event: yaml.ScalarEvent, path: str, place: Place) -> Any:
        if event.implicit[0]:
            try:
                return scalar(event.value)
            except ValueError as error:
                self.report(place, path, str(error))
                return BAD
        return self.text(event.value, path, place)

    def text(self, value: str, path: str, place: Place) -> Any:
        if bad := _CONTROL.search(value):
            self.report(place, path, f"control character U+{ord(bad[0]):04X}; expected text")
        return BAD if bad else value

    def sequence(self, path: str, depth: int) -> Any:
        items = []
        while not isinstance(event := self.loader.get_event(), yaml.SequenceEndEvent):
            place = self.line(event.start_mark.line)
            items.append(self.node(event, f"{path}[{len(items)}]", place, depth + 1))
        return BAD if any(item.value is BAD for item in items) else items

    def mapping(self, path: str, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while not isinstance(event := self.loader.get_event(), yaml.MappingEndEvent):
            place = self.line(event.start_mark.line)
            before = len(self.problems)
            key = self.node(event, path, place, depth + 1).value
            inner = f"{path}.{key}" if path and isinstance(key, str) else key if isinstance(key, str) else path
            child = self.node(self.loader.get_event(), inner, place, depth + 1)
            if key == "<<" and event.implicit[0]:
                self.report(place, path, "merge keys (<<) are not supported; write the keys out")
            elif isinstance(key, str) and key in found:
                line = found[key].place.line
                self.report(place, inner, "given twice" + ("" if line is None else f"; first on line {line}"))
            elif isinstance(key, str):
                found[key] = child
            elif len(self.problems) == before:
                what = "a list" if isinstance(key, list) else show(key)
                hint = "" if isinstance(key, list | dict) else "; put quotes around it"
                self.report(place, path, f"expected a key that is text, got {what}{hint}")
        return found

    def wrap(self, value: Any, path: str, above: tuple[int, ...]) -> Node:
        place = self.start
        if id(value) in above or len(above) > MAX_DEPTH:
            self.report(place, path, f"expected at most {MAX_DEPTH} levels")
            return Node(BAD, place, path)
        above = (*above, id(value))
        if isinstance(value, Mapping):
            found: dict[str, Node] = {}
            for key, child in value.items():
                if not isinstance(key, str) or self.text(key, path, place) is BAD:
                    self.report(place, path, f"expected a key that is text, got {show(key)}")
                    continue
                found[str(key)] = self.wrap(child, f"{path}.{key}" if path else str(key), above)
            return Node(found, place, path)
        if isinstance(value, list | tuple):
            items = [self.wrap(item, f"{path}[{index}]", above) for index, item in enumerate(value)]
            return Node(BAD if any(item.value is BAD for item in items) else items, place, path)
        if isinstance(value, str):
            return Node(self.text(str(value), path, place), place, path)
        if value is None or isinstance(value, bool):
            return Node(value, place, path)
        if isinstance(value, float):  # numpy's float64 too
            return Node(float(value), place, path)
        if isinstance(value, int) and fits(value):
            return Node(int(value), place, path)
        what = "a number beyond 64 bits" if isinstance(value, int) else clean(type(value).__name__)
        self.report(place, path, f"expected a plain value, got {what}")
        return Node(BAD, place, path)
