"""What training a group takes of the device's memory, what there is, and which settings would fit.

A compiled program says what it needs while it runs; the states of the variants and the tokens on the device are known
from their shapes. So what cannot fit is refused before the first step, wherever the device or the machine tells what
it has; what a device refuses all the same is answered by the same advice.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from train.config.load import Variant
from train.run.errors import RunError, out_of_memory
from train.run.platform import Platform
from train.run.programs import Group, Programs

_HALVINGS = 6  # of the context that are tried
_HURRY = 1.02  # of what a program takes that was compiled in a hurry


@dataclass(frozen=True)
class Need:
    """Bytes on the device."""

    held: int  # all the time: states, and tokens that live there
    passing: int  # while the largest program runs: its temporaries, its results, its batches

    @property
    def total(self) -> int:
        return self.held + self.passing


def available(platform: Platform) -> int | None:
    """Bytes that can be had now; None where neither the device nor the machine tells.

    Of a device its own limit less what is in use; on a CPU the least of what the machine has to give and what the
    limits of this process's control groups leave.
    """
    stats = platform.device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    if platform.kind != "cpu":
        return None
    return min((free for free in (_of_machine(), *_of_groups()) if free is not None), default=None)


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


def bytes_of(tree: Any) -> int:
    """Of arrays, or of shapes and dtypes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def need(programs: Programs, resident: Any) -> Need:
    """Of everything that was prepared; waits until it is compiled."""
    state = bytes_of(programs.abstract_state)
    held, passing = programs.calls * state + bytes_of(resident), 0
    for key, (program, feed) in programs.ready.items():
        made = state if key == "init" else 0  # its result is held, and counted there
        passing = max(passing, _passing(program, feed) - made)
    return Need(held, passing)


def _passing(program: Any, feed: Any) -> int:
    """Bytes that a call takes besides what it is given and lives on: temporaries, results in new memory, its feed."""
    told = program.memory_analysis()
    if told is None:
        return bytes_of(feed)
    made = max(0, told.output_size_in_bytes - told.alias_size_in_bytes)
    return int(told.temp_size_in_bytes + made) + bytes_of(feed)


@dataclass
class Budget:
    """The memory of one group's training. `resident`: its tokens (train, held out) on the device, or Nones."""

    programs: Programs
    resident: tuple[Any, Any]
    room: int | None  # bytes for all of it; None: nobody tells
    say: Callable[[str], None]
    need: Need | None = None  # once everything is compiled

    @staticmethod
    def of(programs: Programs, resident: tuple[Any, Any], platform: Platform, say: Callable[[str], None]) -> "Budget":
        """Raises RunError when not even the states have room, before anything is compiled for them."""
        free = available(platform)
        budget = Budget(programs, resident, None if free is None else free + bytes_of(resident), say)
        held = need(programs, resident)  # nothing is prepared yet
        if budget.room is not None and held.total > budget.room:
            raise RunError(complaint(held, budget.room, []))
        return budget

    def check(self) -> None:
        """Before the first step, when all is compiled. Raises RunError when it has no room, and says what would."""
        self.need = need(self.programs, self.resident)
        if self.room is not None and self.need.total > self.room:
            raise RunError(complaint(self.need, self.room, self._advice(self.need, self.room)))

    def explain(self, error: Exception) -> None:
        """Raises RunError in place of an error that says that memory ran out: what fits three quarters of what this
        takes, or of what there is when that is not known, since the compiler itself had no room."""
        if not out_of_memory(error):
            return
        with suppress(Exception):  # of a program that was never compiled
            self.need = need(self.programs, self.resident)
        taken = self.need or Need(0, self.room or 0)
        bounds = [bound for bound in (self.room, taken.total) if bound]
        advice = self._advice(taken, int(0.75 * min(bounds))) if bounds else []
        raise RunError(complaint(self.need, self.room, advice)) from None

    def _advice(self, taken: Need, room: int) -> list[str]:
        self.say("not enough memory; compiling other settings to see what fits")
        return Advisor(self.programs, self.resident, taken, room).advice()

    @property
    def line(self) -> str:
        """`estimated 41.3 MB of 8.14 GB`"""
        of = "" if self.room is None else f" of {size(self.room)}"
        return "unknown" if self.need is None else f"estimated {size(self.need.total)}{of}"


# What would fit


@dataclass(frozen=True)
class Setting:
    """What a step's memory depends on most, besides the model; `parts`: micro-batches of a step."""

    batch: int
    parts: int
    context: int


