"""Experiments from YAML files and command lines, with all problems of a config reported at once.

The layers of a config (file, command line, variants, points of the sweep) are trees of values and their places. Each is
checked alone by pydantic; if all are clean they are merged, and each variant is held to the rules between keys
(`checks`).
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data import DataError
from data.files import content_of, foreign, similar_path

from ..errors import Failure, UserError
from . import checks
from .fields import FIELDS, did_you_mean, expected
from .overrides import assignments
from .schema import RunConfig, leaves
from .settings import COMMAND_LINE, Document, Settings, config_of, flat, key_problems, mapping, merged
from .variants import Point, grid, indistinct, points, promises
from .yaml import Node, Place, Problem, clean, dump, read

MAX_BYTES = 2**18  # a file is refused within a second, whatever is in it
MAX_LINES = 50  # of an error message; `problems` has them all
_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), _PACKAGE)


class ConfigError(UserError):
    """A config that cannot be used; its text has one line for each problem, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:MAX_LINES]]
        left = len(self.problems) - len(lines)
        super().__init__("\n".join([*lines, f"and {left} more"] if left else lines))


@dataclass(frozen=True)
class Variant:
    """One run: its name (a folder under runs_dir/name) and its config, with data.seed filled in."""

    name: str
    config: RunConfig
    settings: Mapping[str, Node] = field(default_factory=dict, compare=False, repr=False)  # dotted keys that are set
    # Dotted keys whose values differ within the experiment -> variant -> value.
    differences: Mapping[str, Mapping[str, object]] = field(default_factory=dict, compare=False, repr=False)

    @contextmanager
    def placing(self, named: bool = False) -> Iterator[None]:
        """Gives DataErrors and UserErrors from within the place of the key that they begin with, if it is set.

        named: and the variant's name.
        """
        try:
            yield
        except (DataError, UserError) as error:
            node = self.settings.get(str(error).partition(": ")[0])
            kind = Failure if isinstance(error, Failure) else UserError
            member = f" (variant {clean(self.name)})" if named else ""
            raise kind(f"{error}{member}", None if node is None else node.place) from None


@dataclass(frozen=True)
class Experiment:
    """The variants in the order of the file; `expect` is variant -> tag -> [low, high] (for `verdict`, a state).

    A variant of the file that a sweep multiplied passes its expectations on to each of its points. `command` is the
    one that trains them.
    """

    name: str
    variants: tuple[Variant, ...]
    expect: dict[str, dict[str, Any]]
    command: str = field(default="", compare=False)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Experiment:
    """Reads a YAML file, or a shipped config by its bare name, then sets `key=value` overrides on it.

    `optimizer.lr=3e-4` changes the file outside `variants:`, so a variant that sets the same key still wins;
    `variants.NAME.model.layers=4` changes a variant, `variants={}` and `sweep={}` take all of them away.

    Raises:
        ConfigError: the file cannot be read, or the config cannot be used; all problems at once.
    """
    problems: list[Problem] = []
    place, text = _text(path)
    experiment = _experiment(place, read(text, replace(place, line=1), problems), problems, overrides)
    return replace(experiment, command=shlex.join(["deltaflow", "train", os.fsdecode(path), *overrides]))


def from_mapping(mapping: Mapping[str, Any], source: str = "mapping") -> Experiment:
    """The experiment that a file with this content would give.

    Raises:
        ConfigError: the config cannot be used; all problems at once, at `source`.
    """
    place = Place(clean(source))
    try:
        text = dump(mapping)
    except RecursionError:
        raise ConfigError([Problem(place, "", "expected values that do not hold themselves")]) from None
    problems: list[Problem] = []
    return _experiment(place, read(text, place, problems), problems)


def flatten(config: RunConfig) -> dict[str, object]:
    """Dotted key -> bool, int, float, str or None, in the order of the schema; anything else becomes its YAML text."""
    return {
        key: value if isinstance(value, bool | int | float | str | None) else dump(value)
        for key, value in leaves(config)
    }


def to_yaml(config: RunConfig) -> str:
    """YAML that `load` reads back as one variant with the same config."""

    def lines(values: Mapping[str, Any], indent: str) -> Iterator[str]:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                yield f"{indent}{dump(key)}:\n"
                yield from lines(value, f"{indent}  ")
            else:
                yield f"{indent}{dump(key)}: {dump(value)}\n"

    return "".join(lines(config.model_dump(), ""))


def _text(path: str | os.PathLike[str]) -> tuple[Place, str]:
    """The place and the text of a file, or of the shipped config with a bare name that no file has."""
    name, where, line = os.fsdecode(path), Path(os.fsdecode(path)), None
    bare = re.fullmatch(r"[\w-]+", name) is not None
    if bare and not os.path.lexists(name) and os.path.isfile(SHIPPED / f"{name}.yaml"):
        where = SHIPPED / f"{name}.yaml"
    try:
        text = content_of(where if bare else path, MAX_BYTES).decode().removeprefix("\ufeff")
        return Place(clean(os.fspath(where) if bare else name, 1000)), text
    except (FileNotFoundError, NotADirectoryError):
        shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        near = Path(f"{name}.yaml")
        if not os.path.isfile(near):
            near = similar_path(where, lambda entry: entry.suffix in (".yaml", ".yml") and entry.is_file())
        if where.stem in shipped:
            hint = f"; the shipped config is called {where.stem}, without a folder and without .yaml"
        elif "=" in where.name:
            hint = f"; a config comes first: CONFIG {clean(name)}"
        elif near:
            hint = f"; did you mean {clean(str(near), 1000)}?"
        else:
            hint = (did_you_mean(name, shipped) or f"; shipped configs are {', '.join(shipped)}") if bare else ""
        message = foreign(name) or f"no such file{' or shipped config' if bare else ''}{hint}"
    except OSError as error:
        message = f"cannot be read: {clean(error.strerror or type(error).__name__)}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at offset {error.start}"
    except ValueError as error:
        message = clean(str(error))
        message = message if message.startswith("expected") else f"cannot be read: {message}"
        configs = (path for depth in ("", "*/", "*/*/") for path in where.glob(f"{depth}config.yaml"))
        if where.is_dir() and (config := next(configs, None)) is not None:
            resumed = "which are resumed by their own config"
            message = f"expected a config, such as {config}, got a folder of runs, {resumed}"
    raise ConfigError([Problem(Place(clean(name, 1000), line), "", message)])


