"""Time of a save and of a restore, of several source trees in turn (docs/checkpoints.md).

    git worktree add /tmp/before COMMIT
    python -m scripts.bench.save . /tmp/before --megabytes 11 --rounds 20

Each tree is a process of its own that imports its own `train`; they take turns, so that load from elsewhere meets all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

WORKER = """
import json, sys, tempfile, time
from pathlib import Path
import jax, numpy as np
from train.core.state import State
from train.store.checkpoint import Checkpoints

rng = np.random.default_rng(0)
sizes = np.full(16, float(sys.argv[1]) * 1e6 / 4 / 3 / 16)  # parameters and two moments
params = {f"layer_{i}": rng.normal(size=int(size)).astype(np.float32) for i, size in enumerate(sizes)}
state = State(params, (params, params), np.int32(0))
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
    checkpoints, device = Checkpoints(Path(folder)), jax.devices()[0]
    for step, _ in enumerate(sys.stdin, 1):
        began = time.perf_counter()
        checkpoints.save(state._replace(step=np.int32(step)), {"row": {"loss/val": 1.0}})
        saved = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(step, state, device))
        print(json.dumps([saved - began, time.perf_counter() - saved]), flush=True)
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.save", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trees", nargs="+", type=Path, help="checkouts of this project")
    parser.add_argument("--megabytes", type=float, default=11.0, help="of a state (default: 11)")
    parser.add_argument("--rounds", type=int, default=20, help="saves of each tree (default: 20)")
    parser.add_argument("--folder", default="/tmp", help="on the disk to write to (default: /tmp)")
    options = parser.parse_args()
    workers = [_start(tree, options.megabytes, options.folder) for tree in options.trees]
    times: list[list[list[float]]] = [[] for _ in workers]
    for turn in range(options.rounds + 1):
        for worker, mine in zip(workers, times, strict=True):
            assert worker.stdin is not None and worker.stdout is not None
            print(file=worker.stdin, flush=True)
            answer = json.loads(worker.stdout.readline())
            mine += [answer] if turn else []  # the first imports and makes folders
    for tree, worker, mine in zip(options.trees, workers, times, strict=True):
        worker.communicate()
        for name, of in zip(("save", "restore"), zip(*mine, strict=True), strict=True):
            print(f"{tree}: {name} {1e3 * statistics.median(of):.0f} ms (fastest {1e3 * min(of):.0f})")
    return 0


def _start(tree: Path, megabytes: float, folder: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(tree.resolve()), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WORKER, str(megabytes), folder]
    return subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, text=True
    )


if __name__ == "__main__":
    sys.exit(main())
