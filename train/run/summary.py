"""The end of a run: summary.json, the report of an experiment, and the promises of `expect:`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.fields import did_you_mean
from ..device import platform as platforms
from ..device.platform import Platform
from ..device.programs import VariantGroup, model_flops
from ..disk import write_atomically, write_json
from ..log.console import Console
from ..report.comparison import as_html, as_markdown, compare
from ..report.read import Run
from ..report.seeds import write_means
from ..report.tables import verdict_text
from ..text import command, size
from .dispatches import Throughput
from .metrics import RunMetrics

# Bytes of metrics.jsonl, all runs together: with more, the end of a training would take more than about ten seconds.
MAX_REPORT_BYTES = 50_000_000
# Tags that `expect:` and TensorBoard's HParams name, and their keys in summary.json.
_SUMMARY_KEYS = {
    "loss/train": "loss_train",
    "loss/val": "loss_val",
    "loss/val_ema": "loss_val_ema",
    "accuracy/val": "accuracy_val",
}


def write_summaries(
    all_metrics: Sequence[RunMetrics], timing: Mapping[str, Any], signal: int | None
) -> list[dict[str, Any]]:
    """Writes the last rows, pictures, verdict and summary.json of a group's variants; returns the summaries.

    After a `signal` the logs stay open for what a resumption adds. Raises UserError.
    """
    summaries = []
    for metrics in all_metrics:
        complete = signal is None or metrics.exit_reason is not None
        if complete:
            metrics.write_before(math.inf)
        reason = metrics.exit_reason or ("done" if signal is None else f"signal {signal}")
        summary = summary_of(metrics, timing, reason)
        if complete:
            metrics.draw()
            if summary["verdict"] is not None:
                metrics.tracker.text("verdict", summary["steps"], verdict_text(summary["verdict"]))
            names = ("loss/val", "loss/train", "accuracy/val")
            finals = {tag: summary[_SUMMARY_KEYS[tag]] for tag in names}
            metrics.tracker.finish({tag: value for tag, value in finals.items() if value is not None})
        write_json(metrics.directory / "summary.json", summary)
        summaries.append(summary)
    return summaries


def performance(
    group: VariantGroup, platform: Platform, throughput: Throughput, wall_s: float, measure_peak: bool
) -> dict[str, Any]:
    """Returns speed, memory and platform of a group for its summaries; `measure_peak`: also of matmuls, for mfu."""
    config, network, seconds = group.config, group.network, throughput.call
    mfu = None
    if seconds is not None and measure_peak:
        lanes = len(group.variants) if group.vmapped else 1
        peak = group.mesh.size * platforms.matmul_peak(network.dtype)
        mfu = lanes * model_flops(network, config.data.batch) / seconds / peak
    return {
        # For one call: variants called in turn share the time of a step, vmapped ones each take all of it.
        "steps_per_s": None if seconds is None else 1.0 / seconds,
        "tokens_per_s": None if seconds is None else config.data.batch * config.data.context / seconds,
        "wall_s": wall_s,
        "peak_bytes": platforms.peak_bytes(platform),
        "mfu": mfu,
        "task": network.task,
        "platform": platform.label,
        "dtype": network.dtype,
        "versions": platforms.versions(),
    }


def summary_of(metrics: RunMetrics, timing: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Returns the content of summary.json (docs/tags.md); `reason`: done, nonfinite, verdict, or `signal N`."""
    series, config = metrics.series, metrics.variant.config

    def values(tag: str) -> list[float]:
        return series[tag][1].tolist() if tag in series else []

    def last(tag: str) -> float | None:
        """The value that was logged last; None where that is not finite, whatever it was before."""
        return next((v for v in values(tag)[-1:] if math.isfinite(v)), None)

    losses = values("loss/train")
    steps = int(series["loss/train"][0][-1]) if losses else 0
    still_open = max((step for step, row in metrics.open_rows.items() if "loss/train" in row), default=0)
    if still_open > steps:  # stopped by a signal: the row of the last step waits for what a resumption adds
        steps = still_open
        losses.append(metrics.last_loss)
    evaluated = int(series["loss/val"][0][-1]) if "loss/val" in series else None
    finite = [v for v in losses if math.isfinite(v)]
    final = {tag: last(tag) if evaluated == steps else None for tag in ("loss/val", "loss/val_ema", "accuracy/val")}
    verdict, first, end = metrics.verdict(), metrics.first_verdict, metrics.last_verdict
    skipped = metrics.nonfinite.skipped  # perhaps under another policy, before a resumption
    return {
        "variant": metrics.variant.name,
        "steps": steps,
        "tokens": steps * config.data.batch * config.data.context,
        "loss_first": finite[0] if finite else None,
        "loss_train": losses[-1] if losses and math.isfinite(losses[-1]) else None,
        "loss_val": final["loss/val"],
        "best_val": min(filter(math.isfinite, values("loss/val")), default=None),
        **({"loss_val_ema": final["loss/val_ema"]} if "loss/val_ema" in series else {}),
        "accuracy_val": final["accuracy/val"],
        "floors": {tag.removeprefix("loss/"): last(tag) for tag in series if tag.startswith("loss/floor")},
        "first_nonfinite_step": metrics.nonfinite.first,
        "nonfinite": metrics.nonfinite.cause,
        **({"skipped_steps": skipped} if skipped or config.train.on_nonfinite == "skip" else {}),
        "spikes": [{"step": step, "diagnosis": text} for step, text in metrics.diagnoses],
        **timing,
        "verdict": None if verdict is None else verdict.as_json(),
        "verdict_start": None if first is None else first.as_json(),
        "verdict_end": None if end is None else end.as_json(),
        "exit_reason": reason,
    }


