"""Tables of text: the end of training, and the gradient flow of one batch."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..text import MISSING, norm, number, right_aligned

Table = tuple[list[str], list[list[str]]]  # column titles, and rows of as many cells


def closing_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """The end of training: a row for each variant's summary.json; what a summary lacks is `-`.

    The best possible loss and the accuracy are shown where one of the variants knows the one or is about the other.
    """
    shown: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "variant": lambda summary: str(summary.get("variant", MISSING)),
        "steps": lambda summary: number(summary.get("steps")),
        "loss/train": lambda summary: number(summary.get("loss_train")),
        "loss/val": lambda summary: number(summary.get("loss_val")),
    }
    known = any("floor" in (summary.get("floors") or {}) for summary in summaries)
    if known:
        shown["loss/floor"] = lambda summary: number((summary.get("floors") or {}).get("floor"))
    if known or any(summary.get("task") == "classification" for summary in summaries):
        shown["accuracy/val"] = lambda summary: number(summary.get("accuracy_val"))
    # At the first and at the last watched step: what a design does, and what training has made of it.
    shown |= {
        "|δ_0|/|δ_L|: start → end": lambda summary: _both(
            summary, lambda v: number(v.get("ratio"), v.get("log10_ratio"), digits=2, scientific=True)
        ),
        "per-layer gain: start → end": lambda summary: _both(
            summary, lambda v: number(v.get("per_layer_gain"), digits=3)
        ),
        "q,k share: start → end": lambda summary: _both(summary, share),
        "verdict": lambda summary: str((summary.get("verdict") or {}).get("state", MISSING)),
    }
    return list(shown), [[cell(summary) for cell in shown.values()] for summary in summaries]


def share(verdict: Mapping[str, Any]) -> str:
    """The gradient of Q and K over that of V and O; at most so much where rounding has a part in it."""
    text = number(verdict.get("qk_share"), digits=2)
    return f"≤{text}" if verdict.get("qk_rounded") and text != MISSING else text


def _both(summary: Mapping[str, Any], cell: Callable[[Mapping[str, Any]], str]) -> str:
    start, end = (cell(summary.get(name) or {}) for name in ("verdict_start", "verdict_end"))
    return MISSING if start == end == MISSING else f"{start} → {end}"


def verdict_lines(variant: str, verdict: Mapping[str, Any]) -> list[str]:
    """State and evidence of a verdict, and what to try where something is wrong."""
    lines = [f"{variant}: {verdict['state']}: {verdict['why']}"]
    return lines + ([f"  try {verdict['try']}"] if verdict.get("try") else [])


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """The same as markdown, for TensorBoard."""
    parts = [f"**{verdict['state']}**: {verdict['why']}"]
    if verdict.get("log10_gain_at_100") is not None:
        gain = number(verdict.get("gain_at_100"), verdict["log10_gain_at_100"], digits=2, scientific=True)
        parts.append(f"Through 100 blocks like these delta would become {gain} times as large.")
    if verdict.get("try"):
        parts.append(f"Try {verdict['try']}")
    return "\n\n".join(parts)


def probe_table(result: Mapping[str, Any]) -> Table:
    """The gradient flow of one batch: a row for each depth l, from 0 (the embedding's output) to L.

    Args:
      result: the object that `deltaflow probe --json` writes.
    """
    delta, without, grad = result["delta"], result.get("delta_without"), result["grad"]
    matrices = [key for key in ("attn_q", "attn_k", "attn_v", "attn_o", "mlp_in", "mlp_gate", "mlp_out") if key in grad]
    columns = ["l", "|δ_l|", "gain", "|δ_l| without", "act rms", "|grad|"]
    rows = [
        [
            str(depth),
            _norm_at(delta, depth),
            number(_at(result.get("gain"), depth)),
            _norm_at(without, depth) if without else MISSING,
            number(_at(result.get("act", {}).get("rms"), depth)),
            number(_at(grad.get("layer"), depth)),
            *(number(_at(grad[key], depth)) for key in matrices),
        ]
        for depth in range(len(delta["norm"]))
    ]
    return columns + [key.removeprefix("attn_") for key in matrices], rows


def instruments_table(readings: Mapping[str, Any]) -> tuple[list[tuple[str, str]], Table]:
    """What instruments read at one place: lines for what is one number, and a row for each layer of what is many.

    Of a reading by parts the whole layer is shown; of a line through the weights, where it is lowest.
    """
    layers: dict[str, Sequence[float | None]] = {}
    lines: list[tuple[str, str]] = []
    for name, reading in readings.items():
        if isinstance(reading, Mapping) and "at" in reading:
            known = [(loss, at) for at, loss in zip(reading["at"], reading["loss"], strict=True) if loss is not None]
            flat = len({loss for loss, _ in known}) < 2
            lines.append((f"{name} is lowest at", MISSING if flat else number(min(known)[1])))
            continue
        parts = reading if isinstance(reading, Mapping) else {"layer": reading}
        for part, values in parts.items():
            if part == "layer" and isinstance(values, list):
                layers[name] = values
            elif not isinstance(values, list):
                lines.append((name if part == "layer" else f"{name}/{part}", number(values)))
    depth = max((len(values) for values in layers.values()), default=0)
    rows = [[str(row), *(number(_at(values, row)) for values in layers.values())] for row in range(depth)]
    return lines, (["l", *layers], rows)


def flow_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """The gradient flow of several variants side by side: a row for each, delta at five depths of L blocks each."""
    parts = {"0": 0.0, "L/4": 0.25, "L/2": 0.5, "3L/4": 0.75, "L": 1.0}
    columns = ["variant", "loss", *(f"|δ| at {part}" for part in parts), "per-layer gain", "q,k share", "verdict"]
    return columns, [_flow_row(result, list(parts.values())) for result in results]


def _flow_row(result: Mapping[str, Any], parts: Sequence[float]) -> list[str]:
    delta, verdict = result["delta"], result["verdict"]
    last = len(delta["norm"]) - 1
    return [
        result["variant"],
        number(result["loss"]),
        *(_norm_at(delta, math.floor(part * last + 0.5)) for part in parts),
        number(verdict["per_layer_gain"], digits=3),
        share(verdict),
        verdict["state"],
    ]


def _norm_at(norms: Mapping[str, Any], depth: int) -> str:
    return norm(_at(norms.get("norm"), depth), _at(norms.get("log10_norm"), depth))


def _at(values: Sequence[float | None] | None, index: int) -> float | None:
    return values[index] if values is not None and index < len(values) else None


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table; the columns of numbers are right-aligned."""
    marks = ["---:" if right else "---" for right in right_aligned(columns, rows)]
    lines = [columns, marks, *rows]
    return "".join("| " + " | ".join(text(cell) for cell in line) + " |\n" for line in lines)


def text(content: str) -> str:
    """Text for markdown: on one line, ends no cell of a table, and is no markup.

    >>> text("a|b <i> [x](y)")
    'a\\\\|b &lt;i> \\\\[x](y)'
    """
    for mark, instead in (("\\", "\\\\"), ("|", "\\|"), ("&", "&amp;"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\[")):
        content = content.replace(mark, instead)
    return " ".join(content.split())
