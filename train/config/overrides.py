"""An experiment as written: its keys by dotted name, gathered from a file and then from the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .fields import FIELDS, SECTIONS, SHORT, SPECIAL, did_you_mean, related, unknown
from .yaml12 import BAD, Node, Place, Problem, clean, show

FIXED = ("name", "runs_dir", *SPECIAL)  # what all variants of an experiment share
RIVALS = {"data.path": "data.corpus", "data.corpus": "data.path"}  # of which a config has one


@dataclass(frozen=True)
class Overrides:
    """What a variant sets: its nodes by dotted key; `variant` is its name before the sweep added to it."""

    name: str
    variant: str
    place: Place
    keys: Mapping[str, Node]


@dataclass
class Draft:
    """Every key in it exists; values are not checked yet. What is wrong goes to `problems`."""

    source: Place
    base: dict[str, Node] = field(default_factory=dict)
    variants: dict[str, Overrides] = field(default_factory=dict)
    sweep: dict[str, Node] = field(default_factory=dict)
    expect: dict[str, Node] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    doubts: set[str] = field(default_factory=set)  # keys a wrong one in a variant may have meant
    base_doubts: set[str] = field(default_factory=set)  # and in the base
    reshaped: bool = False  # variants or sweep were changed after the file was read

    def report(self, node: Node, message: str) -> None:
        self.problems.append(Problem(node.place, clean(node.path), message))

    @property
    def doubtful(self) -> set[str]:
        """The keys whose value may not be what was meant; in the base, one that is written down is meant."""
        default = {key for key in FIELDS if key not in self.base and related(key, self.base_doubts)}
        return default | {key for key in FIELDS if related(key, self.doubts)}

    def fill(self, root: Node) -> None:
        """Takes a whole file."""
        special = {key: child for key, child in root.value.items() if key in SPECIAL}
        rest = {key: child for key, child in root.value.items() if key not in SPECIAL}
        self.base = self.spread(Node(rest, root.place, root.path))
        for key, child in special.items():
            self.assign(key, child)
        self.reshaped = False

    def assign(self, key: str, node: Node) -> None:
        """Sets one dotted key. A mapping for a section sets the keys it names and leaves the others."""
        first, _, rest = key.partition(".")
        self.reshaped = self.reshaped or first in ("variants", "sweep")
        if first not in SPECIAL:
            above = self.spread(Node({key: node}, node.place, ""))
            self._drop_rivals(above)
            same = {name: old for name, old in self.base.items() if old.place.source == node.place.source}
            self.base = {**merged(self.base, above), **same, **above}
        elif first == "sweep" and rest:
            self.sweep.update(self.spread(Node({rest: node}, node.place, "sweep"), fixed=True))
        elif first == "sweep":
            self.sweep = self.spread(node, fixed=True, of="keys and their values")
        elif first == "variants" and rest:
            self._assign_variant(rest, node)
        elif first == "variants":
            named = self._mapping(node, "names and their overrides").items()
            self.variants = {name: self._variant(name, child) for name, child in named}
        elif rest:
            self._assign_expect(rest, node)
        else:
            self.expect = dict(self._mapping(node, "variants and their results"))

    def _drop_rivals(self, above: Mapping[str, Node]) -> None:
        """What the command line sets takes the place of what the file says in its stead."""
        for key, given in above.items():
            old = self.base.get(RIVALS.get(key, ""))
            if old and given.value is not None and old.place.source != given.place.source:
                del self.base[RIVALS[key]]

    def _assign_variant(self, rest: str, node: Node) -> None:
        name, key = split(rest, self.variants)
        if name not in self.variants and key:
            self.report(node, f"no such variant{did_you_mean(name, self.variants)}")
        elif key:
            old = self.variants[name]
            keys = self.spread(Node({key: node}, node.place, f"variants.{name}"), fixed=True)
            self.variants[name] = Overrides(name, name, old.place, merged(old.keys, keys))
        else:
            self.variants[name] = self._variant(name, node)

    def _assign_expect(self, rest: str, node: Node) -> None:
        name, tag = split(rest, self.expect)
        if tag:
            old = self.expect.get(name)
            tags = old.value if old is not None and isinstance(old.value, dict) else {}
            node = Node({**tags, tag: node}, node.place, f"expect.{name}")
        self.expect[name] = node

    def _variant(self, name: str, node: Node) -> Overrides:
        return Overrides(name, name, node.place, self.spread(node, fixed=True, of="overrides"))

    def _mapping(self, node: Node, of: str) -> dict[str, Node]:
        if isinstance(node.value, dict):
            return node.value
        if node.value is not BAD:
            self.report(node, f"expected a mapping of {of}, got {show(node.plain)}")
        return {}

    def spread(self, node: Node, prefix: str = "", fixed: bool = False, of: str = "keys") -> dict[str, Node]:
        """The nodes of a mapping, nested or dotted, by dotted key; `fixed` refuses what variants share."""
        doubts = self.doubts if fixed else self.base_doubts
        if not isinstance(node.value, dict):
            doubts.add(prefix.rstrip("."))
        found: dict[str, Node] = {}
        for part, child in self._mapping(node, of).items():
            key = prefix + part
            inner: dict[str, Node] = {}
            if fixed and key.partition(".")[0] in FIXED:
                self.report(child, f"variants and sweeps cannot set {key.partition('.')[0]}")
            elif key in FIELDS:
                inner = {key: child}
            elif key in SECTIONS:
                short = key in SHORT and not isinstance(child.value, dict)
                inner = {f"{key}.{SHORT[key]}": child} if short else self.spread(child, f"{key}.", fixed)
            else:
                message, meant = unknown(key, full="." in part)
                self.report(child, message)
                doubts.add(meant)
            for name, leaf in inner.items():
                if name in found:
                    line = found[name].place.line
                    self.report(leaf, "given twice" + ("" if line is None else f"; first on line {line}"))
                else:
                    found[name] = leaf
        return found


def merged(below: Mapping[str, Node], above: Mapping[str, Node]) -> dict[str, Node]:
    """The keys of both, those of `above` first; where it names a rule anew, options of the rule below are dropped."""
    renamed = [f"{section}." for section, head in SHORT.items() if f"{section}.{head}" in above]
    kept = {key: node for key, node in below.items() if not any(key.startswith(prefix) for prefix in renamed)}
    return {**kept, **above}


def split(rest: str, names: Mapping[str, object]) -> tuple[str, str]:
    """`with.model.layers` as a name and a key; names may hold dots, so the longest known one is taken."""
    name = max((n for n in names if f"{rest}.".startswith(f"{n}.")), key=len, default=rest.partition(".")[0])
    return name, rest[len(name) + 1 :]
