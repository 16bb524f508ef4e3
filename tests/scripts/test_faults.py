"""Injected faults have the effect of real ones, the sweeps hold in small, and they notice what is broken."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data import files
from scripts.faults import calls, damage
from scripts.faults.injection import Disk, Fault, Killed, injected
from scripts.faults.results import Row, markdown, sweep
from scripts.faults.snapshot import snapshot_of
from scripts.faults.tiny import Ended, bench
from train.store import tensors
from train.store.checkpoint import Checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the calls that are counted are Linux's")
OPERATIONS = ["mkdir", "create", "write", "fsync", "truncate", "rename", "fsync", "unlink", "rmdir"]


def writes(root: Path) -> None:
    os.mkdir(root / "d")
    with open(root / "d/a", "wb", buffering=0) as file:
        file.write(b"0123456789")
        os.fsync(file.fileno())
        file.truncate(6)
    os.replace(root / "d/a", root / "d/b")
    folder = os.open(root / "d", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    (root / "d/b").unlink()
    (root / "d").rmdir()


def test_every_call_is_counted_in_order(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with injected(Disk(str(tmp_path / "root"))) as disk:
        writes(tmp_path / "elsewhere")
        assert disk.calls == []
        (tmp_path / "root").mkdir()
        writes(tmp_path / "root")
    assert [call.operation for call in disk.calls] == ["mkdir", *OPERATIONS]


@pytest.mark.parametrize("at", range(1, 10))
def test_after_a_kill_nothing_has_an_effect(tmp_path, at):
    def run(fault: Fault) -> None:
        with pytest.raises(Killed), injected(Disk(str(tmp_path), fault)):
            try:
                writes(tmp_path)
            finally:
                (tmp_path / "late").touch()

    run(Fault(at))
    left = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))]
    assert left == [[], ["d"], *[["d", "d/a"]] * 4, *[["d", "d/b"]] * 2, ["d"]][at - 1]
    if at == 3:
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)
        run(Fault(at, half=True))
        assert (tmp_path / "d/a").read_bytes() == b"01234"


def test_bytes_in_a_buffer_are_lost_with_the_process(tmp_path):
    with pytest.raises(Killed), injected(Disk(str(tmp_path), Fault(2))):
        file = open(tmp_path / "a", "w")  # noqa: SIM115
        file.write("buffered")
        os.mkdir(tmp_path / "d")
    del file
    assert (tmp_path / "a").read_bytes() == b""


def test_a_call_fails_once_or_from_then_on(tmp_path):
    with injected(Disk(str(tmp_path), Fault(2, errno.ENOSPC, half=True))), open(tmp_path / "a", "wb", 0) as file:
        with pytest.raises(OSError, match="No space left"):
            file.write(b"0123456789")
        file.write(b"x")
    assert (tmp_path / "a").read_bytes() == b"01234x"
    with injected(Disk(str(tmp_path), Fault(1, errno.EIO, persistent=True))):
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                open(tmp_path / "b", "wb")  # noqa: SIM115
    assert not (tmp_path / "b").exists()


class Draws:
    def __init__(self, number: float):
        self.random = lambda: number


def test_a_power_cut_takes_what_was_not_synced(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"1")
    disk = Disk(str(root), power=True)
    with injected(disk):
        for name, synced in (("a", True), ("b", False)):
            with open(root / name, "wb", 0) as file:
                file.write(b"0123")
                if synced:
                    os.fsync(file.fileno())
        with open(root / "new", "wb", 0) as file:
            file.write(b"2")
        os.replace(root / "new", root / "old")
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    disk.cut(Draws(0.9))  # pyright: ignore[reportArgumentType]
    assert {path.name: path.read_bytes() for path in root.iterdir()} == {"old": b"1"}  # the folder was never synced
    disk = Disk(str(root), power=True)
    for name, content in before.items():
        (root / name).write_bytes(content)
    disk.cut(Draws(0.1))  # pyright: ignore[reportArgumentType]
    assert {path.name: path.read_bytes() for path in root.iterdir()} == {"a": bytes(4), "b": bytes(4), "old": b"1"}


@pytest.fixture(scope="module")
def tiny():
    with bench(1) as made:
        yield made


def test_calls_hold_in_small(tiny):
    renames = [at for at, call in enumerate(tiny.calls, 1) if ".safetensors" in call.other]
    assert len(renames) == 4 and tiny.calls[-1].operation == "unlink"
    for fault, trial in (
        (Fault(renames[1]), calls.killed),
        (Fault(renames[1] + 2), lambda made, fault: calls.cut(made, fault, np.random.default_rng(0))),
        (Fault(renames[3], errno.ENOSPC, True, True), calls.refused),
    ):
        assert trial(tiny, fault) == []
        tiny.clear()


def test_a_save_that_is_not_synced_is_noticed(tiny, monkeypatch):
    monkeypatch.setattr(files, "sync_folder", lambda path: None)
    renames = [at for at, call in enumerate(tiny.calls, 1) if ".safetensors" in call.other]
    disk = Disk(str(tiny.runs), Fault(renames[1]), power=True)
    assert tiny.train(disk).code == -9
    disk.cut(Draws(0.9))  # pyright: ignore[reportArgumentType]
    assert any("goes on from step 0" in line for line in tiny.again(2))
    tiny.clear()


def test_how_a_run_ends_on_a_full_disk_is_judged():
    def judged(code: int, output: str) -> str:
        return " ".join(calls.ended_badly(Ended(code, output), full=True))

    assert judged(1, "deltaflow: x: cannot save: No space left on device (about 1 bytes are needed, 2 are free)") == ""
    assert judged(0, "done") == ""
    assert "ended with 1: Traceback" in judged(1, "Traceback (most recent call last):\ndeltaflow: x")
    assert judged(1, "OSError: 28") == "0 lines about what was wrong: OSError: 28"
    assert "1 lines" in judged(0, "deltaflow: x")
    assert "ended with 120" in judged(120, "deltaflow: x")
    assert "free" in judged(1, "deltaflow: x: No space left on device")


def test_no_damage_is_restored():
    rows = list(damage.rows(0.02, seed=1))
    assert len(rows) == 8 and sum(row.trials for row in rows) >= 25
    assert [(row.fault, row.broken) for row in rows if row.held != row.trials] == []


@pytest.mark.parametrize("careless", ["nothing is verified", "no digest is compared"])
def test_damage_that_is_not_verified_is_noticed(monkeypatch, careless):
    if careless == "nothing is verified":
        monkeypatch.setattr(Checkpoints, "damage", lambda *_: None)
    else:

        class Equal(bytes):
            def __ne__(self, other):
                return False

        real = tensors.hashlib.sha256
        digest = lambda *data: SimpleNamespace(  # noqa: E731
            digest=lambda: Equal(32), digest_size=32, update=lambda _: None
        )
        monkeypatch.setattr(tensors.hashlib, "sha256", digest)
        assert real is not digest
    rows = {row.fault: row for row in damage.rows(0.02, seed=1)}
    flips = rows["the newest checkpoint: one bit flipped"]
    assert flips.held < flips.trials


def test_a_sweep_that_breaks_is_a_broken_row_and_keeps_what_it_has(monkeypatch):
    def rows(scale, seed):
        yield Row("a fault", "a promise", 3, 3, f"scale {scale}, seed {seed}")
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "scripts.faults.half", SimpleNamespace(rows=rows))
    found, lines = sweep("half", 0.5, 7)
    assert [(row.trials, row.held) for row in found] == [(3, 3), (1, 0)]
    assert lines[1:] == [
        "  a fault: 3 of 3 held; scale 0.5, seed 7",
        "  the sweep half itself: 0 of 1 held",
        "    broken: KeyboardInterrupt: ",
    ]
    assert "ModuleNotFoundError" in sweep("no_such_sweep", 1, 0)[1][-1]


def test_the_table_has_a_line_a_row():
    table = markdown([Row("kill -9", "nothing lost", 1200, 1200, "so")])
    assert table.splitlines()[2] == "| kill -9 | nothing lost | 1,200 | 1,200 | so |"


def test_a_snapshot_has_every_parameter(tiny):
    tiny.train()
    assert snapshot_of(tiny.runs / "tiny" / "with").params.keys() >= {"embed", "blocks/attn/q/kernel"}
    tiny.clear()
