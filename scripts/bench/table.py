"""From times to tables: medians, ratios pair by pair, and text for a terminal or a markdown file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from .contest import Lane
from .contestant import Facts

NONE = "-"


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Columns padded with blanks; the first and the last flush left, figures flush right."""
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

    def markdown(self) -> str:
        last = len(self.header) - 1
        rule = ["---" if i in (0, last) else "---:" for i in range(len(self.header))]
        escaped = ([cell.replace("|", "\\|") for cell in row] for row in (self.header, rule, *self.rows))
        return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def paired(over: Lane, under: Lane, ratio: Callable[[float, float], float] = lambda a, b: a / b) -> float:
    """The median over the rounds of `ratio(seconds of over, seconds of under)`, both of the same round."""
    return median(ratio(a, b) for a, b in zip(over.seconds, under.seconds, strict=True))


def reference(lanes: Sequence[Lane], wanted: str) -> Lane | None:
    """The lane that the others are compared with: the wanted one, or else the first with times."""
    running = [lane for lane in lanes if not lane.trouble]
    return next((lane for lane in running if lane.entry.name == wanted), running[0] if running else None)


def peak_of(lanes: Sequence[Lane], facts: Facts) -> Lane | None:
    """The fastest matmul of the same dtype, in whichever framework."""
    peaks = [p for p in lanes if p.facts and not p.trouble and not p.facts.tokens and p.facts.dtype == facts.dtype]
    return max(peaks, key=lambda lane: rate(lane), default=None)


def rate(lane: Lane) -> float:
    """FLOP/s, from the median time."""
    assert lane.facts is not None
    return lane.facts.flops / median(lane.seconds)


def speed_table(lanes: Sequence[Lane], wanted: str) -> Table:
    """The contest: training programs and matmul peaks (the lanes without tokens)."""
    against = reference([lane for lane in lanes if lane.facts is None or lane.facts.tokens], wanted)
    name = against.entry.label if against else "none"
    header = ("program", "ms/step", "min", "tokens/s", f"time / {name}", "GFLOP/s", "of peak", "made with")
    rows = []
    for lane in lanes:
        facts = lane.facts
        if facts is None or lane.trouble:
            rows.append((lane.entry.label, *[NONE] * 6, lane.trouble))
            continue
        peak = peak_of(lanes, facts)
        share = NONE
        if peak is not None and peak.facts is not None:
            scale = facts.flops / peak.facts.flops
            share = f"{paired(peak, lane, lambda a, b, scale=scale: scale * a / b):.0%}"
        if facts.tokens:
            seconds = median(lane.seconds)
            times = (f"{1e3 * seconds:.2f}", f"{1e3 * min(lane.seconds):.2f}", f"{facts.tokens / seconds:,.0f}")
            times = (*times, f"{paired(lane, against):.2f}" if against else NONE)
        else:
            times = (NONE,) * 4
        rows.append((lane.entry.label, *times, f"{rate(lane) / 1e9:,.0f}", share, f"{facts.dtype}, {facts.versions}"))
    return Table(header, tuple(rows))


def seconds_table(lanes: Sequence[Lane], wanted: str) -> Table:
    """Plain times, of starts or compilations."""
    against = reference(lanes, wanted)
    name = against.entry.label if against else "none"
    rows = []
    for lane in lanes:
        if lane.facts is None or lane.trouble:
            rows.append((lane.entry.label, *[NONE] * 3, lane.trouble))
            continue
        ratio = f"{paired(lane, against):.2f}" if against else NONE
        times = (f"{median(lane.seconds):.2f}", f"{min(lane.seconds):.2f}", ratio)
        rows.append((lane.entry.label, *times, f"{lane.facts.dtype}, {lane.facts.versions}"))
    return Table(("program", "seconds", "min", f"time / {name}", "made with"), tuple(rows))
