"""Layers of settings: what the file, the command line, each variant and each point of a sweep sets.

A layer maps the dotted keys of the schema to nodes, however the keys were written. A section set to an empty mapping
stays in its layer as that key: it takes away what the layers below set in it.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any

from pydantic import ValidationError

from .fields import FIELDS, FIXED, SECTIONS, SHORT, SPECIAL, did_you_mean, mismatch, not_a_mapping, unknown
from .schema import RunConfig
from .yaml import BAD, Node, Place, Problem, clean

Settings = dict[str, Node]

_RIVALS = {"data.path": "data.corpus", "data.corpus": "data.path"}  # a config has one of them
_CONTENTS = {"variants": "names and their overrides", "expect": "variants and their results"}
_OVERRIDES, _SWEPT = "overrides", "keys and their values"  # of a variant and of a sweep
COMMAND_LINE = Place("command line")


def settings(node: Node, problems: list[Problem], of: str = "keys") -> Settings:
    """The settings of a mapping of nested or dotted keys; those that the schema does not have go to `problems`.

    `of`: the contents of the mapping, in a message; variants and sweeps cannot set what all of them share.
    """
    layer: Settings = {}
    for key, leaf in _leaves(mapping(node, problems, of)):
        if of != "keys" and (first := key.partition(".")[0]) in FIXED:
            problems.append(leaf.problem(f"variants and sweeps cannot set {first}"))
        elif key in layer:
            problems.append(leaf.repeated(layer[key].place))
        elif not key or key not in (*FIELDS, *SECTIONS):
            problems.append(leaf.problem(unknown(key)))
        elif key in FIELDS or leaf.value is BAD or (leaf.value == {} and of != _SWEPT):
            layer[key] = leaf
        elif of == _SWEPT:
            example = next(inner for inner in FIELDS if inner.startswith(f"{key}."))
            problems.append(leaf.problem(f"{key} is a section; sweep its keys, such as {example}"))
        else:
            problems.append(leaf.problem(not_a_mapping(leaf.plain, key=key)))
    return layer


def _leaves(nodes: dict[str, Node], prefix: str = "") -> Iterator[tuple[str, Node]]:
    for part, child in nodes.items():
        key = prefix + part
        if key in SECTIONS and child.value and isinstance(child.value, dict):
            yield from _leaves(child.value, f"{key}.")
        else:
            yield f"{key}.{SHORT[key]}" if key in SHORT and child.value != {} else key, child


def mapping(node: Node, problems: list[Problem], of: str) -> dict[str, Node]:
    """The nodes of a mapping; empty for anything else, which is a problem."""
    if isinstance(node.value, dict):
        return node.value
    if node.value is not BAD:
        problems.append(node.problem(not_a_mapping(node.plain, of)))
    return {}


def merged(below: Settings, above: Settings, kept: Place | None = None) -> Settings:
    """The settings of both layers; those of `above` win.

    An empty section in `above` drops all that is below in it. So does a new rule, and one of two rivals drops the other
    one, but for what was set at the place `kept`.
    """
    emptied = tuple(f"{section}." for section in SECTIONS if section in above)
    ruled = tuple(f"{section}." for section, head in SHORT.items() if f"{section}.{head}" in above)
    rivals = {_RIVALS.get(key) for key, node in above.items() if node.value is not None}
    below = {key: node for key, node in below.items() if not key.startswith(emptied)}
    dropped = {key for key, node in below.items() if node.place != kept and (key.startswith(ruled) or key in rivals)}
    return {key: node for key, node in below.items() if key not in dropped} | above


def config_of(layer: Settings) -> RunConfig:
    """The config of a layer; refused values count as not set. Raises pydantic's ValidationError."""
    tree: dict[str, Any] = {"name": "unnamed"}
    for key, node in layer.items():
        if key in FIELDS and (value := node.plain) is not BAD:
            *sections, last = key.split(".")
            reduce(lambda at, section: at.setdefault(section, {}), sections, tree)[last] = value
    return RunConfig.model_validate(tree)


def key_problems(layer: Settings) -> list[Problem]:
    """The problems of the single values of a layer."""
    try:
        config_of(layer)
    except ValidationError as error:
        wrong: dict[str, None] = {}
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            parts = [str(part) for part in item["loc"]]  # what follows the key is inside its value
            wrong[next(key for n in range(len(parts)) if (key := ".".join(parts[: n + 1])) in FIELDS)] = None
        return [layer[key].problem(mismatch(key, layer[key].plain)) for key in wrong]
    return []


class Document:
    """A config as written, its values not checked yet. Problems with its structure gather in `problems`."""

    def __init__(self, root: dict[str, Node], source: Place, problems: list[Problem]):
        self.problems = problems
        self.commands: Settings = {}
        self.sweep: Settings = {}
        # By the name of a variant, where it is set and what: keys; tags and their expected values.
        self.named: dict[str, dict[str, tuple[Place, Settings]]] = {"variants": {}, "expect": {}}
        rest = {key: child for key, child in root.items() if key not in SPECIAL}
        self.file = settings(Node(rest, source, ""), problems)
        for key in SPECIAL:
            if key in root:
                self.assign(key, root[key])

    def assign(self, key: str, node: Node) -> None:
        """Sets one dotted key. A mapping for a section sets the keys in it; an empty one resets the section."""
        first, _, rest = key.partition(".")
        if first not in SPECIAL:
            layer = settings(Node({key: node}, node.place, ""), self.problems)
            self.commands = merged(self.commands, layer, COMMAND_LINE)
        elif first == "sweep":
            inner = Node({rest: node}, node.place, "sweep") if rest else node
            layer = settings(inner, self.problems, _SWEPT)
            self.sweep = self.sweep | layer if rest else layer
        elif not rest:
            children = mapping(node, self.problems, _CONTENTS[first]).items()
            self.named[first] = {name: (child.place, self._layer(first, child)) for name, child in children}
        else:
            named = self.named[first]  # names may hold dots: the longest wins
            name = max((n for n in named if f"{rest}.".startswith(f"{n}.")), key=len, default=rest.partition(".")[0])
            if not (inner := rest[len(name) + 1 :]):
                named[name] = node.place, self._layer(first, node)
            elif first == "variants" and name not in named:
                near = did_you_mean(name, named) or f"; variants.{name}={{}} adds it"
                self.problems.append(node.problem(f"no such variant{clean(near)}"))
            else:
                place, old = named.get(name, (node.place, {}))
                layer = merged(old, self._layer(first, Node({inner: node}, node.place, "")), COMMAND_LINE)
                named[name] = (place if first == "variants" else node.place), layer

    def _layer(self, first: str, node: Node) -> Settings:
        if first == "expect":
            return mapping(node, self.problems, "tags to [low, high]")
        return settings(node, self.problems, _OVERRIDES)
