"""A disk that fails: ENOSPC, EIO, EFBIG and EROFS at every call of save, log and prune, and a real disk that is full.

A trial: the run of tiny.py, in which one call fails (and all after it, or this one alone; with a full disk half of a
write is done first). It must end by itself, with 0 or with 1 and one clear line, and leave the bytes of every older
checkpoint as they were; started again without the fault it must end as an unbroken run does. Where it went on to its
end although its event file failed, which it says, TensorBoard may lack values; metrics.jsonl may not.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from scripts.torture.left import compared, tree_of
from scripts.torture.row import Row
from scripts.torture.shim import Action, Fault
from scripts.torture.stage import Ended
from scripts.torture.tiny import Bench, Part, bench, some

PROMISE = "no hang, one clear line, older checkpoints untouched; the same command then ends as an unbroken run"
HANG_S = 10.0  # longer than an unbroken run
SIZES = 20  # of a real full disk
TOLD = 5
_FAILURES = (
    (errno.ENOSPC, Action.SHORT),
    (errno.ENOSPC, Action.ONCE),
    (errno.EIO, Action.FROM),
    (errno.EIO, Action.ONCE),
    (errno.EFBIG, Action.FROM),
    (errno.EFBIG, Action.ONCE),
    (errno.EROFS, Action.FROM),  # as a system turns a disk that has failed
)
_SHARES = {errno.EROFS: 0.1}  # of the places; of the others all


def rows(scale: float, seed: int) -> Iterable[Row]:
    with bench(1) as made:
        limit = HANG_S + made.train(made.folder / "timed").seconds
        shutil.rmtree(made.folder / "timed")
        for code in dict.fromkeys(code for code, _ in _FAILURES):
            yield failing(made, code, limit, scale, seed)
        yield from full(made, limit, scale)


def failing(made: Bench, code: int, limit: float, scale: float, seed: int) -> Row:
    """Every call that can fail so does, or a share of them; in turn alone and with all after it, where both happen."""
    broken, trials, stopped = [], 0, 0
    ways = [action for number, action in _FAILURES if number == code]
    for part in made.parts:
        places = [call for call in part.calls if code != errno.EFBIG or call.operation in ("write", "truncate")]
        count = round(scale * _SHARES.get(code, 1.0) * len(places))
        for place in some(count, len(places), seed + code):
            at = places[place - 1].number
            action = ways[(at + 1) % len(ways)]
            with made.copy(part) as runs:
                trials += 1
                ended, found = _one(made, part, runs, Fault(str(runs), at, action, code), limit)
                stopped += ended.code == 1
                if found:
                    broken.append(
                        f"{action.name.lower()} at call {at} of {part.calls[at - 1].path}: {'; '.join(found)}"
                    )
    note = f"{stopped:,} stopped with a line, {trials - stopped:,} went on"
    where = "every call" if code not in _SHARES else "some calls"
    fault = f"{errno.errorcode[code]} at {where}, {'once or ' if len(ways) > 1 else ''}from then on"
    return Row(fault, PROMISE, trials, trials - len(broken), note, tuple(broken[:TOLD]))


def _one(made: Bench, part: Part, runs: Path, fault: Fault | None, limit: float) -> tuple[Ended, list[str]]:
    before = {folder: tree_of(folder) for folder in _saved(runs)}
    ended = made.train(runs, fault, limit)
    found = wrong(ended, full=fault is None or fault.code == errno.ENOSPC)
    damaged = [folder for folder, tree in before.items() if folder.exists() and tree_of(folder) != tree]
    found += [f"{folder} is damaged" for folder in damaged]
    if len(_saved(runs)) < len(before):
        found.append("there are fewer checkpoints than before")
    if ended.code == 0:
        different = compared(made.whole, runs / "tiny")
        warned = "TensorBoard events" in ended.output
        return ended, found + [what for what in different if not (warned and "TensorBoard's" in what)]
    return ended, found + made.again(runs, part.step)


def wrong(ended: Ended, full: bool) -> list[str]:
    """What is wrong with how a run on a failing disk ended; of a full disk the line says what is needed and free."""
    if ended.late:
        return ["hangs"]
    if "Traceback" in ended.output:
        return [f"a traceback: {ended.last}"]
    if ended.code not in (0, 1):
        return [f"ended with {ended.code}: {ended.last}"]
    lines = [line for line in ended.output.splitlines() if line.startswith("deltaflow: ")]
    if len(lines) != ended.code:
        return [f"{len(lines)} lines of what was wrong: {ended.last}"]
    if full and any("No space left" in line and "free" not in line for line in lines):
        return [f"does not say what is free: {lines[0]}"]
    return []


def _saved(runs: Path) -> list[Path]:
    return sorted(folder for folder in runs.glob("tiny/*/ckpt/*") if folder.name.isdigit())


def full(made: Bench, limit: float, scale: float) -> Iterator[Row]:
    """A tmpfs of a few sizes, where mounting is allowed: what the shim only pretends."""
    broken, trials, stopped, place = [], 0, 0, made.folder / "full"
    place.mkdir()
    page = os.sysconf("SC_PAGE_SIZE")
    for index in range(max(1, round(scale * SIZES))):
        size = page * (8 + 7 * index)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "deltaflow-torture", str(place)]
        try:
            mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            mounted = False
        if not mounted:
            break
        try:
            trials += 1
            ended = made.train(place, None, limit)
            found = wrong(ended, full=True)
            stopped += ended.code == 1
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True, capture_output=True)
            found += made.again(place, 0)
            if found:
                broken.append(f"a disk of {size:,} bytes: {'; '.join(found)}")
        finally:
            subprocess.run(["umount", str(place)], check=True)
    if trials:
        note = f"{stopped} stopped with a line, {trials - stopped} went on"
        yield Row(
            "a real full disk (tmpfs), then more room",
            PROMISE,
            trials,
            trials - len(broken),
            note,
            tuple(broken[:TOLD]),
        )
