"""Device memory: the bytes that training needs and those available; waves, and the refusal of what does not fit."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import Failure, out_of_memory
from ..text import size
from .hosts import agreed
from .platform import Platform
from .process import trim
from .programs import Programs, VariantGroup


@dataclass(frozen=True)
class Need:
    """Bytes on the device."""

    held: int  # all the time: states, and tokens that live there
    training: int = 0  # while the largest dispatch runs: its temporaries, results and batches
    measuring: int = 0  # while the largest evaluation or instrument runs, which take whole batches

    @property
    def passing(self) -> int:
        """Bytes while the largest program runs."""
        return max(self.training, self.measuring)

    @property
    def total(self) -> int:
        return self.held + self.passing


def need(programs: Programs, resident: Any) -> Need:
    """Returns what the prepared programs need, by XLA's own analysis; waits until they are compiled.

    Args:
      resident: arrays on the device apart from the states.
    """
    state = bytes_of(programs.abstract_state)
    training = measuring = 0
    for key, (program, inputs) in programs.ready.items():
        passing, analysis = bytes_of(inputs), program.memory_analysis()
        if analysis is not None:
            results = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
            temporaries = int(analysis.temp_size_in_bytes)
            if programs.group.mesh.devices.flat[0].platform == "tpu":  # whose peak is up to a third below their sum
                peak = getattr(analysis, "peak_memory_in_bytes", 0) - analysis.argument_size_in_bytes
                temporaries = min(temporaries, peak) if peak > 0 else temporaries
            passing += int(temporaries + results)
        if key == ("init",):
            measuring = max(measuring, passing - state)  # its result is a state, which is held
        elif key[0] == "dispatch":
            training = max(training, passing)
        else:
            measuring = max(measuring, passing)
    return Need(programs.calls * state + bytes_of(resident), training, measuring)


def bytes_of(tree: Any) -> int:
    """Returns the bytes on each device of arrays, or of shapes with dtypes, by their shardings if they have some."""

    def bytes_of_leaf(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(bytes_of_leaf, jax.tree.leaves(tree)))


@dataclass
class Budget:
    """The memory of one group's training."""

    programs: Programs
    resident: Any  # tokens on the device
    available: int | None  # bytes for all of it; None: unknown
    need: Need | None = None  # once everything is compiled

    @staticmethod
    def of(programs: Programs, resident: Any, platform: Platform) -> "Budget":
        """Returns the budget of a group that is to be compiled."""
        trim()  # what earlier groups have freed
        free = available_memory(platform)
        return Budget(programs, resident, None if free is None else free + bytes_of(resident))

    def waves(self) -> list[VariantGroup]:
        """Returns the group, or if it does not fit the fewest parts of it that do; waits for what is being compiled.

        The same in all processes, as a collective. Raises UserError when not even the smallest part fits.
        """
        group, unit = self.programs.group, self.programs.group.mesh.shape["variants"]
        count = len(group.variants)
        try:
            self.need = need(self.programs, self.resident)
            waves = math.ceil(count / self.fitting(self.need))
        except Exception as error:  # compilers for TPUs refuse what does not fit, without its size
            if not (out_of_memory(error) and group.vmapped and count > unit):
                raise
            waves = 2
        size = unit * math.ceil(count / unit / (agreed(waves) or 1))
        return [replace(group, variants=group.variants[start : start + size]) for start in range(0, count, size)]

    def fitting(self, whole: Need) -> int:
        """Returns the number of variants that fit together if memory is in proportion to it; `whole`: of the group.

        Before anything is compiled the states alone count. Raises UserError when not even the fewest possible fit.
        """
        group, network, fixed = self.programs.group, self.programs.group.network, bytes_of(self.resident)
        count, unit = len(group.variants), group.mesh.shape["variants"]

        def part(variants: int) -> Need:
            share = variants / count
            passing = share if group.vmapped else 1  # a step of those that take turns is one variant's
            held = fixed + int(share * (whole.held - fixed))
            return Need(held, int(passing * whole.training), int(passing * whole.measuring))

        if self.available is None:
            return count
        if (least := part(unit)).total > self.available:
            setting = suggestion(replace(group, variants=group.variants[:unit]), least, self.available)
            tables = (network.vocab_size or 0) * network.config.width * jnp.dtype(network.param_dtype).itemsize
            large = 2 * tables > least.total / 3  # ids of a file may be of any size, which makes the vocabulary
            about = f"; most of it is for a vocabulary of {network.vocab_size:,} tokens" if large else ""
            raise Failure(complaint(least, self.available, setting) + about)
        return next(size for size in range(count, 0, -unit) if part(size).total <= self.available)

    def explain(self, error: Exception) -> None:
        """Raises UserError in place of an out-of-memory error of a running program or a compiler.

        The estimate was too low then, so the suggestion is for three quarters of the need, or of what is available.
        """
        if not out_of_memory(error):
            return
        self.need = None
        with suppress(Exception):  # of a program that was never compiled
            self.need = need(self.programs, self.resident)
        setting = None
        if self.need is not None:
            bounds = [self.need.total, *([] if self.available is None else [self.available])]
            setting = suggestion(self.programs.group, self.need, int(0.75 * min(bounds)))
        raise Failure(complaint(self.need, self.available, setting)) from None

    @property
    def line(self) -> str:
        """`estimated 41.3 MB of 8.14 GB`"""
        of = "" if self.available is None else f" of {size(self.available)}"
        return "unknown" if self.need is None else f"estimated {size(self.need.total)}{of}"


