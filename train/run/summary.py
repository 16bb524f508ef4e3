"""What is written when a group has ended: the last rows, pictures, the verdict, summary.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..disk import write_json
from ..report.tables import verdict_text
from .metrics import Record


def closed(records: Sequence[Record], timing: Mapping[str, Any], signal: int | None) -> list[dict[str, Any]]:
    """One summary a variant. After a `signal` the logs stay open for what a resumption adds. Raises UserError."""
    summaries = []
    for record in records:
        whole = signal is None or record.ended is not None
        if whole:
            record.write_before(float("inf"))
        reason = "done" if signal is None else f"signal {signal}"
        summary = record.summary(timing, reason if record.ended is None else "nonfinite")
        if whole:
            record.pictures()
            if summary["verdict"] is not None:
                record.tracker.text("verdict", summary["steps"], verdict_text(summary["verdict"]))
            record.tracker.finish(_final_metrics(summary))
        write_json(record.directory / "summary.json", summary)
        summaries.append(summary)
    return summaries


def _final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    names = {"loss/train": "loss_train", "loss/val": "loss_val", "accuracy/val": "accuracy_val"}
    return {tag: summary[key] for tag, key in names.items() if summary[key] is not None}
