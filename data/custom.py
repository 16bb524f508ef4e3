"""What users write themselves, named by `module:name`: how it is imported, and data sets, of which nothing is taken on
trust: a wrong batch would train silently on something else, or end in a message that nobody can read."""

import difflib
import hashlib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .config import DataConfig
from .errors import DataError
from .source import Batch, DataSpec, Source, Whole
from .tokenizer import Tokenizer, from_json

_NEEDED = ("form", "source", "details", "sha256", "tokenizer", "floors", "resident", "train_batches", "heldout_batches")
_TASKS = ("lm", "classification", "regression")


def imported(key: str, spec: str) -> Callable[..., Any]:
    """The class or function `module:name` that a config's key names. Raises DataError, whatever the module does.

    The current folder comes last on Python's path: a queue.py in it must not hide Python's own from all others.
    """
    module_name, _, name = spec.partition(":")
    label = f"{key}: {spec}"
    if "" not in sys.path:
        sys.path.append("")
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise DataError(f"{label}: {said(error)} on import") from error  # it is there, and imports one that is not
        where = f"in the current folder {os.getcwd()!r} or installed"
        raise DataError(f"{label}: no module {error.name} {where}") from None
    except (Exception, SystemExit) as error:
        raise DataError(f"{label}: {said(error)} on import") from error
    found = getattr(module, name, None)
    if not callable(found):
        near = difflib.get_close_matches(name, [n for n, value in vars(module).items() if callable(value)], 1)
        hint = f"; did you mean {near[0]}?" if near else f" (it is {getattr(module, '__file__', 'part of Python')})"
        raise DataError(f"{label}: module {module_name} has no class or function {name}{hint}")
    return found