def _experiment(source: Place, root: Node, problems: list[Problem], overrides: Sequence[str] = ()) -> Experiment:
    """Checks the keys of every layer, then the rules between keys for every variant."""
    written = mapping(root, problems, "keys")
    if not isinstance(root.value, dict):
        raise ConfigError(problems)
    document = Document(written, source, problems)
    for key, text in assignments(overrides, problems):
        document.assign(key, read(text, COMMAND_LINE, problems, key))
    base = merged(document.file, document.commands)
    if "name" not in base:
        problems.append(Problem(source, "name", f"missing; expected {expected(FIELDS['name'])}"))
    variants = [Point(name, name, *each) for name, each in document.named["variants"].items()]
    variants = variants or [Point("main", "main", source, {})]
    axes = grid(document.sweep, variants, problems)
    for layer in (base, *(variant.settings for variant in variants)):
        problems += key_problems(layer)
    spread = points(variants, axes)
    runs = [] if problems else _runs(base, spread, source, problems)
    problems += [*indistinct(variants)] or indistinct(spread)
    names = {name for point in spread for name in (point.variant, point.name)}
    reshaped = any(word.startswith(("variants", "sweep")) for word in overrides)  # its expectations may be of others
    expect = document.named["expect"]
    for name, (place, tags) in expect.items():
        if name in names:
            problems += promises(tags)
        elif len(axes) == len(document.sweep) and not (reshaped and place.source == source.source):
            near = did_you_mean(name, names) or f"; there is {clean(', '.join(sorted(names)))}"
            problems.append(Problem(place, clean(f"expect.{name}"), f"no such variant{near}"))
    if problems:
        unique = dict.fromkeys(problems)
        raise ConfigError(sorted(unique, key=lambda p: (p.place.source != source.source, p.place.line or 0)))
    plain = {name: {tag: node.plain for tag, node in flat(tags).items()} for name, (_, tags) in expect.items()}
    promised = {point.name: {**plain.get(point.variant, {}), **plain.get(point.name, {})} for point in spread}
    by_name = {run.name: flatten(run.config) for run in runs}
    by_key = {key: {name: values[key] for name, values in by_name.items()} for key in by_name[runs[0].name]}
    differences = {key: values for key, values in by_key.items() if len(set(values.values())) > 1}
    if differences.get("data.seed") == differences.get("seed"):
        differences.pop("data.seed", None)  # it follows
    runs = tuple(replace(run, differences=differences) for run in runs)
    return Experiment(runs[0].config.name, runs, {name: tags for name, tags in promised.items() if tags})


def _runs(base: Settings, spread: Sequence[Point], source: Place, problems: list[Problem]) -> list[Variant]:
    """The variants of layers without faults; broken rules between their keys go to `problems`."""
    in_base = set(checks.problems(config_of(base)))
    base_keys = flat(base)
    runs: list[Variant] = []
    broken: dict[Problem, list[str]] = {}  # and the variants it is true of, where its place does not tell
    for point in spread:
        keys, own_keys = merged(base, point.settings), flat(point.settings)
        config = config_of(keys)
        for fault in checks.problems(config):
            own = {} if fault in in_base else own_keys
            names = broken.setdefault(_located(fault, (own, base_keys), source), [])
            names += [point.variant] if own and fault[0] not in own else []
        config = config.model_copy(update={"data": config.data.model_copy(update={"seed": config.data_seed})})
        runs.append(Variant(point.name, config, flat(keys)))
        layers = (own_keys, flat(spread[0].settings))
        problems += [_located(fault, layers, point.place) for fault in checks.mixed(runs[0].config, config)]
    for problem, names in broken.items():
        first, *others = dict.fromkeys(names) or [""]
        suffix = f" (variant {clean(first)}{f' and {len(others)} more' if others else ''})" if first else ""
        problems.append(replace(problem, message=f"{problem.message}{suffix}"))
    return runs


def _located(fault: checks.Fault, layers: Sequence[Mapping[str, Node]], source: Place) -> Problem:
    """A broken rule at its own key in the first layer that sets it, or sets a key that its message names."""
    key, message = fault
    section = key.partition(".")[0]
    words = set(re.findall(r"[A-Za-z](?:[\w.]*\w)?", message))  # keys of the same section may stand without it
    for layer in layers:
        if key in layer:
            return layer[key].problem(message)
        for other, node in layer.items():
            if other in words or (other.startswith(f"{section}.") and other.rpartition(".")[2] in words):
                return Problem(node.place, key, message)
    return Problem(source, key, message)
