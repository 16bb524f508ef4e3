"""Memory settings of this process, and start times of processes."""

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
    """Tunes garbage collection and malloc for training. Call once, at the start of the process."""
    gc.set_threshold(50_000, 20, 50)  # imports and tracing leave little garbage; collections took 5 %
    # XLA:CPU allocates a program's temporary memory at every call and frees it. glibc returns blocks above 32 MB to the
    # kernel, which zeroes each page of the next allocation: 3 to 9 % of a step (docs/benchmarks.md).
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def boot() -> str | None:
    """Returns the id of the kernel's current boot, or None where there is no /proc."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return None


def started(pid: int) -> int | None:
    """Returns the start time of a process in clock ticks since boot, or None without such a process or without /proc.

    It tells apart processes that reuse a pid.
    """
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rsplit(")", 1)[1].split()[19])
    return None


def age() -> float:
    """Returns the seconds since this process started, or since this module was imported where there is no /proc."""
    ticks = started(os.getpid())
    with suppress(OSError, ValueError, IndexError):
        if ticks is not None:
            uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
            return uptime - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - _IMPORTED
