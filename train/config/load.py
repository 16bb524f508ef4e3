"""Experiments from YAML files and command lines, with all problems of a config reported at once.

The layers of a config (file, command line, variants, points of the sweep) map dotted keys to values and their places.
Each is checked alone by pydantic; if all are clean they are merged, and each variant is held to the rules between keys
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
from .overrides import COMMAND_LINE, assignments
from .schema import RunConfig, leaves
from .settings import Draft, Settings, config_of, key_problems, merged
from .variants import MAX_VARIANTS, Point, grid, indistinct, points, promises
from .yaml import BAD, Node, Place, Problem, clean, dump, read, show

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

    def problem(self, message: str) -> Problem:
        """A problem that is met later on, at the line of its key. `message` begins with that key and a colon."""
        place, member = self.place(message), f"variant {clean(self.name)}"
        if place is None:
            return Problem(Place(member), "", message)
        key, _, what = message.partition(": ")
        return Problem(place, key, f"{what} ({member})")

    def place(self, message: str) -> Place | None:
        """The place of the key that `message` begins with; None if it begins with none, or with one that is not set."""
        node = self.settings.get(message.partition(": ")[0])
        return None if node is None else node.place

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Gives DataErrors and UserErrors from within that begin with a key the place of that key."""
        try:
            yield
        except (DataError, UserError) as error:
            kind = Failure if isinstance(error, Failure) else UserError
            raise kind(str(error), self.place(str(error))) from None


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