def said(error: BaseException) -> str:
    """An error of the user's code on one line."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


class OwnSource(Whole):
    """What a data set of your own may inherit: all but `form`, `train_batches` and `heldout_batches` has a default."""

    def __init__(self, config: DataConfig):
        self.config = config

    @property
    def form(self) -> DataSpec:
        raise NotImplementedError

    @property
    def source(self) -> str:
        return self.config.kind

    @property
    def details(self) -> str:
        return f"{self.form.context} tokens a window"

    @property
    def sha256(self) -> str:
        """Of the files that the class and those it inherits from are written in."""
        digest = hashlib.sha256()
        for module in dict.fromkeys(each.__module__ for each in type(self).__mro__):
            file = getattr(sys.modules.get(module), "__file__", None)
            if file is not None and module.partition(".")[0] not in {"data", *sys.stdlib_module_names}:
                digest.update(Path(file).read_bytes())
        return digest.hexdigest()

    @property
    def floors(self) -> dict[str, float]:
        return {}

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> Batch:
        raise NotImplementedError

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[Batch, np.ndarray]:
        raise NotImplementedError


def open_own(config: DataConfig) -> Source:
    """Imports the module, builds the class, and looks at what it says and at its first batches. Raises DataError."""
    label = f"data.kind: {config.kind}"
    made = imported("data.kind", config.kind)
    own = _asked(label, "while it was built", lambda: made(config))
    absent = object()
    missing = [name for name in _NEEDED if inspect.getattr_static(own, name, absent) is absent]
    if missing:
        raise DataError(f"{label}: {made.__name__} has no {', '.join(missing)}; inherit from data.custom.OwnSource")
    form = _form(label, _asked(label, "in form", lambda: own.form))
    told: dict[str, Any] = {
        name: _asked(label, f"in {name}", lambda name=name: getattr(own, name)) for name in _NEEDED[1:-2]
    }
    for name in ("source", "details", "sha256"):
        if not isinstance(told[name], str):
            raise DataError(f"{label}: {name}: expected text, got {told[name]!r:.100}")
        told[name] = " ".join(told[name].split())
    told["floors"] = _floors(label, told["floors"])
    checked = Checked(label, own, form, **told)
    checked.check()
    return checked


@dataclass(frozen=True, eq=False)
class Checked:
    """A source around the user's object. Every batch is checked and comes as int32 and float32; DataError otherwise."""

    label: str
    own: Any
    form: DataSpec
    source: str
    details: str
    sha256: str
    tokenizer: Tokenizer | None
    floors: dict[str, float]
    resident: tuple[np.ndarray, np.ndarray] | None

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> Any:
        """Leaves [steps, B, ...]."""
        ask = lambda: self.own.train_batches(batch, seed, first_step, steps)  # noqa: E731
        at = f"step {first_step}" if steps == 1 else f"steps {first_step} to {first_step + steps - 1}"
        got = _asked(self.label, f"in train_batches at {at}", ask)
        return self._batches("train_batches", got, (steps, batch), 0)

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[Any, np.ndarray]:
        """Leaves [S, B, ...], and the weights of the rows."""
        what = "heldout_batches"
        got = _asked(self.label, f"in {what}", lambda: self.own.heldout_batches(batch, batches))
        if isinstance(got, Batch) or not isinstance(got, tuple) or len(got) != 2:
            self._refuse(what, "(batches, weights of their rows [S, B])", _kind(got))
        rows = self._array(what, "weights of rows", got[1], None, None)
        if rows.ndim != 2 or not rows.size or rows.shape[1] != batch or (batches or len(rows)) < len(rows):
            most = "S" if batches is None else f"at most {batches}"
            self._refuse(what, f"weights of rows [{most}, {batch}]", list(rows.shape))
        if rows.min() < 0 or not rows.any():
            self._refuse(what, "weights of rows >= 0, and some above", "none above" if not rows.any() else rows.min())
        return self._batches(what, got[0], rows.shape, 1), rows

    def check(self) -> None:
        """Once, at the start. Raises DataError."""
        self._check_tokens()
        whole, one = self.train_batches(2, 0, 0, 3), self.train_batches(2, 0, 1, 1)
        if type(whole) is not type(one):
            self._refuse("train_batches", f"a {_kind(whole)} in every call", _kind(one))
        pairs = list(zip(whole, one, strict=True)) if isinstance(whole, Batch) else [(whole, one)]
        if any((a is None) != (b is None) for a, b in pairs):
            self._refuse("train_batches", "weights in every batch or in none", "them in some")
        if not all(a is None or np.array_equal(a[1], b[0], equal_nan=True) for a, b in pairs):
            raise DataError(
                f"{self.label}: train_batches: step 1 has another batch when it is asked for alone than among steps 0 "
                "to 2; a batch must follow from (seed, step) alone, or no run could be resumed"
            )
        self.heldout_batches(2, 1)

    def _check_tokens(self) -> None:
        form, size = self.form, self.form.vocab_size
        if self.tokenizer is not None:
            try:
                known = from_json(self.tokenizer.to_json())
            except Exception:
                self._refuse("tokenizer", "None or one of data.tokenizer", _kind(self.tokenizer))
            if known.vocab_size != size:
                self._refuse("tokenizer", f"a vocabulary of form.vocab_size {size}", known.vocab_size)
        if self.resident is None:
            return
        if not form.next_tokens:
            self._refuse("resident", "a form of next tokens beside it (lm, outputs = vocab_size)", form)
        if not isinstance(self.resident, tuple) or len(self.resident) != 2:
            self._refuse("resident", "None or two arrays of ids, to train on and held out", _kind(self.resident))
        for name, part in zip(("train", "held out"), self.resident, strict=True):
            ids = self._array("resident", name, part, None, size)
            if ids.ndim != 1 or len(ids) <= form.context:
                self._refuse("resident", f"{name} ids [more than context {form.context}]", list(ids.shape))

    def _batches(self, what: str, got: Any, lead: tuple[int, int], part: int) -> Any:
        """`got`, when its leaves are of this form and start with the axes `lead`."""
        form, size = self.form, self.form.vocab_size
        if self.resident is not None:
            return self._array(what, "starts", got, [lead], len(self.resident[part]) - form.context)
        if isinstance(got, np.ndarray) and form.next_tokens:
            return self._array(what, "windows", got, [(*lead, form.context + 1)], size)
        if not isinstance(got, Batch):
            self._refuse(what, "a data.source.Batch", _kind(got))
        channels = () if form.channels is None else (form.channels,)
        inputs = self._array(what, "inputs", got.inputs, [(*lead, form.context, *channels)], size)
        each = lead if form.pooled else (*lead, form.context)
        weights = None if got.weights is None else self._array(what, "weights", got.weights, [each], None)
        if weights is not None and weights.min() < 0:
            self._refuse(what, "weights >= 0", weights.min())
        if weights is not None and part == 0 and not weights.reshape(len(weights), -1).any(axis=1).all():
            self._refuse(what, "a target of weight above 0 in every step", "none")
        values = form.task == "regression"
        shapes = [(*each, form.outputs)] if values else [each]
        if values and form.outputs == 1:
            shapes.append(each)
        high = None if values else form.outputs
        targets = self._array(what, "targets", got.targets, shapes, high, None if weights is None else weights > 0)
        return Batch(inputs, targets.reshape(each) if form.outputs == 1 else targets, weights)

    def _array(
        self,
        what: str,
        name: str,
        leaf: Any,
        shapes: list[tuple[int, ...]] | None,
        high: int | None,
        counts: Any = None,
    ) -> np.ndarray:
        """`leaf` as int32 in [0, high), or as finite float32 where `high` is None; `counts`: which entries matter."""
        array = _asked(self.label, f"in {what}: {name}", lambda: np.asarray(leaf))
        if array.dtype.kind not in ("iuf" if high is None else "iu"):
            self._refuse(what, f"{name} of {'' if high is None else 'whole '}numbers", array.dtype)
        if shapes is not None and array.shape not in shapes:
            self._refuse(what, f"{name} {list(shapes[0])}", list(array.shape))
        with np.errstate(over="ignore"):
            found = array.astype(np.float32 if high is None else np.int32, copy=False)
        some = found if high is None else array  # int32 would have wrapped around
        some = some if counts is None else some[counts]
        if high is None and not np.isfinite(some).all():
            self._refuse(what, f"finite {name}", some[~np.isfinite(some)][0])
        if high is not None and some.size and not 0 <= some.min() <= some.max() < high:
            self._refuse(what, f"{name} in 0 to {high - 1}", some.min() if some.min() < 0 else some.max())
        return found

    def _refuse(self, what: str, expected: str, got: Any) -> NoReturn:
        raise DataError(f"{self.label}: {what}: expected {expected}, got {got}")


