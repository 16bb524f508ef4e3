"""Tables of times: medians, and ratios within a round."""

from collections.abc import Callable, Sequence
from statistics import median

from scripts.bench.contest import Lane

NONE = "-"


def paired(over: Lane, under: Lane, ratio: Callable[[float, float], float] = lambda a, b: a / b) -> float:
    """Returns the median over the rounds of `ratio(seconds of over, seconds of under)`, both of the same round."""
    return median(ratio(a, b) for a, b in zip(over.seconds, under.seconds, strict=True))


def table(lanes: Sequence[Lane], wanted: str) -> tuple[list[str], list[list[str]]]:
    """Returns the columns and a row for each lane, without columns that are empty.

    Times are divided by those of the lane called `wanted`, or else of the first that trains. Lanes without tokens are
    starts or compilations, or, in a table that has lanes with tokens, the matmul peaks.
    """
    running = [(lane, lane.facts) for lane in lanes if lane.facts and not lane.trouble]
    against, measure = max(
        running, key=lambda each: (each[0].entry.name == wanted, each[1].tokens), default=(None, None)
    )
    columns = ["program", "ms/step" if measure and measure.tokens else "seconds", "min", "tokens/s"]
    columns += [f"time / {against.entry.label if against else 'none'}", "GFLOP/s", "of peak", "made with"]
    scale = 1e3 if measure and measure.tokens else 1.0
    rows = [[lane.entry.label, *[NONE] * 6, lane.trouble] for lane in lanes]
    for row, lane in zip(rows, lanes, strict=True):
        if lane.trouble or lane.facts is None or against is None or measure is None:
            continue
        facts, seconds = lane.facts, median(lane.seconds)
        if facts.tokens == measure.tokens:
            row[1:3] = f"{scale * seconds:.2f}", f"{scale * min(lane.seconds):.2f}"
            row[4] = f"{paired(lane, against):.2f}"
        if facts.tokens:
            row[3] = f"{facts.tokens / seconds:,.0f}"
        if facts.flops:
            row[5] = f"{facts.flops / seconds / 1e9:,.0f}"
        # The peak is the fastest matmul of the same dtype, in either framework.
        peaks = [each for each in running if each[1].dtype == facts.dtype and each[1].flops and not each[1].tokens]
        if peaks:
            peak, product = max(peaks, key=lambda each: each[1].flops / median(each[0].seconds))
            share = facts.flops / product.flops
            row[6] = f"{paired(peak, lane, lambda a, b, share=share: share * a / b):.0%}"
        row[7] = f"{facts.dtype}, {facts.versions}"
    filled = [index for index in range(8) if index in (0, 7) or any(row[index] != NONE for row in rows)]
    return [columns[index] for index in filled], [[row[index] for index in filled] for row in rows]