def find_config(name: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The path of the shipped config with a bare name such as `quickstart`; any other path as it is.

    A file or folder of that name in the current folder comes first.

    Raises:
        ConfigError: a bare name that is neither.
    """
    text = os.fsdecode(name)
    if not re.fullmatch(r"[\w-]+", text) or os.path.lexists(text):
        return name
    if (path := SHIPPED / f"{text}.yaml").is_file():
        return path
    names = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    hint = f"; did you mean {text}.yaml?" if Path(f"{text}.yaml").is_file() else did_you_mean(text, names)
    hint = hint or f"; shipped configs are {', '.join(names)}"
    raise ConfigError([Problem(Place(clean(text)), "", f"no such file or shipped config{hint}")])


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Experiment:
    """Reads a YAML file, or a shipped config by its bare name, then sets `key=value` overrides on it.

    `optimizer.lr=3e-4` changes the file outside `variants:`, so a variant that sets the same key still wins;
    `variants.NAME.model.layers=4` changes a variant, `variants={}` and `sweep={}` take all of them away.

    Raises:
        ConfigError: the file cannot be read, or the config cannot be used; all problems at once.
    """
    name, path = os.fsdecode(path), find_config(path)
    source = clean(os.fsdecode(path), 1000)
    experiment = _experiment(Place(source), read(_text(path, source), Place(source, 1)), overrides)
    return replace(experiment, command=shlex.join(["deltaflow", "train", name, *overrides]))


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
    return _experiment(place, read(text, place))


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


def _text(path: str | os.PathLike[str], source: str) -> str:
    """The text of a file; whatever prevents that is a ConfigError."""
    line, where = None, Path(os.fsdecode(path))
    try:
        return content_of(path, MAX_BYTES).decode().removeprefix("\ufeff")
    except (FileNotFoundError, NotADirectoryError):
        near = similar_path(where, lambda entry: entry.suffix in (".yaml", ".yml"))
        hint = f"; did you mean {clean(str(near), 1000)}?" if near else ""
        if (SHIPPED / f"{where.stem}.yaml").is_file():
            hint = f"; the shipped config is called {where.stem}, without a folder and without .yaml"
        elif "=" in where.name:
            hint = f"; a config comes first: CONFIG {clean(str(where))}"
        message = foreign(os.fsdecode(path)) or f"no such file{hint}"
    except OSError as error:
        message = f"cannot be read: {clean(error.strerror or type(error).__name__)}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at offset {error.start}"
    except ValueError as error:
        message = clean(str(error))
        message = message if message.startswith("expected") else f"cannot be read: {message}"
        inside = (path for depth in ("", "*/", "*/*/") for path in where.glob(f"{depth}config.yaml"))
        if where.is_dir() and (config := next(inside, None)) is not None:
            message = (
                f"expected a config, such as {config}, got a folder of runs, which are resumed by their own config"
            )
    raise ConfigError([Problem(Place(source, line), "", message)])


def _experiment(
    source: Place, document: tuple[Node | None, list[Problem]], overrides: Sequence[str] = ()
) -> Experiment:
    """Checks the keys of every layer, then the rules between keys for every variant."""
    root, problems = document
    if root is None or root.value is BAD:
        raise ConfigError(problems)
    if not isinstance(root.value, dict):
        got = "nothing" if root.value is None else show(root.plain)
        hint = "; write key: value" if isinstance(root.value, str) and "=" in root.value else ""
        raise ConfigError([*problems, root.problem(f"expected a mapping of keys, got {got}{hint}")])
    draft, reshaped = Draft(root.value, source, problems), False
    for key, text in assignments(overrides, problems):
        node, unreadable = read(text, COMMAND_LINE, key)
        problems += unreadable
        draft.assign(key, node or Node(BAD, COMMAND_LINE, key))
        reshaped |= key.partition(".")[0] in ("variants", "sweep")
    base = draft.base
    problems += key_problems(base)
    if "name" not in base:
        problems.append(Problem(source, "name", f"missing; expected {expected(FIELDS['name'])}"))
    variants = [Point(name, name, *written) for name, written in draft.named["variants"].items()]
    variants = variants or [Point("main", "main", source, {})]
    if len(variants) > MAX_VARIANTS:
        message = f"expected at most {MAX_VARIANTS} variants, got {len(variants)}"
        problems.append(Problem(variants[MAX_VARIANTS].place, "variants", message))
        variants = variants[:MAX_VARIANTS]
    axes = grid(draft.sweep, len(variants), problems)
    for variant in variants:
        problems += key_problems(variant.settings)
        for key in axes.keys() & variant.settings.keys():
            problems.append(variant.settings[key].problem(f"the sweep sets {key} too; keep one of them"))
    spread = points(variants, axes)
    runs = [] if problems else _runs(base, spread, draft.sweep, source, problems)
    problems += [*indistinct(variants)] or indistinct(spread)
    names = {name for point in spread for name in (point.variant, point.name)}
    expect = draft.named["expect"]
    for name, (place, tags) in expect.items():
        if name in names:
            problems += promises(tags)
        elif len(axes) == len(draft.sweep) and not (reshaped and place.source == source.source):
            near = did_you_mean(name, names) or f"; there is {clean(', '.join(sorted(names)))}"
            problems.append(Problem(place, clean(f"expect.{name}"), f"no such variant{near}"))
    if problems:
        unique = dict.fromkeys(problems)
        raise ConfigError(sorted(unique, key=lambda p: (p.place.source != source.source, p.place.line or 0)))
    plain = {name: {tag: node.plain for tag, node in tags.items()} for name, (_, tags) in expect.items()}
    flat = {run.name: flatten(run.config) for run in runs}
    by_key = {key: {name: values[key] for name, values in flat.items()} for key in flat[runs[0].name]}
    differences = {key: values for key, values in by_key.items() if len(set(values.values())) > 1}
    if differences.get("data.seed") == differences.get("seed"):
        differences.pop("data.seed", None)  # it follows
    runs = [replace(run, differences=differences) for run in runs]
    promised = {point.name: {**plain.get(point.variant, {}), **plain.get(point.name, {})} for point in spread}
    return Experiment(runs[0].config.name, tuple(runs), {name: tags for name, tags in promised.items() if tags})


def _runs(
    base: Settings, spread: Sequence[Point], sweep: Settings, source: Place, problems: list[Problem]
) -> list[Variant]:
    """The variants of layers without faults; broken rules between their keys go to `problems`."""
    in_base = set(checks.problems(config_of(base)))
    runs: list[Variant] = []
    broken: dict[Problem, list[str]] = {}  # and the variants it is true of, where its place does not tell
    for point in spread:
        keys = merged(base, point.settings)
        config = config_of(keys)
        for fault in checks.problems(config):
            problem, other = _located(fault, {} if fault in in_base else point.settings, base, source)
            names = broken.setdefault(problem, [])
            if other is not None:
                names.append(point.name if other in sweep else point.variant)
        if config.data.seed is None:
            config = config.model_copy(update={"data": config.data.model_copy(update={"seed": config.seed})})
        runs.append(Variant(point.name, config, keys))
        for key, message in checks.mixed(runs[0].config, config):
            node = point.settings.get(key) or spread[0].settings.get(key)
            problems.append(Problem(point.place if node is None else node.place, key, message))
    for problem, names in broken.items():
        first, *others = dict.fromkeys(names) or [""]
        more = f" and {len(others)} more" if others else ""
        suffix = f" (variant {clean(first)}{more})" if first else ""
        problems.append(Problem(problem.place, problem.key, f"{problem.message}{suffix}"))
    return runs


def _located(fault: checks.Fault, own: Settings, base: Settings, source: Place) -> tuple[Problem, str | None]:
    """A broken rule at its own key in the first layer that sets it, or sets a key that its message names.

    With it a variant's own key that was named, where only the variant's name tells which value the first key has.
    """
    key, message = fault
    section = key.partition(".")[0]
    words = set(re.findall(r"[A-Za-z](?:[\w.]*\w)?", message))  # keys of the same section may stand without it
    for layer in (own, base):
        if key in layer:
            return Problem(layer[key].place, layer[key].path, message), None
        for other, node in layer.items():
            if other in words or (other.startswith(f"{section}.") and other.rpartition(".")[2] in words):
                return Problem(node.place, key, message), other if layer is own else None
    return Problem(source, key, message), None
