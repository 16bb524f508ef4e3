"""Reads an experiment from YAML, and says everything that is wrong with it at once, each thing in one line."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.errors import DataError
from data.files import beside, content_of

from ..errors import UserError
from . import checks
from .expand import expand, expectations
from .fields import related, validated
from .names import safe, unsafe
from .overrides import Draft, merged
from .schema import RunConfig
from .yaml12 import BAD, Node, Place, Problem, clean, read, scalar, show, wrap

__all__ = ["ConfigError", "Experiment", "Problem", "Variant", "flatten", "from_mapping", "load", "to_yaml"]

MAX_BYTES = 2**18  # a file is refused within a second, whatever is in it
MAX_LINES = 50  # of an error message; `problems` has them all
_COMMAND_LINE = Place("command line")
_YAML_11 = re.compile(r"y|n|yes|no|on|off", re.IGNORECASE)  # booleans to older readers


class ConfigError(UserError):
    """A config that cannot be used; its text has one line for each problem, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:MAX_LINES]]
        left = len(self.problems) - len(lines)
        super().__init__("\n".join([*lines, f"and {left} more"] if left else lines), exit_code=2)


@dataclass(frozen=True)
class Variant:
    """One run: its name (a folder under runs_dir/name) and its config, with data.seed filled in."""

    name: str
    config: RunConfig
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)  # of the keys that are set

    def problem(self, message: str) -> Problem:
        """What was found wrong later on, where its key was written. `message` begins with that key and a colon."""
        place, member = self.place(message), f"variant {clean(self.name)}"
        if place is None:
            return Problem(Place(member), "", message)
        key, _, what = message.partition(": ")
        return Problem(place, key, f"{what} ({member})")

    def place(self, message: str) -> Place | None:
        """Where the key was written that `message` begins with; None of one that was not, or no key."""
        return self.places.get(message.partition(": ")[0])

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Gives DataErrors and UserErrors from within that begin with a key the place where the key was written."""
        try:
            yield
        except (DataError, UserError) as error:
            code = error.exit_code if isinstance(error, UserError) else 2
            raise UserError(str(error), self.place(str(error)), code) from None


@dataclass(frozen=True)
class Experiment:
    """The variants in the order of the file; `expect` is variant -> tag -> [low, high] (for `verdict`, a state).

    A variant of the file that a sweep multiplied passes its expectations on to each of its points.
    """

    name: str
    variants: tuple[Variant, ...]
    expect: dict[str, dict[str, Any]]


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Experiment:
    """Reads a YAML file, then sets `key=value` overrides on it: `optimizer.lr=3e-4`, `sweep.seed=[0, 1]`.

    An override changes what the file says outside `variants:`, so a variant that sets the same key still wins;
    `variants.NAME.model.layers=4` changes a variant, `variants={}` and `sweep={}` take all of them away.

    Raises:
        ConfigError: the file cannot be read, or the config cannot be used; all problems at once.
    """
    source = clean(os.fsdecode(path), 1000)
    root, problems = read(_text(path, source), Place(source, 1))
    draft = _draft(root, problems, source)
    for override in overrides:
        _override(draft, override)
    return _finished(draft)


def from_mapping(mapping: Mapping[str, Any], source: str = "mapping") -> Experiment:
    """The experiment that a file with this content would give.

    Raises:
        ConfigError: the config cannot be used; all problems at once, at `source`.
    """
    root, problems = wrap(mapping, Place(clean(source)))
    return _finished(_draft(root, problems, clean(source)))


def flatten(config: RunConfig) -> dict[str, object]:
    """Dotted key -> bool, int, float, str or None, in the order of the schema; anything else becomes its YAML text."""
    scalars = bool | int | float | str | None
    return {key: value if isinstance(value, scalars) else _yaml(value) for key, value in _leaves(config)}


def to_yaml(config: RunConfig) -> str:
    """YAML that `load` reads back as one variant with the same config."""
    return "".join(_lines(config.model_dump(), ""))


def _text(path: str | os.PathLike[str], source: str) -> str:
    """The text of a file; whatever prevents that is a ConfigError."""

    def refuse(message: str, line: int | None = None) -> ConfigError:
        return ConfigError([Problem(Place(source, line), "", message)])

    try:
        content = content_of(path, MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise refuse(f"no such file{_similar(path)}") from None
    except OSError as error:
        raise refuse(f"cannot be read: {clean(error.strerror or type(error).__name__)}") from None
    except ValueError as error:
        message = clean(str(error))
        raise refuse(message if message.startswith("expected") else f"cannot be read: {message}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Codecs that strip a byte order mark count from behind it.
        offset = error.start + len(content) - len(error.object)
        what = f"expected UTF-8 text, got byte 0x{content[offset]:02x} at offset {offset}"
        raise refuse(what, content.count(b"\n", 0, offset) + 1) from None


def _similar(path: str | os.PathLike[str]) -> str:
    """`; did you mean FILE?` for a file of the same folder."""
    found = beside(Path(os.fsdecode(path)), lambda entry: entry.suffix in (".yaml", ".yml"))
    return f"; did you mean {clean(str(found), 1000)}?" if found else ""


def _draft(root: Node | None, problems: list[Problem], source: str) -> Draft:
    if root is None or root.value is BAD:
        raise ConfigError(problems)
    if not isinstance(root.value, dict):
        got = "nothing" if root.value is None else show(root.plain)
        raise ConfigError([*problems, Problem(root.place, "", f"expected a mapping of keys, got {got}")])
    draft = Draft(Place(source), problems=problems)
    draft.fill(root)
    return draft


def _override(draft: Draft, override: str) -> None:
    """Sets one `key=value` of the command line."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(part.strip() == part != "" for part in key.split(".")):
        message = f"expected key=value, such as optimizer.lr=3e-4, got {show(override)}"
        draft.problems.append(Problem(_COMMAND_LINE, "", message))
        return
    node, problems = read(text, _COMMAND_LINE, key)
    draft.problems.extend(problems)
    draft.assign(key, node or Node(BAD, _COMMAND_LINE, key))


