"""Faults at every call that changes a file: kill -9, a power cut, and a disk that refuses.

A trial breaks one call of the tiny run (injection.py) and gives the same command again. Held: it goes on from the
newest save that had returned, and what it leaves is that of an unbroken run: parameters bitwise, metrics.jsonl,
TensorBoard's scalars and summary.json by value. A refusing disk must end the run with 0, or with 1 and one clear line,
and leave the bytes of older checkpoints as they were.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence

from scripts.faults.injection import Call, Disk, Fault
from scripts.faults.sweep import HELD, UNBROKEN, Broken, Sweep
from scripts.faults.tiny import TWO, Bench, bench, differing

REFUSED = "one clear line or none, older checkpoints untouched; the same command then ends as an unbroken run"
SYNCED = "what a save that returned has written is there, and the end is as of an unbroken run"
NOT_REACHED = ("ended before the fault", 0.0)


def sweeps(seed: int) -> Iterator[Sweep]:
    with bench() as one:
        places = range(1, len(one.calls) + 1)
        writes = [at for at in places if one.calls[at - 1].operation == "write"]
        kills = [Fault(at) for at in places] + [Fault(at, half=True) for at in writes]
        yield _sweep(one, "kill -9 at every call, and in the middle of every write", UNBROKEN, kills, kill)
        cuts = [(Fault(at), names_survive) for at in places for names_survive in (False, True)]
        yield _sweep(one, "power cut at every call: new names lost, and kept", SYNCED, cuts, cut)
        for code, where, faulty in (
            (errno.ENOSPC, "every call", places),
            (errno.EIO, "every call", places),
            (errno.EFBIG, "every write", writes),
            (errno.EROFS, "every fourth call", places[::4]),
        ):
            once = [index % 2 == 1 and code != errno.EROFS for index in range(len(faulty))]
            faults = [Fault(at, code, half=not o, persistent=not o) for at, o in zip(faulty, once, strict=True)]
            ways = "in turn once and from then on" if any(once) else "from then on"
            yield _sweep(one, f"{errno.errorcode[code]} at {where}, {ways}", REFUSED, faults, refuse)
    with bench(*TWO) as two:
        renames = [Fault(at) for at, call in enumerate(two.calls, 1) if call.operation == "rename"]
        yield _sweep(two, "kill -9 at every rename of 2 variants", UNBROKEN, renames, kill)


def _sweep(tiny: Bench, fault: str, promise: str, places: Sequence, trial: Callable) -> Sweep:
    def trial_and_clear(place) -> tuple[str, float]:
        try:
            return trial(tiny, place)
        finally:
            tiny.clear()

    return Sweep(fault, promise, places, trial_and_clear)


def kill(tiny: Bench, fault: Fault) -> tuple[str, float]:
    disk = Disk(str(tiny.runs), fault)
    if tiny.train(disk)[0] != -9:
        return NOT_REACHED
    tiny.again(saved_step(disk.calls, len(tiny.whole), synced=False))
    return HELD


def cut(tiny: Bench, place: tuple[Fault, bool]) -> tuple[str, float]:
    fault, names_survive = place
    tiny.runs.mkdir()
    disk = Disk(str(tiny.runs), fault)
    if tiny.train(disk)[0] != -9:
        return NOT_REACHED
    disk.cut(names_survive)
    tiny.again(saved_step(disk.calls, len(tiny.whole), synced=True))
    return HELD


def refuse(tiny: Bench, fault: Fault) -> tuple[str, float]:
    """The fault is met by a run that has saved three times, or by its beginning."""

    def checkpoints() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in tiny.runs.rglob("[!.]*.safetensors")}

    first = next(at for at, call in enumerate(tiny.calls, 1) if "00000008" in call.path)
    before: dict[str, bytes] = {}
    if fault.at >= first:
        tiny.train(Disk(str(tiny.runs), Fault(first)))
        before = checkpoints()
        fault = fault._replace(at=fault.at - first + 1)
    code, output = tiny.train(Disk(str(tiny.runs), fault))
    ends_well(code, output, full=fault.code == errno.ENOSPC)
    after = checkpoints()
    if damaged := [path for path, content in before.items() if after.get(path, content) != content]:
        raise Broken(f"damaged: {', '.join(damaged)}")
    if len(after) < len(before):
        raise Broken("there are fewer checkpoints than before")
    if code:
        tiny.again()
        return HELD
    # TensorBoard may lack values where the run has said so; metrics.jsonl may not.
    lacking = "TensorBoard" in output
    if different := [what for what in differing(tiny.whole, tiny.runs) if not (lacking and "TensorBoard's" in what)]:
        raise Broken("; ".join(different))
    return HELD


def ends_well(code: int | str, output: str, full: bool) -> None:
    """Raises Broken unless a run ended with one line at most; on a full disk it says what is free."""
    if code not in (0, 1) or "Traceback" in output:
        raise Broken(f"ended with {code}: {output[-300:]}")
    lines = [line for line in output.splitlines() if line.startswith("deltaflow: ")]
    if len(lines) != code:
        raise Broken(f"{len(lines)} lines about what was wrong: {output[-300:]}")
    if full and any("No space left" in line and "free" not in line for line in lines):
        raise Broken(f"does not say what is free: {lines[0]}")


def saved_step(calls: Sequence[Call], variants: int, synced: bool) -> int:
    """Returns the newest step that every variant has saved: the file had its name, and if `synced` its folder was
    synced after that."""
    named: dict[str, int] = {}
    safe: dict[str, int] = {}
    for call in calls:
        if call.operation == "rename" and (match := re.search(r"/(\d{8})\.safetensors$", call.other)):
            named[os.path.dirname(call.other)] = int(match[1])
        elif call.operation == "fsync" and call.path in named:
            safe[call.path] = named[call.path]
    newest = safe if synced else named
    return min(newest.values()) if len(newest) == variants else 0
