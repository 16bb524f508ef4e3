"""A disk that refuses is one line: what was refused and why, and of a full one what was needed and what is free."""

import errno
import io
import os
import re
from contextlib import closing

import pytest

from data.files import sync_folder
from train.cli import main
from train.disk import write_json
from train.errors import UserError, free_bytes, refusal
from train.log.console import Console
from train.log.writer import Tracker

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_says_what_is_needed_and_what_is_free(name, nearly_full, tmp_path, wording):
    number = getattr(errno, name)
    for why, parts in (
        (refusal(OSError(number, os.strerror(number)), tmp_path, 1_000_000), ["1,000,000", "12,345"]),
        (refusal(OSError(number, ""), tmp_path), ["12,345"]),
    ):
        assert why.startswith(f"{os.strerror(number)} (") and re.findall(r"[\d,]*\d", why) == parts
        wording(why)


@pytest.mark.parametrize("name", ["EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EIO", "ENOSPC"])
def test_a_file_system_that_syncs_no_folders_is_no_error(tmp_path, disk, name, wording):
    number = getattr(errno, name)
    disk.refuse("fsync", number)
    if name in ("EIO", "ENOSPC"):
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)
    # A file's content is another matter.
    with wording.raises(UserError, tmp_path / "a.json", volatile=r"[\d,]+(?= bytes are free)"):
        write_json(tmp_path / "a.json", {"x": 1})


def test_what_is_free_is_asked_of_a_folder_that_exists(tmp_path):
    there = free_bytes(tmp_path)
    assert there is not None and there > 0
    elsewhere = free_bytes(tmp_path / "not" / "yet" / "there")
    assert elsewhere is not None and abs(elsewhere - there) < 2**30


def test_a_file_that_does_not_fit_is_as_it_was(tmp_path, disk, nearly_full, wording):
    write_json(tmp_path / "a.json", {"x": 1})
    disk.refuse("fsync", errno.ENOSPC)
    with wording.raises(UserError, tmp_path / "a.json") as caught:
        write_json(tmp_path / "a.json", {"x": 2})
    assert "12 bytes" in str(caught.value) and "12,345 bytes" in str(caught.value)
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}\n'


def test_a_folder_where_nothing_may_be_written_is_one_line(tmp_path, tiny, capsys, wording):
    """A file in the place of the runs folder: as root, permissions refuse nothing."""
    (tmp_path / "runs").write_text("")
    (tmp_path / "c.yaml").write_text("name: x\ndata: {kind: markov}\ntrain: {steps: 2}\n")
    assert main(["train", str(tmp_path / "c.yaml"), f"runs_dir={tmp_path}/runs"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    wording(err, tmp_path / "runs" / "x" / "main")


class Refusing(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, _):
        raise self.error


def test_an_output_that_is_full_stops_nothing():
    Console(Refusing(FULL)).note("x")
    with pytest.raises(BrokenPipeError):
        Console(Refusing(BrokenPipeError())).note("x")


def test_the_names_of_logs_are_synced(tmp_path, disk):
    """Or a power cut could take the whole file, whose bytes are safe."""

    def synced() -> list[str]:
        return [call.path for call in disk.calls if call.operation == "fsync" and os.path.isdir(call.path)]

    with closing(Tracker(tmp_path)) as run:
        run.log(0, {"x": 1.0})
        assert run.drain()
        run.log(1, {"x": 1.0})
    assert synced() == [str(tmp_path)] * 2  # each once
    Tracker(tmp_path, first_step=1).close()
    assert synced() == [str(tmp_path)] * 3  # the rows' file was there before
