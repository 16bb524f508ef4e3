"""Breaks runs on purpose, thousands of times, and counts how often the promises of docs/faults.md were kept.

    python scripts/torture                        # everything, in full: most of an hour on two cores
    python scripts/torture --scale 0.01           # a hundredth of the trials
    python scripts/torture --only bits,signals    # some sweeps
    python scripts/torture --write docs/faults.md # replaces the table in that page

Exits with 1 when one promise was broken. The same seed breaks the same places.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a folder, which Python then puts first on its path; the package lies two above
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.torture.row import Row, markdown  # noqa: E402

# Each is a module beside this one with `rows(scale, seed) -> Iterable[Row]`; scale 1 does every trial.
SWEEPS: tuple[str, ...] = ("bits", "signals")
BEGIN, END = "<!-- torture -->", "<!-- /torture -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 when a promise was broken, or 2 when the arguments fit no sweep."""
    options = _parse(argv)
    names = SWEEPS if options.only is None else tuple(options.only.split(","))
    unknown = [name for name in names if name not in SWEEPS]
    if unknown:
        print(f"--only: unknown {', '.join(unknown)}; there are {', '.join(SWEEPS)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in names:
        began = time.monotonic()
        found = list(importlib.import_module(f"scripts.torture.{name}").rows(options.scale, options.seed))
        rows += found
        print(f"{name}: {time.monotonic() - began:.0f} s")
        for row in found:
            print(f"  {row.fault}: {row.held} of {row.trials} held {row.note}")
            for line in row.broken:
                print(f"    broken: {line}")
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{markdown(rows)}{END}{after}", encoding="utf-8")
    return 1 if any(row.held < row.trials for row in rows) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the trials to do, above 0 (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names of sweeps, with commas between")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