def _asked(label: str, where: str, ask: Callable[[], Any]) -> Any:
    """The result of a call into the user's code; whatever it raises is a DataError."""
    try:
        return ask()
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{label}: {said(error)} {where}") from error


def _form(label: str, form: Any) -> DataSpec:
    if not isinstance(form, DataSpec) or form.task not in _TASKS:
        raise DataError(f"{label}: form: expected a data.source.DataSpec of {', '.join(_TASKS)}, got {form!r}")
    sizes = {name: getattr(form, name) for name in ("context", "outputs", "vocab_size", "channels")}
    if (form.vocab_size is None) == (form.channels is None):
        got = "neither" if form.channels is None else "both"
        raise DataError(f"{label}: form: expected vocab_size (of ids) or channels (real values a token), got {got}")
    for name, size in sizes.items():
        optional = name in ("vocab_size", "channels") and size is None
        if not optional and (isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1):
            raise DataError(f"{label}: form: expected {name} to be a whole number >= 1, got {size!r}")
    whole = {name: None if size is None else int(size) for name, size in sizes.items()}
    return form._replace(pooled=bool(form.pooled), **whole)


def _floors(label: str, floors: Any) -> dict[str, float]:
    if not isinstance(floors, Mapping) or not all(isinstance(name, str) for name in floors):
        raise DataError(f"{label}: floors: expected a mapping of names to losses, got {floors!r:.100}")
    found = {}
    for name, floor in floors.items():
        try:
            found[name] = math.nan if isinstance(floor, str) else float(floor)
        except (TypeError, ValueError):
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise DataError(f"{label}: floors: expected a finite loss of {name!r}, got {floor!r:.100}")
    return found


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
