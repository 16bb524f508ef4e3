"""Where a run's figures go: a TensorBoard event file, and metrics.jsonl beside it.

Nothing here may stop or slow a training run: what cannot be written is dropped, with one warning.
"""

import atexit
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .charts_layout import Layout
from .event_file import EventThread
from .metrics_file import Rows

log = logging.getLogger(__name__)

PUT_S = 1.0  # longest that one call waits for a place in the queue
DRAIN_S = 30.0  # longest that drain and close wait for the disk
SHAPES_OF_ROWS = 16  # sets of tags, each kept as an event to fill in: to name them takes six times as long


class Tracker:
    """One variant's event file and metrics.jsonl; survives a dead writer thread and a full disk.

    What cannot be written is dropped, `warn` is called once, and training goes on. A context manager: leaving it
    closes both files; so does the end of the process.

    Args:
      directory: the variant's run directory, made if missing.
      first_step: the step training starts or resumes at. What an earlier process logged for this step and later
        disappears, from metrics.jsonl and from TensorBoard's view.
      warn: called with one line, once.
    """

    def __init__(self, directory: Path, *, first_step: int = 0, warn: Callable[[str], None] = log.warning) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        self._event, self._summary = Event, Summary
        self._directory = directory
        self._warn: Callable[[str], None] | None = warn
        self._flat: dict[str, str | float | bool] = {}
        self._last: dict[str, float] = {}
        self._summaries: dict[tuple[str, ...], Any] = {}  # by tags
        self._step = first_step
        self._dropped = 0
        self._stalled = False
        self._closed = False
        self._rows = Rows(directory / "metrics.jsonl", first_step)
        self._events = EventThread(directory)
        atexit.register(self.close)
        # TensorBoard drops what it read of this run from this step on: earlier files, never this one.
        self._put(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def config(self, yaml_text: str, flat: Mapping[str, object]) -> None:
        """Shows the resolved config as text now, and its flattened keys as hyperparameters at `finish`."""
        self._flat = {key: _hparam(value) for key, value in flat.items()}
        # An indented block, not a fenced one: nothing in the YAML can end it.
        self.text("config", self._step, "".join(f"    {line}\n" for line in yaml_text.splitlines()))

    def layout(self, categories: Layout) -> None:
        """Custom scalars: what train/log/charts_layout.py makes."""
        from tensorboardX.summary import custom_scalars

        self._add(self._step, custom_scalars(dict(categories)))

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Logs the scalars of one step, as one event and as one line of metrics.jsonl.

        None is null in the line and nothing in TensorBoard. A value that is not finite is null in the line, which
        then names its tag under `nonfinite`, and itself in TensorBoard.
        """
        self.log_all([(step, values)])

    def log_all(self, steps: Iterable[tuple[int, Mapping[str, float | None]]]) -> None:
        """`log` for several steps in order, with one write for all their lines."""
        rows: list[Mapping[str, object]] = []
        for step, values in steps:
            step = int(step)
            known = {tag: float(value) for tag, value in values.items() if value is not None}
            row: dict[str, object] = {"step": step, **values, **known}
            if nonfinite := [tag for tag, value in known.items() if not math.isfinite(value)]:
                row |= {**dict.fromkeys(nonfinite), "nonfinite": nonfinite}
            rows.append(row)
            self._step = step
            self._last |= known
            self._scalars(step, known)
        try:
            if rows and not self._closed:
                self._rows.append(*rows)
        except OSError as error:
            self._lose(f"metrics.jsonl: {error}")

    def image(self, tag: str, step: int, rgb: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, 3]."""
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise ValueError(f"image {tag}: expected uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
        from tensorboardX.summary import image

        self._add(step, image(tag, rgb, dataformats="HWC"))

    def histogram(self, tag: str, step: int, edges: Sequence[float], counts: Sequence[float]) -> None:
        """Logs a histogram made elsewhere: `counts` of values between rising `edges`, one more than counts."""
        from tensorboardX.summary import histogram_raw

        middles = [(low + high) / 2 for low, high in zip(edges[:-1], edges[1:], strict=True)]
        total = sum(count * x for count, x in zip(counts, middles, strict=True))
        squares = sum(count * x * x for count, x in zip(counts, middles, strict=True))
        limits, number = list(edges[1:]), float(sum(counts))
        self._add(step, histogram_raw(tag, edges[0], edges[-1], number, total, squares, limits, list(counts)))

    def text(self, tag: str, step: int, markdown: str) -> None:
        from tensorboardX.summary import text

        summary = text(tag, markdown)
        summary.value[0].tag = tag  # without tensorboardX's suffix /text_summary
        self._add(step, summary)

    def drain(self) -> bool:
        """Waits until what was logged is on the disk. False when some of it was lost or the disk does not answer."""
        if self._closed:
            return self._dropped == 0 and self._events.lost == 0
        done = threading.Event()
        waits = self._enqueue(done)
        deadline = time.monotonic() + DRAIN_S
        while waits and not done.wait(0.2) and self._events.is_alive() and time.monotonic() < deadline:
            pass
        if waits and not done.is_set():
            self._lose(f"TensorBoard events: not on the disk after {DRAIN_S:g} s")
        try:
            self._rows.sync()
        except OSError as error:
            self._lose(f"metrics.jsonl: {error}")
        self._report()
        return self._dropped == 0 and self._events.lost == 0

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Writes the config and the final metrics for TensorBoard's HParams tab into this run's own file, and closes.

        The metrics are scalars of this run: one whose tag was last logged with another value, or never, is logged.
        """
        from tensorboardX.summary import hparams

        metrics = {tag: float(value) for tag, value in metrics.items()}
        self._scalars(self._step, {tag: value for tag, value in metrics.items() if self._last.get(tag) != value})
        for summary in hparams(self._flat, metrics):
            self._add(self._step, summary)
        self.close()

    def close(self) -> None:
        """Drains and closes, in bounded time; further calls do nothing."""
        if self._closed:
            return
        drained = self.drain()
        self._closed = True
        if self._events.is_alive() and self._enqueue(None):
            self._events.join(DRAIN_S if drained else PUT_S)
        try:
            self._rows.close()
        except OSError as error:
            self._lose(f"metrics.jsonl: {error}")
        self._report()
        atexit.unregister(self.close)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if not values:
            return
        tags = tuple(values)
        if tags not in self._summaries:
            if len(self._summaries) == SHAPES_OF_ROWS:
                self._summaries.clear()
            self._summaries[tags] = self._summary(value=[self._summary.Value(tag=tag) for tag in tags])
        summary = self._summaries[tags]
        for entry, x in zip(summary.value, values.values(), strict=True):
            entry.simple_value = x
        self._add(step, summary)

    def _add(self, step: int, summary) -> None:
        self._put(self._event(step=int(step), summary=summary))

    def _put(self, event) -> None:
        event.wall_time = time.time()
        if not self._closed:
            self._enqueue(event.SerializeToString())
            self._report()

    def _enqueue(self, item: bytes | threading.Event | None) -> bool:
        """Waits `PUT_S` for a place in a full queue, but only once until there is one again."""
        if not self._events.is_alive():
            self._lose("TensorBoard events: the writer thread died")
            return False
        try:
            self._events.queue.put(item, timeout=0 if self._stalled else PUT_S)
        except queue.Full:
            self._stalled = True
            self._lose("TensorBoard events: the disk does not keep up")
            return False
        self._stalled = False
        return True

    def _report(self) -> None:
        if self._events.failure is not None:
            self._say(f"TensorBoard events: {self._events.failure}")

    def _lose(self, why: str) -> None:
        self._dropped += 1
        self._say(why)

    def _say(self, why: str) -> None:
        if self._warn is not None:
            warn, self._warn = self._warn, None
            warn(f"{self._directory}: some metrics are not recorded ({why}); training goes on")


def _hparam(value: object) -> str | float | bool:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return float(value)
    return json.dumps(value, default=str)
