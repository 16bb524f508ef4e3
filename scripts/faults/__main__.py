"""Breaks runs on purpose, hundreds of times, and counts how often the promises of docs/faults.md were kept.

    python scripts/faults                        # everything: within 15 minutes on two cores
    python scripts/faults --scale 0.01           # a hundredth of the trials
    python scripts/faults --only damage,signals  # some sweeps
    python scripts/faults --write docs/faults.md # replaces the table in that page

Exits with 1 when one promise was broken. The same seed breaks the same places. Each module of sweeps has a
process of its own.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

if not __package__:  # started as a folder, which Python then puts first on its path; the package lies two above
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.faults.sweep import markdown, rows_of  # noqa: E402

MODULES = ("calls", "signals", "configs", "damage")  # the longest first
BEGIN, END = "<!-- faults -->", "<!-- /faults -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 when a promise was broken, or 2 when the arguments fit no sweep."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the trials to do, above 0 (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at a time (default 2)")
    parser.add_argument("--only", default=",".join(MODULES), help=f"of {', '.join(MODULES)}, with commas between")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    options = parser.parse_args(argv)
    names = options.only.split(",")
    # Programs that run a few steps: an optimized one takes longer to compile than it ever gains.
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    if unknown := [name for name in names if name not in MODULES]:
        print(f"--only: unknown {', '.join(unknown)}; there are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    context = multiprocessing.get_context("spawn")  # what one sweep sets up is nothing to the others
    with ProcessPoolExecutor(min(options.jobs, len(names)), context, max_tasks_per_child=1) as pool:
        running = {name: pool.submit(rows_of, name, options.scale, options.seed) for name in names}
        for future in as_completed(running.values()):
            print("\n".join(future.result()[1]), flush=True)
    rows = [row for name in names for row in running[name].result()[0]]
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{markdown(rows)}{END}{after}", encoding="utf-8")
    return 1 if any(row.held < row.trials for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