@dataclass
class Advisor:
    """Compiles what `programs` holds anew for other settings, to find those that need at most `room` bytes.

    Every setting that is named was compiled, in a hurry: that changed the temporaries of a step by at most 2 % (444 MB
    for 436), while a loop over blocks in place of unrolled ones changed them by 77 %, so nothing else is made simpler.
    """

    programs: Programs
    resident: tuple[Any, Any]
    need: Need  # of these programs
    room: int

    def advice(self) -> list[str]:
        """`key=value (bytes)` of the settings next to the config's that fit; empty when none does."""
        now = self._setting
        parts = [now.parts * d for d in _factors(now.batch // now.parts)]
        batches = [now.batch // d for d in _factors(now.batch) if now.batch // d % now.parts == 0]
        contexts = [now.context >> shift for shift in range(1, _HALVINGS + 1) if now.context >> shift]
        if self.programs.group.config.data.kind not in ("text", "tokens"):
            contexts = []  # its windows may be of one length
        named = {"parts": "optimizer.accumulate", "batch": "data.batch", "context": "data.context"}
        found = []
        for axis, values in (("parts", parts), ("batch", batches), ("context", contexts)):
            base = getattr(now, axis)
            shares = [base / value if axis == "parts" else value / base for value in values]
            best = self._best(now, axis, values, shares) if values else None
            if best is not None:
                found.append(f"{named[axis]}={best[0]} ({size(best[1])})")
        return found

    @property
    def _setting(self) -> Setting:
        config = self.programs.group.config
        return Setting(config.data.batch, config.optimizer.accumulate, config.data.context)

    def _best(self, now: Setting, axis: str, values: list[int], shares: list[float]) -> tuple[int, int] | None:
        """The first of these values that fits, and its bytes; they go from much memory to little.

        Each share is what the value leaves of a step's memory if that is in proportion. So the first one that should
        fit is compiled first; then its neighbours, up while they fit, or down until one does.
        """
        held, passing = self.need.held, self.need.passing
        guess = next((n for n, share in enumerate(shares) if held + share * passing <= self.room), len(values) - 1)
        best = None
        at, step = guess, 0
        while 0 <= at < len(values):
            taken = self.total(dataclasses.replace(now, **{axis: values[at]}))
            fits = taken is not None and taken <= self.room
            if taken is not None and fits:
                best = (values[at], taken)
            step = step or (-1 if fits else 1)
            if fits != (step < 0):  # the first that does not, on the way up; the first that does, on the way down
                break
            at += step
        return best

    def total(self, setting: Setting) -> int | None:
        """Bytes that training takes under a setting; None when a program of it cannot even be compiled."""
        group = _changed(self.programs.group, setting)
        programs = Programs(group, self.resident[0], hurry=True)
        lead = int(group.vmapped)
        try:
            for key in _largest(self.programs.feeds):
                feed = self._resized(self.programs.feeds[key], setting, 1 if key == "evaluate" else 1 + lead)
                if key == "evaluate":
                    programs.prepare_evaluation(self.resident[1], *feed)
                elif key[0] == "instrument":
                    programs.prepare_instrument(key[1], *feed)
                else:
                    programs.prepare_window(*feed, watched=key[2])
            return int(_HURRY * need(programs, self.resident).total)
        except Exception as error:
            if out_of_memory(error):
                return None
            raise

    def _resized(self, feed: Any, setting: Setting, axis: int) -> Any:
        """Shapes of a feed whose leaves have B at `axis`, and, where windows arrive whole, T + 1 behind it."""
        now = self._setting

        def one(leaf: Any) -> Any:
            shape = list(leaf.shape)
            shape[axis] = setting.batch
            if shape[axis + 1 :] == [now.context + 1]:
                shape[axis + 1] = setting.context + 1
            return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

        return jax.tree.map(one, feed)


def _changed(group: Group, setting: Setting) -> Group:
    def changed(variant: Variant) -> Variant:
        config = variant.config
        data = config.data.model_copy(update={"batch": setting.batch, "context": setting.context})
        optimizer = config.optimizer.model_copy(update={"accumulate": setting.parts})
        return dataclasses.replace(variant, config=config.model_copy(update={"data": data, "optimizer": optimizer}))

    network = dataclasses.replace(group.network, context=setting.context)
    return dataclasses.replace(group, variants=tuple(map(changed, group.variants)), network=network)


def _largest(feeds: Mapping[Any, Any]) -> list[Any]:
    """The keys of the programs that can be the largest: of the windows the longest, watched if any are."""
    windows = [key for key in feeds if key[0] == "window"]
    watched = [key for key in windows if key[2]] or windows
    longest = sorted(watched, key=lambda key: bytes_of(feeds[key]))[-1:]
    return [*longest, *(key for key in feeds if key == "evaluate" or key[0] == "instrument")]


def complaint(taken: Need | None, there: int | None, advice: list[str]) -> str:
    """One line: what is needed and what there is, and what would fit."""
    parts = ["not enough memory"]
    if taken is not None:
        parts[0] += f": training needs about {size(taken.total)}"
        parts[0] += f" ({size(taken.held)} for parameters, optimizer and tokens, {size(taken.passing)} for a step)"
        if there is not None:
            parts[0] += f", and there are {size(there)}"
    others = "model.width, model.layers or the number of variants"
    parts.append(f"what fits: {', '.join(advice)}" if advice else f"lower {others}")
    return "; ".join(parts)


def size(count: float) -> str:
    """
    >>> size(812), size(41_300_000), size(8.14e9)
    ('812 bytes', '41.3 MB', '8.14 GB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:,.0f} bytes"


def _factors(number: int) -> list[int]:
    """Divisors above 1, ascending.

    >>> _factors(12)
    [2, 3, 4, 6, 12]
    """
    return [n for n in range(2, number + 1) if number % n == 0]
