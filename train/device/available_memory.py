"""How much memory there is: of a device its own word, of a CPU what the machine, control groups and limits leave."""

from collections.abc import Iterator
from pathlib import Path

from .platform import Platform


def available(platform: Platform) -> int | None:
    """Bytes that can be had now; None where neither the device nor the machine tells.

    Of a device its own limit less what is in use; on a CPU the least of what the machine has to give and what this
    process's control groups and its own limits (`ulimit -v`, `-d`) leave.
    """
    stats = platform.device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    if platform.kind != "cpu":
        return None
    return min((free for free in (_of_machine(), *_of_groups(), *_of_limits()) if free is not None), default=None)


def _of_machine(path: Path = Path("/proc/meminfo")) -> int | None:
    """MemAvailable and free swap: more makes Linux end processes."""
    try:
        lines = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines() if ":" in line)
        return 1024 * (int(lines["MemAvailable"].split()[0]) + int(lines.get("SwapFree", "0").split()[0]))
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _of_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int | None]:
    """What each control group around this process leaves, both versions: its limit less its use without the cache."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        old = bool(controllers)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
        base = root / "memory" if old else root
        folder = base / path.strip("/")
        while True:
            yield _left(folder, *names)
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


def _left(folder: Path, limit: str, usage: str) -> int | None:
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())  # "max" is no number
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cache = int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)
        return most - used + cache
    except (OSError, ValueError):
        return None


def _of_limits(status: Path = Path("/proc/self/status")) -> Iterator[int | None]:
    """What the limits of this process leave of its address space and of its data."""
    try:
        import resource  # absent on Windows

        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            most = resource.getrlimit(limit)[0]
            yield None if most == resource.RLIM_INFINITY else most - 1024 * int(lines[used].split()[0])
    except (ImportError, OSError, ValueError, KeyError, IndexError):
        return
