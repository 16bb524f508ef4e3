"""Means over seeds as TensorBoard runs next to the variants: `with@mean`, `with@low`, `with@high`.

No variant's name has an @ (train/config/variants.py), and these folders have no config.yaml, so that TensorBoard alone
takes them for runs.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from data.files import replacing

from ..log.append import EVENTS_PREFIX, event_file_header, event_file_name, event_record
from ..log.charts_layout import shown
from .groups import Group, dotted, estimate, over_seeds

ENDS = ("mean", "low", "high")
_EVENTS = f"{EVENTS_PREFIX}*"

ByStep = dict[int, dict[str, float]]  # step -> tag -> value


def write_means(root: Path, groups: Sequence[Group]) -> list[str]:
    """Replaces the mean runs of every group with two or more finished seeds; returns the names of these groups.

    Removes the mean runs of groups that no longer exist. Raises OSError.
    """
    seeded = [group for group in groups if len(group.done) > 1]
    for group in seeded:
        for end, scalars in zip(ENDS, means(group), strict=True):
            _write(root / f"{group.name}@{end}", scalars)
    names = {f"{group.name}@{end}" for group in seeded for end in ENDS}
    for end in ENDS:
        for folder in root.glob(f"*@{end}"):
            if folder.name not in names and not (folder / "config.yaml").exists():
                with suppress(FileNotFoundError):  # another writer removes it too
                    for file in folder.glob(_EVENTS):
                        file.unlink(missing_ok=True)
                    if not any(folder.iterdir()):
                        folder.rmdir()
    return [group.name for group in seeded]


def means(group: Group) -> tuple[ByStep, ByStep, ByStep]:
    """Returns (mean, low, high) of each tag that all finished seeds show, at the steps common to all of them.

    low and high bound the 95 % interval (train/report/groups.py). The mean of log10 values is the log10 of the
    geometric mean.
    """
    out: tuple[ByStep, ByStep, ByStep] = ({}, {}, {})
    details = dotted(group.done[0].config).get("watch.matrices")  # not in a config of before that key
    for tag in group.done[0].steps:
        if not (details or shown(tag)) or not all(tag in run.steps for run in group.done):
            continue
        steps, values = over_seeds(group, tag)
        mean, half = estimate(values)
        assert half is not None  # two seeds or more
        for scalars, ends in zip(out, (mean, mean - half, mean + half), strict=True):
            for step, value in zip(steps.tolist(), ends.tolist(), strict=True):
                scalars.setdefault(step, {})[tag] = value
    return out


def _write(folder: Path, scalars: ByStep) -> None:
    """Replaces the event files of a folder by one; its header tells a TensorBoard that reads them to start over."""
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    entries = {tag: Summary.Value(tag=tag) for values in scalars.values() for tag in values}
    before = list(folder.glob(_EVENTS))  # two writers at once remove these, and neither the other's file
    with replacing(folder / event_file_name()) as file:
        file.write(event_file_header(0))
        for step, values in sorted(scalars.items()):
            for tag, value in values.items():
                entries[tag].simple_value = value  # eight times as fast as new entries
            file.write(event_record(step=step, summary=Summary(value=[entries[tag] for tag in values])))
    for file in before:
        file.unlink(missing_ok=True)
