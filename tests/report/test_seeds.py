"""Means over seeds as files: written whole, unseen until then, and by several writers at once."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from tensorboard.backend.event_processing.io_wrapper import IsTensorFlowEventsFile

from runs import contents, events_of, groups_of
from train.report.seeds import ENDS, write_means

WRITERS, TIMES = 6, 3


def test_several_writers_at_once_all_succeed_and_leave_whole_files(sweep):
    """`compare` and the end of a training, or two trainings that end together."""
    groups = groups_of(sweep)[:1]
    barrier = Barrier(WRITERS)

    def write(_: int) -> list[list[str]]:
        barrier.wait()
        return [write_means(sweep, groups) for _ in range(TIMES)]

    with ThreadPoolExecutor(WRITERS) as pool:
        assert list(pool.map(write, range(WRITERS))) == [[["with"]] * TIMES] * WRITERS
    for end in ENDS:
        folder = sweep / f"with@{end}"
        assert all(IsTensorFlowEventsFile(str(file)) for file in folder.iterdir())
        assert [event.step for event in events_of(folder).Scalars("loss/train")] == list(range(10, 101, 10))
    write_means(sweep, groups)
    assert [len(list((sweep / f"with@{end}").iterdir())) for end in ENDS] == [1, 1, 1]


def test_writers_that_remove_the_means_of_a_group_at_once_all_succeed(sweep):
    groups, barrier = groups_of(sweep), Barrier(WRITERS)

    def remove(_: int) -> list[str]:
        barrier.wait()
        return write_means(sweep, [])

    for _ in range(TIMES):
        write_means(sweep, groups)
        with ThreadPoolExecutor(WRITERS) as pool:
            assert list(pool.map(remove, range(WRITERS))) == [[]] * WRITERS
        assert not list(sweep.glob("*@*"))


def test_tensorboard_sees_the_old_file_until_the_new_one_is_whole_and_on_the_disk(sweep, disk):
    groups, folder = groups_of(sweep)[:1], sweep / "with@mean"
    write_means(sweep, groups)
    before, visible = contents(folder), []

    def look(call) -> None:
        if call.operation == "fsync":
            visible.append({path: text for path, text in contents(folder).items() if IsTensorFlowEventsFile(str(path))})

    disk.after = look
    write_means(sweep, groups)
    assert visible[0] == before and not Path(next(iter(before))).exists()


def test_a_full_disk_leaves_the_means_as_they_were(sweep, disk):
    groups = groups_of(sweep)[:1]
    write_means(sweep, groups)
    before = contents(sweep)
    disk.refuse("fsync", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        write_means(sweep, groups)
    assert contents(sweep) == before
