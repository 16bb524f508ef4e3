"""Results of `deltaflow probe` as tables, from plain data in the format of `--json`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..gradflow.verdict import with_plain_name
from ..text import MISSING, norm, number
from .tables import Table, share


def probe_table(result: Mapping[str, Any]) -> Table:
    """Returns the gradient flow of one batch: a row for each depth l, from 0 (the embedding's output) to L.

    Args:
      result: the object that `deltaflow probe --json` writes.
    """
    delta, without, grad = result["delta"], result.get("delta_without"), result["grad"]
    matrices = [key for key in ("attn_q", "attn_k", "attn_v", "attn_o", "mlp_in", "mlp_gate", "mlp_out") if key in grad]
    columns = ["l", "|δ_l|", "gain", "|δ_l| no skips", "act rms", "|grad|"]
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
    """Returns the readings of instruments: a line for each single number, and a table with a row for each layer.

    A reading by parts is shown for the whole layer, a line through the weights by the place where it is lowest.
    """
    layers: dict[str, Sequence[float | None]] = {}
    lines: list[tuple[str, str]] = []
    for name, reading in readings.items():
        if isinstance(reading, Mapping) and "at" in reading:
            points = [(loss, at) for at, loss in zip(reading["at"], reading["loss"], strict=True) if loss is not None]
            level = len({loss for loss, _ in points}) < 2
            lines.append((f"{name} is lowest at", MISSING if level else number(min(points)[1])))
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
    """Returns the gradient flow of several variants: a row for each, with delta at five depths."""
    parts = {"0": 0.0, "L/4": 0.25, "L/2": 0.5, "3L/4": 0.75, "L": 1.0}
    columns = ["variant", "loss", *(f"|δ| at {part}" for part in parts), "per-layer gain", "q,k share", "verdict"]
    rows = []
    for result in results:
        delta, verdict, last = result["delta"], result["verdict"], len(result["delta"]["norm"]) - 1
        norms = [_norm_at(delta, math.floor(part * last + 0.5)) for part in parts.values()]
        gain = number(verdict["per_layer_gain"], digits=3)
        state = with_plain_name(verdict["state"])
        rows.append([result["variant"], number(result["loss"]), *norms, gain, share(verdict), state])
    return columns, rows


def _norm_at(norms: Mapping[str, Any], depth: int) -> str:
    return norm(_at(norms.get("norm"), depth), _at(norms.get("log10_norm"), depth))


def _at(values: Sequence[float | None] | None, index: int) -> float | None:
    return values[index] if values is not None and index < len(values) else None
