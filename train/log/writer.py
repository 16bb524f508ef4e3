"""Log files of a run: TensorBoard events and metrics.jsonl."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .append import AppendFile, event_file_header, event_file_name, event_record, json_line, keep_rows_before
from .charts_layout import Layout

log = logging.getLogger(__name__)

TAG_SETS = 16  # sets of tags whose Summary is kept for reuse: building one takes six times as long as filling it in


class Tracker:
    """One variant's event file and metrics.jsonl.

    Records reach the files at `flush`, `drain` and `close`. Nothing here stops a training run: when the disk refuses a
    record, `warn` is called once, and the record waits in memory for a later flush (train/log/append.py).

    Args:
      directory: the variant's run directory, made if missing.
      first_step: the step training starts or resumes at. Records of an earlier process for this step and later
        disappear from metrics.jsonl and from TensorBoard's view.
      warn: called with one line, once.

    Raises:
      OSError, UserError: the files cannot be opened.
    """

    def __init__(self, directory: Path, *, first_step: int = 0, warn: Callable[[str], None] = log.warning) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._warn: Callable[[str], None] | None = warn
        self._summary = Summary
        self._summaries: dict[tuple[str, ...], Any] = {}  # by tags
        self._hparams: dict[str, str | float | bool] = {}
        self._last: dict[str, float] = {}
        self._step = first_step
        self._closed = False
        keep_rows_before(directory / "metrics.jsonl", first_step)
        self._rows = AppendFile(directory / "metrics.jsonl")
        self._events = AppendFile(directory / event_file_name())
        self._events.append(event_file_header(first_step))
        self.flush()

    def config(self, yaml_text: str, flat: Mapping[str, object]) -> None:
        """Shows the resolved config as text now, and its flattened keys as hyperparameters at `finish`."""
        for key, value in flat.items():
            if isinstance(value, bool | str):
                self._hparams[key] = value
            else:
                self._hparams[key] = float(value) if isinstance(value, int | float) else json.dumps(value, default=str)
        # An indented block, not a fenced one: nothing in the YAML can end it.
        self.text("config", self._step, "".join(f"    {line}\n" for line in yaml_text.splitlines()))

    def layout(self, categories: Layout) -> None:
        """Logs the chart layout of train/log/charts_layout.py, for TensorBoard's custom scalars."""
        from tensorboardX.summary import custom_scalars

        self._event(self._step, custom_scalars(dict(categories)))

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Logs the scalars of one step, as one event and as one line of metrics.jsonl.

        None is null in the line and absent from TensorBoard. A value that is not finite is null in the line, which
        then names its tag under `nonfinite`, and itself in TensorBoard.
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

    def log_all(self, steps: Iterable[tuple[int, Mapping[str, float | None]]]) -> None:
        """`log` for several steps in order."""
        for step, values in steps:
            self.log(step, values)

    def image(self, tag: str, step: int, rgb: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, 3]."""
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise ValueError(f"image {tag}: expected uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
        from tensorboardX.summary import image

        self._event(step, image(tag, rgb, dataformats="HWC"))

    def histogram(self, tag: str, step: int, edges: Sequence[float], counts: Sequence[float]) -> None:
        """Logs a histogram made elsewhere: `counts` of values between rising `edges`, one more than counts."""
        from tensorboardX.summary import histogram_raw

        middles = [(low + high) / 2 for low, high in zip(edges[:-1], edges[1:], strict=True)]
        total = sum(count * x for count, x in zip(counts, middles, strict=True))
        squares = sum(count * x * x for count, x in zip(counts, middles, strict=True))
        limits, number = list(edges[1:]), float(sum(counts))
        self._event(step, histogram_raw(tag, edges[0], edges[-1], number, total, squares, limits, list(counts)))

    def text(self, tag: str, step: int, markdown: str) -> None:
        """Logs a text for TensorBoard's Text tab."""
        from tensorboardX.summary import text

        summary = text(tag, markdown)
        summary.value[0].tag = tag  # without tensorboardX's suffix /text_summary
        self._event(step, summary)

    def drain(self) -> bool:
        """Returns when everything logged is on the disk; False when some of it is not, or was lost."""
        complete = self._closed or self.flush(sync=True)
        return complete and self._rows.lost == self._events.lost == 0

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Writes the config and the final metrics for TensorBoard's HParams tab into this run's own file, and closes.

        The metrics are scalars of this run: one whose tag was last logged with another value, or never, is logged.
        """
        from tensorboardX.summary import hparams

        metrics = {tag: float(value) for tag, value in metrics.items()}
        self._scalars(self._step, {tag: value for tag, value in metrics.items() if self._last.get(tag) != value})
        for summary in hparams(self._hparams, metrics):
            self._event(self._step, summary)
        self.close()

    def close(self) -> None:
        """Drains and closes; further calls do nothing."""
        self.drain()
        self._closed = True
        self._rows.close()
        self._events.close()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if not values:
            return
        tags = tuple(values)
        if tags not in self._summaries:
            if len(self._summaries) == TAG_SETS:
                self._summaries.clear()
            self._summaries[tags] = self._summary(value=[self._summary.Value(tag=tag) for tag in tags])
        summary = self._summaries[tags]
        for entry, x in zip(summary.value, values.values(), strict=True):
            entry.simple_value = x
        self._event(step, summary)

    def _event(self, step: int, summary: Any) -> None:
        if not self._closed:
            self._events.append(event_record(step=int(step), summary=summary))

    def flush(self, sync: bool = False) -> bool:
        """Writes what is pending to both files, with `sync` down to the disk; False when some of it was refused."""
        complete = True
        for name, file in (("metrics.jsonl", self._rows), ("TensorBoard events", self._events)):
            try:
                file.flush(sync)
            except OSError as error:
                complete = False
                if self._warn is not None:
                    warn, self._warn = self._warn, None
                    warn(f"{self._directory}: {name} cannot be written ({error}); training goes on")
        return complete
