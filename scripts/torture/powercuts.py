"""The power goes at every call of save, log and prune.

A trial: as in kills.py a run is killed before one call; then what it had not synced is taken from the disk, all or some
of it (power.py has the model); then it is started again. It has to go on from the last save that had returned, and to
end as an unbroken run does. kill -9 alone cannot tell whether anything was synced: the system still has the bytes.
"""

import shutil
from collections.abc import Iterable

import numpy as np

from scripts.torture.power import Disk
from scripts.torture.row import Row
from scripts.torture.shim import Action, Fault, calls
from scripts.torture.tiny import Bench, bench, saved, some

TOLD = 5


def rows(scale: float, seed: int) -> Iterable[Row]:
    with bench(1) as made:
        yield at_calls(made, scale, seed)


def at_calls(made: Bench, scale: float, seed: int) -> Row:
    broken, trials, names, files = [], 0, 0, 0
    draws, log, keep = np.random.default_rng(seed), made.folder / "cut.log", made.folder / "keep"
    for part in made.parts:
        for at in some(round(scale * len(part.calls)), len(part.calls), seed):
            keep.mkdir()
            with made.copy(part) as runs:
                disk = Disk.of(runs)
                ended = made.train(runs, Fault(str(runs), at, Action.BEFORE, log=str(log), keep=str(keep)))
                noted = calls(log)
                log.unlink()
                if ended.code == -9 and not ended.late:
                    trials += 1
                    disk.saw(noted)
                    names, files = names + len(disk.names), files + len(disk.dirty)
                    disk.cut(keep, draws)
                    if found := made.again(runs, saved(noted, runs, part.step)):
                        last = noted[-1]
                        broken.append(f"call {at} ({last.operation} {last.path}): {'; '.join(found)}")
            shutil.rmtree(keep)
    return Row(
        "power cut at every call",
        "what a save that returned has written is there, and the end is as of an unbroken run",
        trials,
        trials - len(broken),
        f"{files:,} files and {names:,} names not yet synced at the cuts",
        tuple(broken[:TOLD]),
    )
