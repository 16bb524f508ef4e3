"""Layers of settings: what the file, the command line, each variant and each point of a sweep sets.

A layer maps dotted keys to nodes, however the keys were written; layers are checked alone and merged. A section set to
an empty mapping stays in its layer as that key: it takes away what the layers below set in it.
"""

from pydantic import ValidationError

from .fields import FIELDS, FIXED, SECTIONS, SHORT, SPECIAL, did_you_mean, exact, mismatch, not_a_section, unknown
from .schema import RunConfig
from .yaml import BAD, Node, Place, Problem, clean, show

Settings = dict[str, Node]

_RIVALS = {"data.path": "data.corpus", "data.corpus": "data.path"}  # a config has one of them


def settings(node: Node, problems: list[Problem], of: str = "keys", fixed: bool = False, prefix: str = "") -> Settings:
    """The settings of a mapping of nested or dotted keys; what is wrong with its structure goes to `problems`.

    Args:
        of: the contents of the mapping, in a message.
        fixed: refuses the keys that all variants share.
        prefix: the section of the mapping, with a dot.
    """
    layer: Settings = {}
    for part, child in mapping(node, problems, of).items():
        key = prefix + part
        inner = {f"{key}.{SHORT[key]}" if key in SHORT else key: child}
        if key and key in SECTIONS and isinstance(child.value, dict):
            inner = settings(child, problems, prefix=f"{key}.") or {key: child}
        if fixed and (first := key.partition(".")[0]) in FIXED:
            problems.append(child.problem(f"variants and sweeps cannot set {first}"))
            inner = {}
        for name, leaf in inner.items():
            if name in layer:
                problems.append(leaf.repeated(layer[name].place))
            layer.setdefault(name, leaf)
    return layer


def mapping(node: Node, problems: list[Problem], of: str) -> dict[str, Node]:
    """The nodes of a mapping; empty for anything else, which is a problem."""
    if isinstance(node.value, dict):
        return node.value
    if node.value is not BAD:
        items = node.plain if isinstance(node.value, list) else []
        hint = "; leave out the dashes" if any(isinstance(item, dict) for item in items) else ""
        if isinstance(node.value, str) and "=" in node.value:
            hint = "; write key: value"
        got = "nothing; {} is an empty one" if node.value is None else show(node.plain)
        problems.append(node.problem(f"expected a mapping of {of}, got {got}{hint}"))
    return {}


def merged(below: Settings, above: Settings) -> Settings:
    """The settings of both layers; those of `above` win.

    A rule in `above` drops all options of the rule below, and one of two rivals in it the other one.
    """
    ruled = tuple(f"{section}." for section, head in SHORT.items() if f"{section}.{head}" in above)
    rivals = {_RIVALS.get(key) for key, node in above.items() if node.value is not None}
    kept = {key: node for key, node in below.items() if not key.startswith(ruled) and key not in rivals}
    return later(kept, above)


def later(before: Settings, layer: Settings) -> Settings:
    """The settings of both layers; a section that `layer` empties starts over."""
    emptied = tuple(f"{key}." for key in layer if key in SECTIONS)
    return {key: node for key, node in before.items() if not key.startswith(emptied)} | layer


def config_of(layer: Settings) -> RunConfig:
    """The config of a layer; refused values and unknown keys count as not set. Raises pydantic's ValidationError."""
    tree: dict = {"name": "unnamed"}
    for key, node in layer.items():
        if key in FIELDS and (value := node.plain) is not BAD:
            *sections, last = key.split(".")
            at = tree
            for section in sections:
                at = at.setdefault(section, {})
            at[last] = value
    return RunConfig.model_validate(tree)


def key_problems(layer: Settings) -> list[Problem]:
    """The problems of the single keys of a layer."""
    values = {key: node.plain for key, node in layer.items()}
    wrong = [key for key, value in values.items() if key in FIELDS and not exact(FIELDS[key], value)]
    try:
        config_of(layer)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            parts = [str(part) for part in item["loc"]]  # what follows the key is inside its value
            wrong.append(next(key for n in range(len(parts)) if (key := ".".join(parts[: n + 1])) in FIELDS))
    messages = {key: mismatch(key, values[key]) for key in wrong}
    for key, value in values.items():
        if key not in FIELDS and key not in SECTIONS:
            messages[key] = unknown(key)
        elif key in SECTIONS and value not in (BAD, {}):
            messages[key] = not_a_section(key, value)
    return [layer[key].problem(message) for key, message in messages.items()]


class Draft:
    """A config as written: its layers, values not checked yet. Problems gather in `problems`."""

    _CONTENTS = {"variants": "names and their overrides", "expect": "variants and their results"}

    def __init__(self, root: dict[str, Node], source: Place, problems: list[Problem]):
        self.problems = problems
        self.sweep: Settings = {}
        self.commands: Settings = {}
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
            self.commands = later(self.commands, settings(Node({key: node}, node.place, ""), self.problems))
        elif first == "sweep":
            inner = Node({rest: node}, node.place, "sweep") if rest else node
            layer = settings(inner, self.problems, "keys and their values", fixed=True)
            self.sweep = self.sweep | layer if rest else layer
        elif not rest:
            self.named[first].clear()
            for name, child in mapping(node, self.problems, self._CONTENTS[first]).items():
                self.named[first][name] = child.place, self._layer(first, child)
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
                layer = merged(old, self._layer(first, Node({inner: node}, node.place, "")))
                named[name] = (place if first == "variants" else node.place), layer

    def _layer(self, first: str, node: Node) -> Settings:
        if first == "expect":
            return mapping(node, self.problems, "tags to [low, high]")
        return settings(node, self.problems, "overrides", fixed=True)
