"""Metrics of one variant as it trains: open rows, verdicts, loss spikes, and the series behind its summary."""

import math
import re
from array import array
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from model.residual import rule_of

from ..config.instruments import lines
from ..config.load import Variant
from ..core.evaluate import Scores
from ..core.step import StepStats
from ..core.tags import Scalars, watched_scalars
from ..gradflow.advice import advice_for
from ..gradflow.delta import underflows
from ..gradflow.gradients import Histogram, edges
from ..gradflow.loss_history import Series, loss_history_of
from ..gradflow.norms import log10
from ..gradflow.spikes import Spike, SpikeDetector, follow
from ..gradflow.verdict import Verdict, judge, over_run
from ..instruments.readings import LossCurve, Matrix, Reading, scalars_of
from ..log.writer import Tracker
from ..report.charts import SMALL, to_rgb
from ..report.heatmaps import LIVE_CELLS, Field, heatmaps, matrix_chart
from ..report.lines import loss_along
from ..report.read import depth_series, read_run
from ..text import LAYER, layer
from .dispatches import watched_steps
from .recovery import MOST_SKIPPED, NonfiniteSteps, first_nonfinite

SPIKE_WARNINGS = 5  # a variant; the rest are in the log
_IN_MEMORY = re.compile(
    rf"loss/.+|accuracy/val|optim/nonfinite|update/ratio_log10/{LAYER}|delta(_without)?/norm_log10/{LAYER}"
)
# Titles and captions of the pictures of delta, by the first part of the tag.
HEATMAPS = {
    "delta": (
        "δ as trained",
        "The size of the gradient at the stream entering each block, over training: from the loss at the bottom up to "
        "the embedding. Even columns: the gradient arrives in full. Dark at the top: it vanishes.",
    ),
    "delta_without": (
        "δ without skips",
        "The same weights and batches, with the skips removed for the measurement alone. **Brighter than as trained** "
        "is no better flow: a norm, which divides by the size of the stream, multiplies the gradient by as much, and "
        "without skips the stream is smaller; and worse predictions have a larger gradient. Compare the fall from "
        "bottom to top.",
    ),
}


@cache
def in_memory(tag: str) -> bool:
    """Returns true for a tag whose history the summary, the verdict and the pictures need.

    It is kept in memory, so that the log is read back at a resumption alone.
    """
    return _IN_MEMORY.fullmatch(tag) is not None


