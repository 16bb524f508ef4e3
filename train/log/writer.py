"""Log of a run: metrics.jsonl, and the backends that the config names."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data import first_line

from ..config.load import Variant
from .append import AppendFile, json_line, keep_rows_before
from .backends import BACKENDS, Backend
from .charts_layout import Layout, shown

log = logging.getLogger(__name__)


class Tracker:
    """One variant's metrics.jsonl and its backends (train/log/backends.py).

    Records reach the files at `flush`, `drain` and `close`. Nothing here stops a training run: when the disk refuses a
    record, or a backend fails, `warn` is called once for each, and records wait in memory for a later flush.

    Args:
      directory: the variant's run directory, made if missing.
      first_step: the step training starts or resumes at. Records of an earlier process for this step and later
        disappear from metrics.jsonl and from TensorBoard's view.
      backends: names of BACKENDS; metrics.jsonl is always written.
      matrices: also the series that backends do not show by default (`shown` in train/log/charts_layout.py).
      warn: called with one line, once for each destination.

    Raises:
      OSError, UserError: metrics.jsonl cannot be opened.
    """

    def __init__(
        self,
        directory: Path,
        *,
        first_step: int = 0,
        backends: Iterable[str] = ("tensorboard",),
        matrices: bool = False,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._matrices = directory, matrices
        self._warn, self._warned = warn, set[str]()
        self._last: dict[str, float] = {}
        self._step = first_step
        self._closed = False
        keep_rows_before(directory / "metrics.jsonl", first_step)
        self._rows = AppendFile(directory / "metrics.jsonl")
        self._backends: dict[str, Backend] = {}
        for name in backends:
            self._try(name, lambda name=name: self._backends.update({name: BACKENDS[name](directory, first_step)}))
        self.flush()

    @property
    def pictured(self) -> bool:
        """True if a backend takes pictures."""
        return "tensorboard" in self._backends

    def config(self, variant: Variant) -> None:
        """Shows the resolved config, and the differences to the other variants."""
        self._each(lambda backend: backend.config(self._step, variant))

    def layout(self, categories: Layout) -> None:
        """Logs the chart layout of train/log/charts_layout.py, for TensorBoard's custom scalars."""
        self._each(lambda backend: backend.layout(self._step, categories))

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Logs the scalars of one step, as one line of metrics.jsonl and at the backends.

        None is null in the line and absent elsewhere. A value that is not finite is null in the line, which then names
        its tag under `nonfinite`, and itself elsewhere.
        """
        step = int(step)
        scalars = {tag: float(value) for tag, value in values.items() if value is not None}
        row: dict[str, object] = {"step": step, **values, **scalars}
        if nonfinite := [tag for tag, value in scalars.items() if not math.isfinite(value)]:
            row |= {**dict.fromkeys(nonfinite), "nonfinite": nonfinite}
        self._step = step
        self._last |= scalars
        if not self._closed:
            self._rows.append(json_line(row))
        self._scalars(step, scalars)

    def image(self, tag: str, step: int, rgb: np.ndarray, title: str = "", caption: str = "") -> None:
        """Logs a picture, uint8 [H, W, 3]; the title over it in place of its tag, and a caption (markdown)."""
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise ValueError(f"image {tag}: expected uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
        self._each(lambda backend: backend.image(tag, step, rgb, title, caption))

    def histogram(self, tag: str, step: int, edges: Sequence[float], counts: Sequence[float]) -> None:
        """Logs a histogram made elsewhere: `counts` of values between rising `edges`, one more than counts."""
        self._each(lambda backend: backend.histogram(tag, step, edges, counts))

    def text(self, tag: str, step: int, markdown: str) -> None:
        """Logs a text for TensorBoard's Text tab."""
        self._each(lambda backend: backend.text(tag, step, markdown))

    def drain(self) -> bool:
        """Returns when everything logged is on the disk; False when some of it is not, or was lost."""
        complete = self._closed or self.flush(sync=True)
        return complete and not self._rows.lost and not any(backend.lost for backend in self._backends.values())

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Gives the final metrics to the backends, TensorBoard's HParams for one, and closes.

        The metrics are scalars of this run: one whose tag was last logged with another value, or never, is logged.
        """
        metrics = {tag: float(value) for tag, value in metrics.items()}
        self._scalars(self._step, {tag: value for tag, value in metrics.items() if self._last.get(tag) != value})
        self._each(lambda backend: backend.finish(self._step, metrics))
        self.close()

    def close(self) -> None:
        """Drains and closes; further calls do nothing."""
        self.drain()
        self._each(lambda backend: backend.close())
        self._closed = True
        self._rows.close()

    def flush(self, sync: bool = False) -> bool:
        """Writes what is pending, with `sync` down to the disk; False when some of it was refused."""
        written = self._try("metrics.jsonl", lambda: self._rows.flush(sync))
        return self._each(lambda backend: backend.flush(sync)) and written

    def _scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        if not self._matrices:
            scalars = {tag: value for tag, value in scalars.items() if shown(tag)}
        if scalars:
            self._each(lambda backend: backend.log(step, scalars))

    def _each(self, call: Callable[[Backend], None]) -> bool:
        """Calls each backend; False when one failed."""
        if self._closed:
            return True
        return all([self._try(name, lambda b=backend: call(b)) for name, backend in self._backends.items()])

    def _try(self, name: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # of a full disk, another library, a network
            if not self._warned & {name, (reason := first_line(error))}:  # a full disk refuses all files: one warning
                self._warned |= {name, reason}
                self._warn(f"{self._directory}: {name} cannot be written ({reason}); training goes on")
            return False
        return True
