"""A disk that refuses is one line: what was refused and why, and of a full one what was needed and what is free."""

import errno
import io
import os
from contextlib import closing

import pytest

from data.files import sync_folder
from train.cli import main
from train.disk import write_json
from train.errors import UserError, free_bytes, refusal
from train.log.console import Console
from train.log.writer import Tracker

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_is_needed_and_what_is_free(number, nearly_full, tmp_path):
    why = refusal(OSError(number, os.strerror(number)), tmp_path, 1_000_000)
    assert why == f"{os.strerror(number)} (about 1,000,000 bytes are needed, 12,345 bytes are free on that disk)"
    assert refusal(OSError(number, ""), tmp_path) == f"{os.strerror(number)} (12,345 bytes are free on that disk)"


@pytest.mark.parametrize("name", ["EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EIO", "ENOSPC"])
def test_a_file_system_that_syncs_no_folders_is_no_error(tmp_path, disk, name):
    number = getattr(errno, name)
    disk.refuse("fsync", number)
    if name in ("EIO", "ENOSPC"):
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)
    with pytest.raises(UserError, match="cannot write"):  # a file's content is another matter
        write_json(tmp_path / "a.json", {"x": 1})


def test_what_is_free_is_asked_of_a_folder_that_exists(tmp_path):
    there = free_bytes(tmp_path)
    assert there is not None and there > 0
    elsewhere = free_bytes(tmp_path / "not" / "yet" / "there")
    assert elsewhere is not None and abs(elsewhere - there) < 2**30


def test_a_file_that_does_not_fit_is_as_it_was(tmp_path, disk, nearly_full):
    write_json(tmp_path / "a.json", {"x": 1})
    disk.refuse("fsync", errno.ENOSPC)
    with pytest.raises(UserError, match=r"a\.json: cannot write: No space left.*about 12 bytes.*12,345 bytes are free"):
        write_json(tmp_path / "a.json", {"x": 2})
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}\n'


def test_a_folder_where_nothing_may_be_written_is_one_line(tmp_path, tiny, capsys):
    """A file in the place of the runs folder: as root, permissions refuse nothing."""
    (tmp_path / "runs").write_text("")
    (tmp_path / "c.yaml").write_text("name: x\ndata: {kind: markov}\ntrain: {steps: 2}\n")
    assert main(["train", str(tmp_path / "c.yaml"), f"runs_dir={tmp_path}/runs"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("deltaflow: ") and "runs" in lines[0]


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
