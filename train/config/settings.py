"""Layers of settings: what the file, the command line, each variant and each point of a sweep sets.

A layer is a tree of sections with nodes for leaves, however the keys were written. A section set to an empty mapping
has it as its entry "": it takes away what the layers below set in it.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import Any, TypeAlias

from pydantic import ValidationError

from .fields import FIELDS, FIXED, SECTIONS, SHORT, SPECIAL, did_you_mean, mismatch, not_a_mapping, unknown
from .schema import RunConfig
from .yaml import BAD, Node, Place, Problem, clean

Settings: TypeAlias = Mapping[str, "Node | Settings"]

_RIVALS = {"data.path": "data.corpus", "data.corpus": "data.path"}  # a config has one of them
_CONTENTS = {"variants": "names and their overrides", "expect": "variants and their results"}
_OVERRIDES, _SWEPT = "overrides", "keys and their values"  # of a variant and of a sweep
COMMAND_LINE = Place("command line")


def settings(node: Node, problems: list[Problem], of: str = "keys") -> Iterator[tuple[str, Node]]:
    """The nodes of a mapping of nested or dotted keys, with their dotted keys; what is wrong goes to `problems`.

    `of`: the contents of the mapping, in a message; variants and sweeps cannot set what all of them share.
    """
    first_places: dict[str, Place] = {}
    for key, leaf in _leaves(mapping(node, problems, of)):
        if of != "keys" and (first := key.partition(".")[0]) in FIXED:
            problems.append(leaf.problem(f"variants and sweeps cannot set {first}"))
        elif key in first_places:
            problems.append(leaf.repeated(first_places[key]))
        elif not key or key not in (*FIELDS, *SECTIONS):
            problems.append(leaf.problem(unknown(key)))
        elif key in FIELDS or leaf.value is BAD or (leaf.value == {} and of != _SWEPT):
            first_places[key] = leaf.place
            yield key, leaf
        elif of == _SWEPT:
            example = next(inner for inner in FIELDS if inner.startswith(f"{key}."))
            problems.append(leaf.problem(f"{key} is a section; sweep its keys, such as {example}"))
        else:
            problems.append(leaf.problem(not_a_mapping(leaf.plain, key=key)))


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


def tree(nodes: Iterable[tuple[str, Node]]) -> Settings:
    """The layer of nodes with their dotted keys."""
    root: dict[str, Any] = {}
    for key, node in nodes:
        *sections, last = (f"{key}." if key in SECTIONS else key).split(".")
        reduce(lambda at, section: at.setdefault(section, {}), sections, root)[last] = node
    return root


def flat(layer: Settings, prefix: str = "") -> dict[str, Node]:
    """The nodes of a layer by dotted key; that of an empty section ends with a dot."""
    keys: dict[str, Node] = {}
    for key, child in layer.items():
        keys |= {prefix + key: child} if isinstance(child, Node) else flat(child, f"{prefix}{key}.")
    return keys


def merged(below: Settings, above: Settings, kept: Place | None = None, prefix: str = "") -> Settings:
    """The settings of both layers, section by section; those of `above` win. `prefix`: the section's, in dotted keys.

    An empty section in `above` drops all that is below in it. So does a new rule, and one of two rivals drops the other
    one, but for what was set at the place `kept`.
    """
    if "" in above:
        return above
    ruled = SHORT.get(prefix[:-1]) in above
    rivals = {_RIVALS.get(prefix + k) for k, new in above.items() if isinstance(new, Node) and new.value is not None}
    both = {
        key: old
        for key, old in below.items()
        if not isinstance(old, Node) or old.place == kept or not (ruled or prefix + key in rivals)
    }
    for key, new in above.items():
        if isinstance(old := both.get(key), Mapping) and isinstance(new, Mapping):
            new = merged(old, new, kept, f"{prefix}{key}.")
        both[key] = new
    return both


def config_of(layer: Settings) -> RunConfig:
    """The config of a layer; refused values count as not set. Raises pydantic's ValidationError."""

    def plain(layer: Settings) -> dict[str, Any]:
        values = ((key, child.plain if isinstance(child, Node) else plain(child)) for key, child in layer.items())
        return {key: value for key, value in values if key and value is not BAD}

    return RunConfig.model_validate({"name": "unnamed", **plain(layer)})


def key_problems(layer: Settings) -> list[Problem]:
    """The problems of the single values of a layer."""
    try:
        config_of(layer)
    except ValidationError as error:
        wrong: dict[str, None] = {}
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            parts = [str(part) for part in item["loc"]]  # what follows the key is inside its value
            wrong[next(key for n in range(len(parts)) if (key := ".".join(parts[: n + 1])) in FIELDS)] = None
        keys = flat(layer)
        return [keys[key].problem(mismatch(key, keys[key].plain)) for key in wrong]
    return []


class Document:
    """A config as written, its values not checked yet. Problems with its structure gather in `problems`."""

    def __init__(self, root: dict[str, Node], source: Place, problems: list[Problem]):
        self.problems = problems
        self.commands: Settings = {}
        self.sweep: dict[str, Node] = {}
        # By the name of a variant, where it is set and what: keys; tags and their expected values.
        self.named: dict[str, dict[str, tuple[Place, Settings]]] = {"variants": {}, "expect": {}}
        rest = {key: child for key, child in root.items() if key not in SPECIAL}
        self.file = tree(settings(Node(rest, source, ""), problems))
        for key in SPECIAL:
            if key in root:
                self.assign(key, root[key])

    def assign(self, key: str, node: Node) -> None:
        """Sets one dotted key. A mapping for a section sets the keys in it; an empty one resets the section."""
        first, _, rest = key.partition(".")
        if first not in SPECIAL:
            layer = settings(Node({key: node}, node.place, ""), self.problems)
            self.commands = merged(self.commands, tree(layer), COMMAND_LINE)
        elif first == "sweep":
            inner = Node({rest: node}, node.place, "sweep") if rest else node
            layer = dict(settings(inner, self.problems, _SWEPT))
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
        return tree(settings(node, self.problems, _OVERRIDES))
