"""Faults at every call that changes a file: kill -9, a power cut, and a disk that refuses.

A trial breaks one call of the tiny run (injection.py) and gives the same command again. Held: it goes on from the
newest save that had returned, and what it leaves is that of an unbroken run: parameters bitwise, metrics.jsonl,
TensorBoard's scalars and summary.json by value. A refusing disk must end the run with 0, or with 1 and one clear line,
and leave the bytes of older checkpoints as they were.
"""

import errno
from collections.abc import Callable, Iterable

import numpy as np

from scripts.faults.injection import Disk, Fault
from scripts.faults.results import Row
from scripts.faults.snapshot import compared, tree_of
from scripts.faults.tiny import Bench, Ended, bench, saved

UNBROKEN = "parameters bitwise and logged values as of an unbroken run, each step once"
REFUSED = "one clear line or none, older checkpoints untouched; the same command then ends as an unbroken run"
SYNCED = "what a save that returned has written is there, and the end is as of an unbroken run"
Trial = Callable[[Bench, Fault], list[str] | None]  # what is wrong; None: the run ended before the fault


def rows(scale: float, seed: int) -> Iterable[Row]:
    with bench(1) as one:
        places = range(1, len(one.calls) + 1)
        writes = [at for at in places if one.calls[at - 1].operation == "write"]
        kills = [Fault(at) for at in places] + [Fault(at, half=True) for at in writes]
        yield _row("kill -9 at every call, and in the middle of every write", UNBROKEN, one, kills, killed, scale, seed)
        draws = np.random.default_rng(seed)
        cuts = [Fault(at) for at in places for _ in range(2)]
        yield _row("power cut at every call, twice", SYNCED, one, cuts, lambda b, f: cut(b, f, draws), scale, seed)
        for code in (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EROFS):
            at_calls = writes if code == errno.EFBIG else places[::4] if code == errno.EROFS else places
            where = {errno.EFBIG: "every write", errno.EROFS: "every fourth call"}.get(code, "every call")
            turns = [index % 2 == 0 or code == errno.EROFS for index in range(len(at_calls))]
            faults = [Fault(at, code, half=turn, persistent=turn) for at, turn in zip(at_calls, turns, strict=True)]
            ways = "from then on" if code == errno.EROFS else "in turn once and from then on"
            yield _row(f"{errno.errorcode[code]} at {where}, {ways}", REFUSED, one, faults, refused, scale, seed + code)
    with bench(2) as two:
        renames = [Fault(at) for at, call in enumerate(two.calls, 1) if call.operation == "rename"]
        yield _row("kill -9 at every rename of 2 variants", UNBROKEN, two, renames, killed, scale, seed)


def _row(name: str, promise: str, made: Bench, faults: list[Fault], trial: Trial, scale: float, seed: int) -> Row:
    """Tries the faults, or a share of them that is spread evenly."""
    count = max(1, round(min(scale, 1.0) * len(faults)))
    shift = np.random.default_rng(seed).random()
    trials, broken = 0, []
    for index in sorted({int((index + shift) * len(faults) / count) for index in range(count)}):
        fault = faults[index]
        wrong = trial(made, fault)
        made.clear()
        trials += wrong is not None
        if wrong:
            broken.append(f"{fault} ({made.calls[fault.at - 1]}): {'; '.join(wrong)}")
    return Row(name, promise, trials, trials - len(broken), broken=tuple(broken[:5]))


def killed(made: Bench, fault: Fault) -> list[str] | None:
    disk = Disk(str(made.runs), fault)
    if made.train(disk).code != -9:
        return None
    return made.again(saved(disk.calls, made.runs, len(made.whole), synced=False))


def cut(made: Bench, fault: Fault, draws: np.random.Generator) -> list[str] | None:
    made.runs.mkdir(exist_ok=True)
    disk = Disk(str(made.runs), fault, power=True)
    if made.train(disk).code != -9:
        return None
    disk.cut(draws)
    return made.again(saved(disk.calls, made.runs, len(made.whole), synced=True))


def refused(made: Bench, fault: Fault) -> list[str] | None:
    """The fault is met by a run that has saved three times, or by its beginning."""
    first = next(at for at, call in enumerate(made.calls, 1) if "00000008" in call.path)
    before: dict[str, str] = {}
    if fault.at >= first:
        made.train(Disk(str(made.runs), Fault(first)))
        before = tree_of(made.runs, "*.safetensors")
        fault = Fault(fault.at - first + 1, fault.code, fault.half, fault.persistent)
    ended = made.train(Disk(str(made.runs), fault))
    wrong = ended_badly(ended, full=fault.code == errno.ENOSPC)
    after = tree_of(made.runs, "*.safetensors")
    wrong += [f"{path} is damaged" for path in before if after.get(path, before[path]) != before[path]]
    wrong += ["there are fewer checkpoints than before"] if len(after) < len(before) else []
    if ended.code == 0:  # TensorBoard may lack values where the run has said so; metrics.jsonl may not
        different = compared(made.whole, made.runs / "tiny")
        warned = "TensorBoard" in ended.output
        return wrong + [what for what in different if not (warned and "TensorBoard's" in what)]
    return wrong + made.again(0)


def ended_badly(ended: Ended, full: bool) -> list[str]:
    """Returns what is wrong with the end of a run on a failing disk; of a full one the line says what is free."""
    if ended.code not in (0, 1) or "Traceback" in ended.output:
        return [f"ended with {ended.code}: {ended.output[-300:]}"]
    lines = [line for line in ended.output.splitlines() if line.startswith("deltaflow: ")]
    if len(lines) != ended.code:
        return [f"{len(lines)} lines about what was wrong: {ended.output[-300:]}"]
    if full and any("No space left" in line and "free" not in line for line in lines):
        return [f"does not say what is free: {lines[0]}"]
    return []