class RunMetrics:
    """The metrics of one variant.

    A row holds everything about the parameters after `step` optimizer steps: the losses of the steps that led there,
    the evaluation, and the measurements of the step that starts there. It is written once nothing can be added to it,
    so that each step has one row, also across a resumption.

    Args:
        variant: name and config.
        directory: the run directory; its log is opened, and cut back to rows before `start_step`.
        dtype: of compute, which decides how far gradients can be trusted.
        start_step: the step from which training starts or resumes.
        saved: at a resumption, what `meta` returned at that step.
        warn: called with one line a warning.

    Raises UserError when the log cannot be opened or read.
    """

    def __init__(
        self,
        variant: Variant,
        directory: Path,
        dtype: str,
        start_step: int,
        saved: Mapping[str, Any] | None,
        warn: Callable[[str], None],
    ) -> None:
        self.variant, self.directory, self.dtype, self.warn = variant, directory, dtype, warn
        self.open_rows: dict[int, Scalars] = {}
        self.first_verdict: Verdict | None = None  # of the first watched step
        self.last_verdict: Verdict | None = None  # of the last one so far
        self.last_watched = 0
        self.delta_log10: np.ndarray | None = None  # log10|delta_l| [L+1] of that step
        self.spike_detector, self.spikes = SpikeDetector(), 0
        self.diagnoses: list[tuple[int, str]] = []  # of loss spikes, by their steps (train/run/recovery.py)
        self.mechanism = ""  # of a verdict of dead_qk
        self.last_loss = math.nan
        self.nonfinite = NonfiniteSteps()
        self.exit_reason: str | None = None  # what ended the variant before its last step: nonfinite or verdict
        self.eval_pending = False  # the checkpoint was saved before the evaluation and instruments of its step
        self._series: dict[str, tuple[array, array]] = {}
        backends = [name for name, used in variant.config.log if used]
        matrices = variant.config.watch.matrices
        self.tracker = Tracker(directory, first_step=start_step, backends=backends, matrices=matrices, warn=warn)
        if saved is not None:
            self.open_rows[start_step] = dict(saved["row"])
            self.first_verdict, self.last_verdict = (None if v is None else Verdict(*v) for v in saved["verdicts"])
            self.last_watched, self.spikes = saved["last_watched"], saved["spikes"]
            self.spike_detector = SpikeDetector.from_json(saved["spike_watch"])
            self.diagnoses = [(step, text) for step, text in saved["diagnoses"]]
            self.nonfinite, self.eval_pending = NonfiniteSteps(**saved["nonfinite"]), saved["eval_pending"]
            for tag, (steps, values) in read_run(directory).steps.items():
                if in_memory(tag):
                    self._series[tag] = (array("q", steps.tolist()), array("d", values.tolist()))
        self.tracker.config(variant)

    def meta(self, step: int, eval_pending: bool) -> dict[str, Any]:
        """Returns the JSON part of a checkpoint of `step`, from which a resumed run logs and judges the same."""
        return {
            "row": self.open_rows.get(step, {}),
            "verdicts": [None if v is None else list(v) for v in (self.first_verdict, self.last_verdict)],
            "last_watched": self.last_watched,
            "spike_watch": self.spike_detector.as_json(),
            "spikes": self.spikes,
            "diagnoses": self.diagnoses,
            "nonfinite": vars(self.nonfinite),
            "eval_pending": eval_pending,
        }

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds values to the row of a step."""
        self.open_rows.setdefault(step, {}).update(values)

    def add_dispatch(
        self, start: int, metrics: Any, stats: StepStats | None, steps_per_s: float | None
    ) -> tuple[int | None, list[Spike]]:
        """Logs a dispatch of K steps from host arrays: `metrics` (core.step.Metrics) [K], `stats` [watched steps, ...].

        Returns the step (counted from 1) that is not finite and needs a diagnosis, if there is one, and the loss spikes
        that begin and are to be reported. Rows after a step that ends the variant are not logged.
        """
        config = self.variant.config
        end, bad, skip = start + len(metrics.loss), first_nonfinite(metrics.finite, start), False
        diagnose = bad
        if config.train.on_nonfinite == "skip":
            skip, diagnosed = True, self.nonfinite.cause is not None
            self.nonfinite = self.nonfinite.skipping(metrics.finite, start)
            self.add(end, {"optim/skipped": float(np.sum(~metrics.finite))})
            if bad is not None and diagnosed:
                diagnose = end if self.nonfinite.in_a_row >= MOST_SKIPPED else None
        until = end if bad is None or skip else bad
        watched = watched_steps(start, end, config.watch.every)
        logged = [step for step in watched if step < until]
        if stats is not None and logged:
            rows = dict(zip(watched, watched_scalars(stats, self.dtype), strict=True))
            for step in logged:
                self.add(step, rows[step])
            self.first_verdict = self.first_verdict or self._judged(stats, 0)
            self.last_verdict, self.last_watched = self._judged(stats, len(logged) - 1), logged[-1]
        spikes = self._add_losses(start, metrics.loss[: until - start], metrics.finite[: until - start])
        row = {"optim/lr": float(metrics.lr[until - start - 1])}
        if steps_per_s is not None:
            tokens = config.data.batch * config.data.context
            row |= {"perf/steps_per_s": steps_per_s, "perf/tokens_per_s": steps_per_s * tokens}
        self.add(until, row)
        self.write_before(until)
        return diagnose, spikes

    def _judged(self, stats: StepStats, index: int) -> Verdict:
        flow, weight = jax.tree.map(lambda leaf: leaf[index], (stats.flow, stats.weight))
        doubt = underflows(flow, weight, rule_of(self.variant.config.model).parts)
        rms, rank = np.asarray(flow.stream.rms), np.asarray(flow.stream.rank)
        self.delta_log10 = log10(flow.delta)
        return judge(self.delta_log10, flow.grad.log10(), doubt, rms, rank, self.dtype)

    def _add_losses(self, start: int, losses: Float[np.ndarray, " K"], updated: Bool[np.ndarray, " K"]) -> list[Spike]:
        """The mean is over the steps whose update was made, if there are any. Returns the first spikes that begin."""
        end, before = start + len(losses), self.spike_detector
        self.spike_detector, heights = follow(before, losses)
        self.last_loss = float(np.mean(losses[updated] if updated.any() else losses, dtype=np.float64))
        self.add(end, {"loss/train": self.last_loss, "loss/spike": float(np.max(heights))})
        began = np.flatnonzero((heights > 0) & ~np.append(before.level is not None, heights[:-1] > 0)).tolist()
        spikes = []
        for index in began[: max(0, SPIKE_WARNINGS - self.spikes)]:
            at, _ = follow(before, losses[: index + 1])
            spikes.append(Spike(start + index + 1, float(heights[index]), at.level or 0.0, at.limit))
        self.spikes += len(began)
        return spikes

    def add_readings(self, step: int, readings: Mapping[str, Reading]) -> None:
        """Adds an instrument's readings at the weights after `step` steps; pictures and histograms go out at once."""
        self.add(step, scalars_of(readings))
        for name, reading in readings.items():
            if isinstance(reading, Histogram):
                for index, (counts, top) in enumerate(zip(reading.counts, reading.top, strict=True)):
                    bounds = edges(float(top))[::-1].tolist()
                    self.tracker.histogram(f"{name}_log10/{layer(index)}", step, bounds, counts[::-1].tolist())
            if isinstance(reading, LossCurve) and self.tracker.pictured:
                title = f"{self.variant.name}: the loss along {lines()[name]}, step {step}"
                figure = loss_along(np.asarray(reading.at), np.asarray(reading.loss), title)
                self.tracker.image(name, step, to_rgb(figure))
            if isinstance(reading, Matrix) and self.tracker.pictured:
                figure = matrix_chart(np.asarray(reading.values), f"{self.variant.name}: {name}, step {step}")
                self.tracker.image(name, step, to_rgb(figure))

    def found_cause(self, step: int, cause: str) -> None:
        """Records the cause of a non-finite step; of several, the first is kept."""
        self.nonfinite = self.nonfinite.diagnosed(step, cause)

    def found_first_moved(self, step: int, diagnosis: str) -> None:
        """Records what moved before the loss spike at `step`."""
        self.diagnoses.append((step, diagnosis))

    def found_mechanism(self, mechanism: str) -> None:
        """Records what starves attention, for verdicts of dead_qk."""
        self.mechanism = mechanism

    def end(self, step: int, reason: str) -> None:
        """Ends the variant after `step`, because of a non-finite step or its verdict; nothing later is logged."""
        self.exit_reason = reason
        if reason == "nonfinite":
            self.add(step, {"optim/nonfinite": 1.0})
        self.write_before(math.inf)

    def write_before(self, step: float) -> None:
        """Writes the rows of all steps before `step`: no measurement can reach them any more."""
        for at in sorted(s for s in self.open_rows if s < step):
            row = self.open_rows.pop(at)
            for tag, value in row.items():
                if value is not None and in_memory(tag):
                    steps, values = self._series.setdefault(tag, (array("q"), array("d")))
                    steps.append(at)
                    values.append(value if math.isfinite(value) else math.nan)
            self.tracker.log(at, row)

    @property
    def series(self) -> dict[str, Series]:
        """Steps and values of the logged tags that summaries and pictures need; NaN stands for what is not finite."""
        return {tag: (np.array(steps, np.int64), np.array(values)) for tag, (steps, values) in self._series.items()}

    def verdict(self) -> Verdict | None:
        """Returns the verdict on the run so far; None when no step was watched."""
        if self.first_verdict is None or self.last_verdict is None:
            return None
        history, config = loss_history_of(self.series), self.variant.config
        verdict = over_run(self.first_verdict, self.last_verdict, self.last_watched, history, config.optimizer.warmup)
        notes = [self.mechanism] * (verdict.state == "dead_qk" and self.mechanism != "")
        notes += [f"spike at step {step}: {text}" for step, text in self.diagnoses]
        why = "; ".join([verdict.why, *notes])
        return verdict._replace(why=why, advice=advice_for(verdict.state, config, history.update))

    def draw(self) -> None:
        """Rewrites the depth x step heatmaps."""
        if not self.tracker.pictured:
            return
        series = self.series
        for prefix, (title, caption) in HEATMAPS.items():
            steps, values = depth_series(series, f"{prefix}/norm_log10")
            if not steps.size:
                continue
            title = f"{self.variant.config.name}/{self.variant.name}: {title}"
            figure = heatmaps([Field(title, steps, values)], 1, SMALL, LIVE_CELLS)
            self.tracker.image(f"{prefix}/heatmap", int(steps[-1]), to_rgb(figure), title, caption)


def evaluation_row(scores: Scores, floors: Mapping[str, float], task: str, split: str) -> dict[str, float | None]:
    """Returns the tags of an evaluation; `split` is val, or val_ema for the averaged weights.

    floors: losses on the same rows that are known in advance, by name (data/source.py); flat lines in a chart.
    """
    loss = float(scores.loss)
    row: dict[str, float | None] = {f"loss/{split}": loss}
    if task == "lm":
        with np.errstate(over="ignore"):
            row[f"perplexity/{split}"] = float(np.exp(loss))
    if task != "regression":
        row[f"accuracy/{split}"] = float(scores.accuracy)
    return row | {f"loss/floor{name and '_'}{name}": floor for name, floor in floors.items()}
