"""Breaks runs on purpose, thousands of times, and counts how often the promises of docs/faults.md were kept.

    python scripts/torture                        # everything, in full: most of an hour on two cores
    python scripts/torture --jobs 1               # one sweep after the other
    python scripts/torture --scale 0.01           # a hundredth of the trials
    python scripts/torture --only bits,signals    # some sweeps
    python scripts/torture --write docs/faults.md # replaces the table in that page

Exits with 1 when one promise was broken. The same seed breaks the same places. Each sweep has a process of its own.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

if not __package__:  # started as a folder, which Python then puts first on its path; the package lies two above
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.torture.row import markdown  # noqa: E402
from scripts.torture.swept import swept  # noqa: E402

# Each is a module beside this one with `rows(scale, seed) -> Iterable[Row]`; scale 1 does every trial.
# Longest first, so that none is left alone at the end.
SWEEPS: tuple[str, ...] = (
    "kills",
    "disks",
    "signals",
    "powercuts",
    "configs",
    "topology",
    "hostile",
)
BEGIN, END = "<!-- torture -->", "<!-- /torture -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 when a promise was broken, or 2 when the arguments fit no sweep."""
    options = _parse(argv)
    names = SWEEPS if options.only is None else tuple(options.only.split(","))
    unknown = [name for name in names if name not in SWEEPS]
    if unknown:
        print(f"--only: unknown {', '.join(unknown)}; there are {', '.join(SWEEPS)}", file=sys.stderr)
        return 2
    # A new process a sweep: what one sets up, in JAX or in the environment, is nothing to the others.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(options.jobs, len(names)), context, max_tasks_per_child=1) as pool:
        running = {name: pool.submit(swept, name, options.scale, options.seed) for name in names}
        for future in as_completed(running.values()):
            print("\n".join(future.result().told), flush=True)
    rows = [row for name in names for row in running[name].result().rows]
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{markdown(rows)}{END}{after}", encoding="utf-8")
    return 1 if any(row.held < row.trials for row in rows) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the trials to do, above 0 (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at a time (default 2)")
    parser.add_argument("--only", help="names of sweeps, with commas between")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