def suggestion(group: VariantGroup, need: Need, available: int) -> str | None:
    """Returns the setting next to the config's that fits if a program's memory is in proportion to its batch.

    Variants in turn or more micro-batches if that suffices, since the runs then compute the same; else a smaller
    batch, in as many micro-batches as before. None if nothing fits.
    """
    config, left = group.config, available - need.held
    batch, parts = config.data.batch, config.optimizer.accumulate
    if group.vmapped and need.passing / len(group.variants) * group.mesh.shape["variants"] <= left:
        return "train.group=turn" if group.mesh.shape["variants"] == 1 else "train.group=turn mesh.variants=1"
    micro, rows = batch // parts, group.mesh.shape["data"] * group.mesh.shape["fsdp"]
    divisors = [n for n in range(2, micro + 1) if micro % n == 0 and micro // n % rows == 0]
    if need.measuring <= left:
        for n in divisors:
            if need.training / n <= left:
                return f"optimizer.accumulate={parts * n}"
    for n in divisors:
        if need.passing / n <= left:
            return f"data.batch={batch // n}"
    return None


def complaint(need: Need | None, available: int | None, setting: str | None) -> str:
    """One line: the bytes needed and available, and what to change."""
    text = "not enough memory"
    if need is not None:
        parts = f"{size(need.held)} for parameters, optimizer and tokens, {size(need.passing)} for a step"
        text += f": training needs about {size(need.total)} ({parts})"
        if available is not None:
            text += f", and there are {size(available)}"
    if setting is not None:
        return f"{text}; try {setting}"
    batches = "" if need is not None and need.passing == 0 else "data.batch, data.context, "
    return f"{text}; lower {batches}model.width, model.layers or the number of variants"


def available_memory(platform: Platform, root: Path = Path("/")) -> int | None:
    """Returns the bytes available now; None where neither the device nor the system says.

    As reported by an accelerator; on a CPU the least of RAM with swap, cgroup limits and ulimits (`-v`, `-d`), which
    Linux states in files below `root`.
    """
    if platform.compiler is not None and platform.chip is not None:
        return int(platform.chip.memory)
    stats = platform.device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    if platform.kind != "cpu":
        return None
    unreadable = suppress(OSError, ValueError, KeyError, IndexError)
    free = list(_left_by_groups(root))
    with unreadable:
        memory = _fields(root / "proc/meminfo")  # beyond what is available and free swap Linux kills processes
        free.append(1024 * (int(memory["MemAvailable"].split()[0]) + int(memory.get("SwapFree", "0").split()[0])))
    with unreadable, suppress(ImportError):
        import resource  # absent on Windows

        status = _fields(root / "proc/self/status")
        for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            if (most := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY:
                free.append(most - 1024 * int(status[used].split()[0]))
    return min(free, default=None)


def _fields(path: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)


def _left_by_groups(root: Path) -> Iterator[int]:
    """The limit of each enclosing control group, of either version, less its use without the page cache."""
    try:
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        limit, usage = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        base = root / "sys/fs/cgroup/memory" if controllers else root / "sys/fs/cgroup"
        folder = base / path.strip("/")
        while True:
            with suppress(OSError, ValueError):
                most, used = (int((folder / f"memory.{name}").read_text()) for name in (limit, usage))  # or "max"
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield most - used + int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent
