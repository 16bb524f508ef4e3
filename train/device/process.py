"""How this process goes about its memory; when it and others of this machine started."""

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
    """For a process that traces, compiles and then takes steps; called once, at its start."""
    gc.set_threshold(50_000, 20, 50)  # of what imports and tracing make nearly all stays: looking for garbage was 5 %
    # XLA:CPU asks for a program's temporary memory at each call and lets go of it. glibc would hand blocks of more than
    # 32 MB back to the kernel, which zeroes every page of the next one: 3 to 9 % of a step (docs/benchmarks.md).
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def boot() -> str | None:
    """Names the time between two starts of this machine's kernel; None where the system does not tell."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return None


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot: a later one of the same number has another. None where
    there is no such process, or no /proc to tell."""
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rsplit(")", 1)[1].split()[19])
    return None


def age() -> float:
    """Seconds since this process started (since this module was imported, where /proc is missing)."""
    ticks = started(os.getpid())
    with suppress(OSError, ValueError, IndexError):
        if ticks is not None:
            uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
            return uptime - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - _IMPORTED
