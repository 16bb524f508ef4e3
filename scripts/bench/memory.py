"""Memory that a training step takes on a CPU, compared with the estimate before it ran (docs/limits.md).

    python -m scripts.bench.memory configs/shakespeare_char_cpu.yaml data.batch=512 train.steps_per_call=1

Resident memory is read every 5 ms while the step's program runs, less what there was before it.
"""

import argparse
import ctypes
import os
import sys
import threading
import time
from pathlib import Path

import jax

from data.batches import window_starts
from train.config.load import ConfigError
from train.device.memory import need
from train.text import size

from .project import TOKENS, programs_of

INTERVAL_S = 0.005
CALLS = 5


def main() -> int:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.memory", description=summary)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        programs, variant, K = programs_of(options.config, *options.overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    data, watched = variant.config.data, variant.config.watch.every > 0
    batches = window_starts(TOKENS, data.context, data.batch, 0, 0, K)
    programs.prepare_dispatch(jax.ShapeDtypeStruct(batches.shape, batches.dtype), watched)
    estimated = need(programs, programs.corpus).passing
    states = jax.block_until_ready(programs.init())
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or the step would reuse what the compiler freed
    before, highest, done = resident(), 0, threading.Event()

    def read() -> None:
        nonlocal highest
        while not done.wait(INTERVAL_S):
            highest = max(highest, resident())

    reader = threading.Thread(target=read)
    reader.start()
    states, *_ = jax.block_until_ready(programs.dispatch(states, [batches], watched))
    done.set()
    reader.join()
    used, seconds = highest - before, []
    for _ in range(CALLS):
        start = time.perf_counter()
        states, *_ = jax.block_until_ready(programs.dispatch(states, [batches], watched))
        seconds.append(time.perf_counter() - start)
    print(
        f"a call of {K} steps: estimated {size(estimated)}, used {size(used)}, {used / estimated:.2f} of the estimate; "
        f"{min(seconds) / K * 1e3:.1f} ms a step, the best of {CALLS} calls"
    )
    return 0


def resident() -> int:
    """Returns the bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    sys.exit(main())
