"""User code named by `module:name`: its import, and data sets, of which every batch is checked.

A wrong batch would train silently on something else, or end in an unreadable message.
"""

import difflib
import hashlib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import DataError, one_line
from .config import SERVES, DataConfig
from .source import Batch, BatchSource, DataSpec
from .tokenizer import from_json

_NEEDED = ("spec", "name", "details", "sha256", "tokenizer", "floors", "train_batches", "heldout_batches")


def imported(key: str, spec: str) -> Callable[..., Any]:
    """The class or function `module:name` that a config's key names. Raises DataError for any error of the module.

    The current folder comes last on Python's path, so that a queue.py in it does not hide Python's own.
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
            raise DataError(f"{label}: {one_line(error)} on import") from error  # a module that it imports is missing
        where = f"in the current folder {os.getcwd()!r} or installed"
        raise DataError(f"{label}: no module {error.name} {where}") from None
    except (Exception, SystemExit) as error:
        raise DataError(f"{label}: {one_line(error)} on import") from error
    value = getattr(module, name, None)
    if not callable(value):
        near = difflib.get_close_matches(name, [n for n, value in vars(module).items() if callable(value)], 1)
        hint = f"; did you mean {near[0]}?" if near else f" (it is {getattr(module, '__file__', 'part of Python')})"
        raise DataError(f"{label}: module {module_name} has no class or function {name}{hint}")
    return value


class OwnSource(BatchSource):
    """Base class for data sets of users, which add `spec`, `train_batches` and `heldout_batches` (see Source)."""

    spec: Any  # a DataSpec, as an attribute or a property

    def __init__(self, config: DataConfig):
        self.config = config

    @property
    def name(self) -> str:
        return self.config.kind

    @property
    def details(self) -> str:
        return f"{self.spec.context} tokens a window"

    @property
    def sha256(self) -> str:
        """Hash of the files that define the class and its bases."""
        digest = hashlib.sha256()
        for module in dict.fromkeys(each.__module__ for each in type(self).__mro__):
            file = getattr(sys.modules.get(module), "__file__", None)
            if file is not None and module.partition(".")[0] not in {"data", *sys.stdlib_module_names}:
                digest.update(Path(file).read_bytes())
        return digest.hexdigest()

    @property
    def floors(self) -> dict[str, float]:
        return {}


class CustomSource:
    """A user's data set, imported and built; its batches are checked and converted to int32 and float32.

    The constructor and all methods raise DataError for what the user's code does wrong.
    """

    resident = None

    def __init__(self, config: DataConfig):
        self._label = f"data.kind: {config.kind}"
        factory = imported("data.kind", config.kind)
        self._own = own = self._call("while it was built", lambda: factory(config))
        absent = object()
        if missing := [name for name in _NEEDED if inspect.getattr_static(own, name, absent) is absent]:
            lacks = f"{factory.__name__} has no {', '.join(missing)}"
            raise DataError(f"{self._label}: {lacks}; inherit from data.custom.OwnSource")
        self.spec = self._spec(self._read("spec"))
        texts = {name: self._read(name) for name in ("name", "details", "sha256")}
        for name, text in texts.items():
            if not isinstance(text, str):
                self._refuse(name, "text", f"{text!r:.100}")
        self.name, self.details, self.sha256 = (" ".join(text.split()) for text in texts.values())
        self.tokenizer, floors = self._read("tokenizer"), self._read("floors")
        if self.tokenizer is not None:
            try:
                size = from_json(self.tokenizer.to_json()).vocab_size
            except Exception:
                self._refuse("tokenizer", "None or one of data.tokenizer", _kind(self.tokenizer))
            if size != self.spec.vocab_size:
                self._refuse("tokenizer", f"a vocabulary of spec.vocab_size {self.spec.vocab_size}", size)
        if not isinstance(floors, Mapping) or not all(isinstance(name, str) for name in floors):
            self._refuse("floors", "a mapping of names to losses", f"{floors!r:.100}")
        for name, floor in floors.items():
            with suppress(TypeError, ValueError, OverflowError):
                if not isinstance(floor, str) and math.isfinite(float(floor)):
                    continue
            self._refuse("floors", f"a finite loss of {name!r}", f"{floor!r:.100}")
        self._floors = {name: float(floor) for name, floor in floors.items()}
        self._check_batches()

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> Any:
        """Leaves [steps, B, ...]."""
        at = f"step {first_step}" if steps == 1 else f"steps {first_step} to {first_step + steps - 1}"
        got = self._call(f"in train_batches at {at}", lambda: self._own.train_batches(batch, seed, first_step, steps))
        return self._batches("train_batches", got, (steps, batch), True)

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[Any, np.ndarray]:
        """Leaves [S, B, ...], and the weights of the rows [S, B]."""
        place = "heldout_batches"
        got = self._call(f"in {place}", lambda: self._own.heldout_batches(batch, batches))
        if isinstance(got, Batch) or not isinstance(got, tuple) or len(got) != 2:
            self._refuse(place, "(batches, weights of their rows [S, B])", _kind(got))
        rows = self._array(place, "weights of rows", got[1], None, None)
        if rows.ndim != 2 or not rows.size or rows.shape[1] != batch or (batches or len(rows)) < len(rows):
            most = "S" if batches is None else f"at most {batches}"
            self._refuse(place, f"weights of rows [{most}, {batch}]", list(rows.shape))
        if rows.min() < 0 or not rows.any():
            self._refuse(place, "weights of rows >= 0, and some above", "none above" if not rows.any() else rows.min())
        return self._batches(place, got[0], rows.shape, False), rows

    def floors(self, batch: int, batches: int | None) -> dict[str, float]:
        return self._floors

    def _spec(self, spec: Any) -> DataSpec:
        if not isinstance(spec, DataSpec) or spec.task not in SERVES:
            self._refuse("spec", f"a data.source.DataSpec of {', '.join(SERVES)}", repr(spec))
        if (spec.vocab_size is None) == (spec.channels is None):
            got = "neither" if spec.channels is None else "both"
            self._refuse("spec", "vocab_size (of ids) or channels (real values a token)", got)
        for name in ("context", "outputs", "vocab_size" if spec.channels is None else "channels"):
            size = getattr(spec, name)
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                self._refuse("spec", f"{name} to be a whole number >= 1", repr(size))
            spec = spec._replace(**{name: int(size)})
        return spec._replace(pooled=bool(spec.pooled))

    def _check_batches(self) -> None:
        """Checks the first batches, and that they do not depend on how many are asked for."""
        several, single = self.train_batches(2, 0, 0, 3), self.train_batches(2, 0, 1, 1)
        if type(several) is not type(single):
            self._refuse("train_batches", f"a {_kind(several)} in every call", _kind(single))
        pairs = list(zip(several, single, strict=True)) if isinstance(several, Batch) else [(several, single)]
        if any((a is None) != (b is None) for a, b in pairs):
            self._refuse("train_batches", "weights in every batch or in none", "them in some")
        if not all(a is None or np.array_equal(a[1], b[0], equal_nan=True) for a, b in pairs):
            raise DataError(
                f"{self._label}: train_batches: step 1 has another batch when it is asked for alone than among steps 0 "
                "to 2; a batch must follow from (seed, step) alone, or no run could be resumed"
            )
        self.heldout_batches(2, 1)

    def _batches(self, place: str, got: Any, lead: tuple[int, int], training: bool) -> Any:
        """`got`, if its leaves are of this spec and start with the axes `lead`."""
        spec, size = self.spec, self.spec.vocab_size
        if isinstance(got, np.ndarray) and spec.next_tokens:
            return self._array(place, "windows", got, [(*lead, spec.context + 1)], size)
        if not isinstance(got, Batch):
            self._refuse(place, "a data.source.Batch", _kind(got))
        channels = () if spec.channels is None else (spec.channels,)
        inputs = self._array(place, "inputs", got.inputs, [(*lead, spec.context, *channels)], size)
        each = lead if spec.pooled else (*lead, spec.context)
        weights = None if got.weights is None else self._array(place, "weights", got.weights, [each], None)
        if weights is not None and weights.min() < 0:
            self._refuse(place, "weights >= 0", weights.min())
        if weights is not None and training and not weights.reshape(len(weights), -1).any(axis=1).all():
            self._refuse(place, "a target of weight above 0 in every step", "none")
        values = spec.task == "regression"
        shapes = [(*each, spec.outputs)] if values else [each]
        if values and spec.outputs == 1:
            shapes.append(each)
        high = None if values else spec.outputs
        targets = self._array(place, "targets", got.targets, shapes, high, None if weights is None else weights > 0)
        return Batch(inputs, targets.reshape(each) if spec.outputs == 1 else targets, weights)

    def _array(self, place: str, name: str, leaf: Any, shapes: Any, high: int | None, counts: Any = None) -> np.ndarray:
        """`leaf` as int32 in [0, high), or finite float32 if `high` is None; `counts` masks the entries that matter."""
        array = self._call(f"in {place}: {name}", lambda: np.asarray(leaf))
        if array.dtype.kind not in ("iuf" if high is None else "iu"):
            self._refuse(place, f"{name} of {'' if high is None else 'whole '}numbers", array.dtype)
        if shapes is not None and array.shape not in shapes:
            self._refuse(place, f"{name} {list(shapes[0])}", list(array.shape))
        with np.errstate(over="ignore"):
            converted = array.astype(np.float32 if high is None else np.int32, copy=False)
        some = converted if high is None else array  # int32 would have wrapped around
        some = some if counts is None else some[counts]
        if high is None and not np.isfinite(some).all():
            self._refuse(place, f"finite {name}", some[~np.isfinite(some)][0])
        if high is not None and some.size and not 0 <= some.min() <= some.max() < high:
            self._refuse(place, f"{name} in 0 to {high - 1}", some.min() if some.min() < 0 else some.max())
        return converted

    def _read(self, name: str) -> Any:
        return self._call(f"in {name}", lambda: getattr(self._own, name))

    def _call(self, where: str, call: Callable[[], Any]) -> Any:
        """The result of a call into the user's code; whatever it raises becomes a DataError."""
        try:
            return call()
        except DataError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(f"{self._label}: {one_line(error)} {where}") from error

    def _refuse(self, place: str, expected: str, got: Any) -> NoReturn:
        raise DataError(f"{self._label}: {place}: expected {expected}, got {got}") from None


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
