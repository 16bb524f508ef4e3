"""Tables of times: medians, and ratios within a round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from scripts.bench.contest import Lane

NONE = "-"


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Returns columns padded with blanks; the first and the last flush left, figures flush right."""
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in range(len(self.header))]
        last = len(widths) - 1

        def line(row: Sequence[str]) -> str:
            cells = (
                cell.ljust(width) if i in (0, last) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            return "  ".join(cells).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([line(self.header), rule, *map(line, self.rows)])


def paired(over: Lane, under: Lane, ratio: Callable[[float, float], float] = lambda a, b: a / b) -> float:
    """Returns the median over the rounds of `ratio(seconds of over, seconds of under)`, both of the same round."""
    return median(ratio(a, b) for a, b in zip(over.seconds, under.seconds, strict=True))


def reference(lanes: Sequence[Lane], wanted: str) -> Lane | None:
    """Returns the lane that the others are compared with: the wanted one, or else the first with times."""
    running = [lane for lane in lanes if not lane.trouble]
    return next((lane for lane in running if lane.entry.name == wanted), running[0] if running else None)


def rate(lane: Lane) -> float:
    """Returns FLOP/s, from the median time."""
    assert lane.facts is not None
    return lane.facts.flops / median(lane.seconds)


def speed_table(lanes: Sequence[Lane], wanted: str) -> Table:
    """Returns the table of training programs and matmul peaks (the lanes without tokens)."""
    against = reference([lane for lane in lanes if lane.facts is None or lane.facts.tokens], wanted)
    header = ("program", "ms/step", "min", "tokens/s", f"time / {label(against)}", "GFLOP/s", "of peak", "made with")
    rows = []
    for lane in lanes:
        facts = lane.facts
        if facts is None or lane.trouble:
            rows.append((lane.entry.label, *[NONE] * 6, lane.trouble))
            continue
        share, times = NONE, (NONE,) * 4
        # The peak is the fastest matmul of the same dtype, in either framework.
        matmuls = [p for p in lanes if p.facts and not (p.trouble or p.facts.tokens) and p.facts.dtype == facts.dtype]
        if peak := max(matmuls, key=rate, default=None):
            scale = facts.flops / peak.facts.flops if peak.facts else 0.0
            share = f"{paired(peak, lane, lambda a, b, scale=scale: scale * a / b):.0%}"
        if facts.tokens:
            seconds = median(lane.seconds)
            times = (f"{1e3 * seconds:.2f}", f"{1e3 * min(lane.seconds):.2f}", f"{facts.tokens / seconds:,.0f}")
            times = (*times, f"{paired(lane, against):.2f}" if against else NONE)
        rows.append((lane.entry.label, *times, f"{rate(lane) / 1e9:,.0f}", share, f"{facts.dtype}, {facts.versions}"))
    return Table(header, tuple(rows))


def seconds_table(lanes: Sequence[Lane], wanted: str) -> Table:
    """Returns a table of plain times, of starts or compilations."""
    against = reference(lanes, wanted)
    rows = []
    for lane in lanes:
        if lane.facts is None or lane.trouble:
            rows.append((lane.entry.label, *[NONE] * 3, lane.trouble))
            continue
        ratio = f"{paired(lane, against):.2f}" if against else NONE
        times = (f"{median(lane.seconds):.2f}", f"{min(lane.seconds):.2f}", ratio)
        rows.append((lane.entry.label, *times, f"{lane.facts.dtype}, {lane.facts.versions}"))
    return Table(("program", "seconds", "min", f"time / {label(against)}", "made with"), tuple(rows))


def label(lane: Lane | None) -> str:
    return lane.entry.label if lane else "none"