def _finished(draft: Draft) -> Experiment:
    """Checks values and what holds between them, for the base and for every variant."""
    points = expand(draft)
    expect = expectations(draft, points)
    base, problems, bad = validated(draft.base, draft.source)
    if "name" in draft.base and "name" not in bad and not safe(base.name):
        draft.report(draft.base["name"], unsafe(base.name))
    doubtful = draft.doubtful
    always = {found[:2] for found in checks.findings(base, bad | doubtful)}
    between: dict[Problem, list[str]] = {}  # and the variants it is found in, where that is not said by its place
    variants = []
    for point in points:
        keys = merged(draft.base, point.keys)
        config, wrong, bad = validated(keys, draft.source)
        problems.extend(wrong)
        for found in checks.findings(config, bad | doubtful):
            problem, key = _blame(found, draft, point.keys if found[:2] not in always else {})
            names = between.setdefault(problem, [])
            if key is not None:
                names.append(point.name if key in draft.sweep else point.variant)
        if config.data.seed is None:
            config = config.model_copy(update={"data": config.data.model_copy(update={"seed": config.seed})})
        variants.append(Variant(point.name, config, {key: node.place for key, node in keys.items()}))
    for point, variant in zip(points[1:], variants[1:], strict=True):
        for key, message in checks.mixed(variants[0].config, variant.config):
            node = next((p.keys[key] for p in (point, points[0]) if key in p.keys), None)
            problems.append(Problem(point.place if node is None else node.place, key, message))
    problems += [_named(problem, names) for problem, names in between.items()]
    problems += draft.problems
    if problems:
        unique = dict.fromkeys(problems)
        raise ConfigError(sorted(unique, key=lambda p: (p.place.source != draft.source.source, p.place.line or 0)))
    return Experiment(base.name, tuple(variants), expect)


def _blame(found: checks.Finding, draft: Draft, keys: Mapping[str, Node]) -> tuple[Problem, str | None]:
    """Where to report a finding: at its own key, else at a key that led to it, first among `keys`, then in the base.

    With it the key among `keys` that led to it, when only the variant's name tells which value that was.
    """
    for nodes in (keys, draft.base):
        read = [key for key in nodes if related(key, found.reads)]
        if read:
            key = min(read, key=lambda key: (key != found.key, key.rpartition(".")[2] not in found.message))
            place, own = nodes[key].place, key == found.key
            problem = Problem(place, nodes[key].path if own else found.key, found.message)
            return problem, None if own or nodes is draft.base else key
    return Problem(draft.source, found.key, found.message), None


def _named(problem: Problem, variants: Sequence[str]) -> Problem:
    names = list(dict.fromkeys(variants))
    if not names:
        return problem
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Problem(problem.place, problem.key, f"{problem.message} (variant {clean(names[0])}{more})")


def _leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _lines(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{_yaml(key)}:\n"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{_yaml(key)}: {_yaml(value)}\n"


def _yaml(value: Any) -> str:
    """A value on one line, readable by YAML 1.1 and 1.2 alike."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    if isinstance(value, float):
        return re.sub(r"^(-?[0-9]+)e", r"\1.0e", repr(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(item)}" for key, item in value.items()) + "}"
    if not isinstance(value, str):
        return show(value)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and scalar(value) is value and not _YAML_11.fullmatch(value):
        return value
    return "".join(['"', *(_escaped(character) for character in value), '"'])


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"
