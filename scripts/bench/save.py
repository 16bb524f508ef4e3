"""Time of a save and of a restore, of several source trees in turn (docs/checkpoints.md).

    git worktree add /tmp/before COMMIT
    python -m scripts.bench.save . /tmp/before --megabytes 11 --rounds 20

Each tree has processes of its own that import its own `train`; they take turns, so that other load affects all of them.
They write to TMPDIR.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from scripts.bench.contest import Entry, Worker, contest
from scripts.bench.contestant import Contestant, Facts


def contestant(part: str, megabytes: float) -> Contestant:
    """A step is one save, or one restore (`part`), of a state of this size."""
    import jax

    from train.core.state import State
    from train.store.checkpoint import Checkpoints

    rng = np.random.default_rng(0)
    size = int(megabytes * 1e6 / 4 / 3 / 16)  # parameters and two moments
    params = {f"layer_{i}": rng.normal(size=size).astype(np.float32) for i in range(16)}
    state = State(params, (params, params), np.int32(0))  # pyright: ignore[reportArgumentType]
    checkpoints, step = Checkpoints(Path(mkdtemp())), 0

    def save() -> None:
        nonlocal step
        step += 1
        checkpoints.save(state._replace(step=np.int32(step)), {"row": {"loss/val": 1.0}})

    def restore() -> None:
        jax.block_until_ready(checkpoints.restore(1, state))

    def run(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            save() if part == "save" else restore()
        return time.perf_counter() - start

    if part == "restore":
        save()
    return Contestant(run, Facts("", "", "float32"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.save", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trees", nargs="+", type=Path, help="checkouts of this project")
    parser.add_argument("--megabytes", type=float, default=11.0, help="of a state (default: 11)")
    parser.add_argument("--rounds", type=int, default=20, help="saves of each tree (default: 20)")
    options = parser.parse_args()
    arguments = [{"part": part, "megabytes": options.megabytes} for part in ("save", "restore")]
    entries = [
        Entry(f"{tree}: {each['part']}", str(tree.resolve()), "scripts.bench.save", each)
        for tree in options.trees
        for each in arguments
    ]

    def start(entry: Entry) -> Worker:
        return Worker(entry, 600.0, {"JAX_PLATFORMS": "cpu"}, Path(entry.label))

    for lane in contest(entries, start, options.rounds, seconds=0.0, pause=0.0):
        seconds = lane.seconds
        print(
            f"{lane.entry.name} "
            + (lane.trouble or f"{1e3 * statistics.median(seconds):.0f} ms (fastest {1e3 * min(seconds):.0f})")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
