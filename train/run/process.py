"""When this process and others of this machine started."""

import os
import time
from contextlib import suppress
from pathlib import Path

_IMPORTED = time.monotonic()


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
