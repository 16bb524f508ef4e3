"""Settings of this process (garbage collection, malloc), and its age."""

import ctypes
import gc
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

_IMPORTED = time.monotonic()
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def tune() -> None:
    """Settings for a process that traces, compiles, and takes steps; to be called once, at its start."""
    gc.set_threshold(50_000, 20, 50)  # nearly all objects of imports and tracing stay: collecting took 5 % of the time
    # XLA:CPU allocates and frees a program's temporaries at each call. glibc would return blocks of more than 32 MB to
    # the kernel, which zeroes every page of the next one: 3 to 9 % of a step (docs/benchmarks.md).
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def trim() -> None:
    """Returns freed memory to the system, which would count what `tune` makes malloc keep as in use."""
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def age() -> float:
    """Returns seconds since this process started (since this module was imported, where /proc is missing)."""
    with suppress(OSError, ValueError, IndexError):
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(stat.rsplit(")", 1)[1].split()[19])  # from boot to its start
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - _IMPORTED