def write_report(root: Path, console: Console) -> Path | None:
    """Writes report.html, report.md and the means over seeds of all runs in `root`; returns where the page is.

    Whatever fails is a warning: training is done.
    """
    page = root / "report.html"
    try:
        logged = sum(log.stat().st_size for log in root.glob("*/metrics.jsonl"))
        if logged > MAX_REPORT_BYTES:
            console.note(f"no report yet, of {size(logged)} of logs:")
            console.command(command("compare", root, "--html", page))
            return None
        comparison = compare([root])
        for line in comparison.left_out:
            console.warn(line)
        write_atomically(root / "report.md", as_markdown(comparison))
        write_atomically(page, as_html(comparison))
        shown = any(root.glob("*/events.out.tfevents*"))  # else log.tensorboard is false
        if shown and (names := write_means(root, comparison.groups)):
            console.note(f"means over seeds in TensorBoard: NAME@mean, @low and @high of {', '.join(map(repr, names))}")
    except Exception as error:  # of a drawing library, a full disk, a file edited by hand: nothing is lost by it
        console.warn(f"no report: {str(error) or type(error).__name__}")
        return None
    return page


def unmet(
    expect: Mapping[str, Mapping[str, Any]],
    summaries: Sequence[Mapping[str, Any]],
    logged: Mapping[str, Run],
) -> list[str]:
    """Returns one line for each promise that a run broke.

    Args:
        expect: by variant and tag, [low, high] or a word. A promise is about a figure of the verdict or of
            summary.json, or else about the last value of a logged tag.
        summaries: of the variants that ended.
        logged: the log of each variant that has promises.
    """
    lines = []
    for summary in summaries:
        name, verdict = summary["variant"], summary["verdict"] or {}
        for tag, wanted in expect.get(name, {}).items():
            got = verdict.get("state") if tag == "verdict" else None
            if tag != "verdict":
                got = verdict[tag] if tag in verdict else summary.get(_SUMMARY_KEYS.get(tag) or tag)
            if got is None and summary.get("exit_reason") != "nonfinite":  # its last figures are not of its end
                got = logged[name].last(tag)
            if got is None and tag not in {*summary, *_SUMMARY_KEYS, *logged[name].steps}:
                hint = did_you_mean(tag, {*logged[name].steps, *_SUMMARY_KEYS})
                lines.append(f"{name}: {tag}: was never logged{hint}")
            elif isinstance(wanted, str):
                if got != wanted:
                    lines.append(f"{name}: {tag}: expected {wanted}, got {got}")
            elif not isinstance(got, int | float) or not wanted[0] <= got <= wanted[1]:
                lines.append(f"{name}: {tag}: expected between {wanted[0]} and {wanted[1]}, got {got}")
    return lines
