"""What one variant has logged: rows that are still open, the last watched step, and the summary at the end."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from data.source import Source
from model.residual import rule_of

from ..config.instruments import lines
from ..config.load import Variant, flatten, to_yaml
from ..core.evaluate import Scores
from ..core.state import State
from ..core.step import StepStats
from ..core.tags import Scalars, watched_scalars
from ..errors import UserError
from ..gradflow.advice import advice_for
from ..gradflow.delta import underflows
from ..gradflow.gradients import Histogram, edges
from ..gradflow.loss_history import Series, loss_history_of
from ..gradflow.norms import log10
from ..gradflow.spikes import Watch, follow
from ..gradflow.verdict import Verdict, judge, over_run
from ..instruments.readings import Curve, Reading, scalars_of
from ..log.writer import Tracker
from ..report.read import depth_series, read_run
from ..store.checkpoint import Checkpoints
from ..text import layer
from .nonfinite import History

log = logging.getLogger(__name__)

SPIKES_TOLD = 5  # a variant; the rest are in the log


@dataclass
class Record:
    """The log of one variant. A row is everything known about the parameters after `step` optimizer steps:

    losses of the steps that led there, the evaluation, and what the step that starts there measured. A row is
    written once nothing can be added to it, so that each step has one row, also across a resumption.
    """

    variant: Variant
    directory: Path
    first_step: int
    warn: Callable[[str], None] = log.warning
    tracker: Tracker = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    open_rows: dict[int, Scalars] = field(default_factory=dict)
    first: Verdict | None = None  # on the first watched step
    last: Verdict | None = None  # on the last one so far
    last_watched: int = 0
    watch: Watch = Watch()  # for loss spikes
    spikes: int = 0  # seen so far
    last_loss: float = math.nan
    history: History = History()  # of steps that were not finite
    ended: int | None = None  # the step at which it stopped for good because of one
    due: bool = False  # whether the checkpoint it goes on from was saved before its evaluation and instruments

    def __post_init__(self) -> None:
        self.tracker = Tracker(self.directory, first_step=self.first_step, warn=self.warn)
        self.checkpoints = Checkpoints(self.directory, self.variant.config)
        self.checkpoints.go_on_from(self.first_step)
        if self.first_step:
            self._go_on_from(self.checkpoints.meta(self.first_step))
        self.tracker.config(to_yaml(self.variant.config), flatten(self.variant.config))

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        self.open_rows.setdefault(step, {}).update(values)

    def watched(self, steps: Sequence[int], stacked: StepStats, dtype: str) -> None:
        """What a window measured at `steps`, stacked [steps or more]; `dtype`: that it was computed in."""
        if not steps:
            return
        for step, row in zip(steps, watched_scalars(stacked, dtype), strict=False):
            self.add(step, row)
        parts = rule_of(self.variant.config.model).parts
        first, last = (jax.tree.map(lambda leaf, at=at: leaf[at], stacked) for at in (0, len(steps) - 1))
        self.first = self.first or _judged(first, parts, dtype)
        self.last, self.last_watched = _judged(last, parts, dtype), steps[-1]

    def losses(self, start: int, losses: Float[np.ndarray, " K"], made: Bool[np.ndarray, " K"]) -> list[str]:
        """The training losses of a window of K steps from `start` on. Returns a line for each spike that began.

        `made`: whether a step's update was; the mean is over these, if there are any.
        """
        end = start + len(losses)
        inside = self.watch.level is not None
        self.watch, heights = follow(self.watch, losses)
        self.last_loss = float(np.mean(losses[made] if made.any() else losses, dtype=np.float64))
        self.add(end, {"loss/train": self.last_loss, "loss/spike": float(np.max(heights))})
        began = np.flatnonzero((heights > 0) & ~np.append(inside, heights[:-1] > 0)).tolist()
        told = [self._spike(start + i + 1, float(heights[i])) for i in began[: max(0, SPIKES_TOLD - self.spikes)]]
        self.spikes += len(began)
        return told

    def _spike(self, step: int, height: float) -> str:
        """What is said of a spike seen at `step`, also in TensorBoard: where it stands and how the gradient flows."""
        flow = "" if self.last is None else f"; by step {self.last_watched} {self.last.state}: {self.last.why}"
        line = f"loss spike at step {step}, {height:.3g} above what was usual before{flow}"
        self.tracker.text("verdict/spike", step, f"{line}\n\nTry {advice_for('unstable', self.variant.config)}")
        return line

    def verdict(self, series: Mapping[str, Series]) -> Verdict | None:
        """On the run so far, of which `series` has been logged; None when no step was watched."""
        if self.first is None or self.last is None:
            return None
        course, config = loss_history_of(series), self.variant.config
        found = over_run(self.first, self.last, self.last_watched, course, config.optimizer.warmup)
        return found._replace(advice=advice_for(found.state, config, course.update))

    def readings(self, step: int, readings: Mapping[str, Reading]) -> None:
        """What an instrument read at the weights after `step` steps."""
        self.add(step, scalars_of(readings))
        for name, reading in readings.items():
            if isinstance(reading, Histogram):
                for index, (counts, top) in enumerate(zip(reading.counts, reading.top, strict=True)):
                    bounds = edges(float(top))[::-1].tolist()
                    self.tracker.histogram(f"{name}_log10/{layer(index)}", step, bounds, counts[::-1].tolist())
            if isinstance(reading, Curve):
                from ..report import charts  # matplotlib takes a second to import

                title = f"{self.variant.name}: the loss along {lines()[name]}, step {step}"
                figure = charts.loss_along(np.asarray(reading.at), np.asarray(reading.loss), title)
                self.tracker.image(name, step, charts.to_rgb(figure))

    def save(self, state: State, due: bool = False) -> None:
        """A checkpoint with what the log still needs to go on as if nothing had happened. Raises UserError.

        `due`: what is to be evaluated and measured at this step has not been.
        """
        self.tracker.drain()
        step = int(state.step)
        meta = {
            "row": self.open_rows.get(step, {}),
            "verdicts": [None if verdict is None else list(verdict) for verdict in (self.first, self.last)],
            "watched": self.last_watched,
            "watch": self.watch.as_json(),
            "spikes": self.spikes,
            "nonfinite": self.history.as_json(),
            "due": due,
        }
        self.checkpoints.save(state, meta)

    def _go_on_from(self, meta: Mapping[str, Any]) -> None:
        self.open_rows[self.first_step] = dict(meta["row"])
        # A checkpoint of an older version has one verdict more and nothing of the losses: they are followed from here.
        self.first, self.last = (None if saved is None else Verdict(*saved) for saved in meta["verdicts"][:2])
        if "watch" in meta:
            self.last_watched, self.spikes = meta["watched"], meta["spikes"]
            self.watch = Watch.from_json(meta["watch"])
        if "nonfinite" in meta:
            self.history, self.due = History.from_json(meta["nonfinite"]), meta["due"]

    def end(self, step: int) -> None:
        """Nothing is logged of what comes after `step`, at which training stopped for good."""
        self.ended = step
        self.add(step, {"optim/nonfinite": 1.0})
        self.write_before(math.inf)

    def write_before(self, step: float) -> None:
        """Writes the rows of all steps before `step`: no measurement can reach them any more."""
        ready = sorted(s for s in self.open_rows if s < step)
        self.tracker.log_all([(s, self.open_rows.pop(s)) for s in ready])

    def pictures(self) -> None:
        """Rewrites the depth x step heatmaps from what has been logged."""
        from ..report import charts  # matplotlib takes a second to import

        self.tracker.drain()
        try:
            run = read_run(self.directory)
        except UserError as error:  # a log that cannot be read back is no reason to stop training
            self.warn(f"{error}; no pictures are drawn")
            return
        for prefix, title in (("delta", "|δ| as trained"), ("delta_without", "|δ|, skips removed")):
            steps, values = depth_series(run, f"{prefix}/norm_log10")
            if not steps.size:
                continue
            title = f"{self.variant.name}: {title}"
            figure = charts.heatmap(steps, values, title, charts.DELTA_UNIT, *charts.DELTA_SCALE, charts.SMALL)
            self.tracker.image(f"{prefix}/heatmap", int(steps[-1]), charts.to_rgb(figure))

    def summary(self, timing: Mapping[str, Any], reason: str) -> dict[str, Any]:
        """What summary.json holds, read back from the run's own log."""
        self.tracker.drain()
        series = read_run(self.directory).steps

        def values(tag: str) -> list[float]:
            return [float(v) for v in series[tag][1]] if tag in series else []

        def last(tag: str) -> float | None:
            """What was logged last; None where that is not finite, whatever it was before."""
            return next((v for v in values(tag)[-1:] if math.isfinite(v)), None)

        losses = values("loss/train")
        config = self.variant.config
        steps = int(series["loss/train"][0][-1]) if "loss/train" in series else 0
        still_open = max((step for step, row in self.open_rows.items() if "loss/train" in row), default=0)
        if still_open > steps:  # stopped by a signal: the row of the last step waits for what a resumption adds
            steps = still_open
            losses.append(self.last_loss)
        evaluated = int(series["loss/val"][0][-1]) if "loss/val" in series else None
        finite = [v for v in losses if math.isfinite(v)]
        verdict = self.verdict(series)

        def at_the_end(tag: str) -> float | None:
            return last(tag) if evaluated == steps else None

        return {
            "variant": self.variant.name,
            "steps": steps,
            "tokens": steps * config.data.batch * config.data.context,
            "loss_first": finite[0] if finite else None,
            "loss_train": losses[-1] if losses and math.isfinite(losses[-1]) else None,
            "loss_val": at_the_end("loss/val"),
            "best_val": min(filter(math.isfinite, values("loss/val")), default=None),
            **({"loss_val_ema": at_the_end("loss/val_ema")} if "loss/val_ema" in series else {}),
            "accuracy_val": at_the_end("accuracy/val"),
            "floors": {tag.removeprefix("loss/"): last(tag) for tag in series if tag.startswith("loss/floor")},
            "first_nonfinite_step": self.history.first,
            "nonfinite": self.history.cause,
            **self._policy(),
            **timing,
            "verdict": None if verdict is None else verdict.as_json(),
            "verdict_start": None if self.first is None else self.first.as_json(),
            "verdict_end": None if self.last is None else self.last.as_json(),
            "exit_reason": reason,
        }

    def _policy(self) -> dict[str, Any]:
        """What `train.on_nonfinite` has done, where it does more than stop."""
        policy, history = self.variant.config.train.on_nonfinite, self.history
        if policy == "skip":
            return {"skipped_steps": history.skipped}
        return {"rewinds": history.as_json()["rewinds"]} if policy == "rewind" else {}


def evaluation(scores: Scores, source: Source, task: str, of: str) -> dict[str, float | None]:
    """The tags of an evaluation `of` val or val_ema. What is known of the data, when it is used for its own task, is
    logged beside it: flat lines."""
    loss = float(scores.loss)
    row: dict[str, float | None] = {f"loss/{of}": loss}
    if task == "lm":
        with np.errstate(over="ignore"):
            row[f"perplexity/{of}"] = float(np.exp(loss))
    if task != "regression":
        row[f"accuracy/{of}"] = float(scores.accuracy)
    floors = source.floors if task == source.form.task else {}
    return row | {f"loss/floor{name and '_'}{name}": floor for name, floor in floors.items()}


def _judged(measured: StepStats, parts: bool, dtype: str) -> Verdict:
    flow = measured.flow
    doubt = underflows(flow, measured.weight, parts)
    seen = flow.seen
    assert seen is not None
    return judge(log10(flow.delta), flow.grad.log10(), doubt, np.asarray(seen.rms), np.asarray(seen.rank), dtype)
