"""Means over seeds as TensorBoard runs of their own, beside the variants: `with@mean`, `with@low`, `with@high`.

No variant's name has an @ (train/config/expand.py), and there is no config.yaml in these folders, so they are taken for
runs by TensorBoard and by nothing else.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..log.event_file import PREFIX, new_name
from .groups import Group, estimate, over_seeds

ENDS = ("mean", "low", "high")

Scalars = dict[int, dict[str, float]]  # step -> tag -> value


def write_means(root: Path, groups: Sequence[Group]) -> list[str]:
    """Writes the runs of every group with two finished seeds or more, anew each time; returns the groups' names.

    Of a group that is no more, what an earlier call wrote is taken away. Raises OSError.
    """
    seeded = [group for group in groups if len(group.done) > 1]
    for group in seeded:
        for end, scalars in zip(ENDS, means(group), strict=True):
            _write(root / f"{group.name}@{end}", scalars)
    kept = {f"{group.name}@{end}" for group in seeded for end in ENDS}
    for end in ENDS:
        for folder in root.glob(f"*@{end}"):
            if folder.name not in kept and not (folder / "config.yaml").exists():
                _clear(folder)
                if not any(folder.iterdir()):
                    folder.rmdir()
    return [group.name for group in seeded]


def means(group: Group) -> tuple[Scalars, Scalars, Scalars]:
    """(mean, low, high) of every tag that all finished seeds have logged, at the steps that all of them have.

    low and high are the ends of the 95 % interval (train/report/groups.py). The mean of log10 values is the
    geometric mean's log10.
    """
    out: tuple[Scalars, Scalars, Scalars] = ({}, {}, {})
    for tag in group.done[0].steps:
        if not all(tag in run.steps for run in group.done):
            continue
        steps, values = over_seeds(group, tag)
        mean, half = estimate(values)
        assert half is not None  # two seeds or more
        for scalars, ends in zip(out, (mean, mean - half, mean + half), strict=True):
            for step, value in zip(steps.tolist(), ends.tolist(), strict=True):
                scalars.setdefault(step, {})[tag] = value
    return out


def _write(folder: Path, scalars: Scalars) -> None:
    """One event file in the place of all others. A TensorBoard that reads the folder is told to begin anew."""
    from tensorboardX import RecordWriter

    folder.mkdir(exist_ok=True)
    beside = folder / ".writing"  # TensorBoard takes any name with tfevents in it for a file of events
    record = RecordWriter(str(beside))
    try:
        for event in _events(scalars):
            record.write(event)
    finally:
        record.close()
    _clear(folder)
    os.replace(beside, folder / new_name())


def _events(scalars: Scalars) -> Iterator[bytes]:
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    now = time.time()
    yield Event(file_version="brain.Event:2", wall_time=now).SerializeToString()
    yield Event(step=0, session_log=SessionLog(status=SessionLog.START), wall_time=now).SerializeToString()
    known = {tag: Summary.Value(tag=tag) for tag in {tag for values in scalars.values() for tag in values}}
    for step in sorted(scalars):
        for tag, value in scalars[step].items():
            known[tag].simple_value = value  # an eighth of the time that making each anew takes
        values = [known[tag] for tag in scalars[step]]
        yield Event(step=step, summary=Summary(value=values), wall_time=now).SerializeToString()


def _clear(folder: Path) -> None:
    for file in folder.glob(f"{PREFIX}*"):
        file.unlink()
