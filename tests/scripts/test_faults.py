"""Injected faults have the effect of real ones, the sweeps hold in small, and they notice what is broken."""

import errno
import hashlib
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.faults import calls, configs, damage
from scripts.faults.injection import Disk, Fault, Killed, injected
from scripts.faults.sweep import HELD, Broken, Row, Sweep, markdown, row_of, rows_of
from scripts.faults.tiny import bench, differing
from train.config.load import ConfigError, Place, Problem
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


def test_a_call_that_fails_by_itself_is_counted_too(tmp_path):
    for fault in (Fault(3, errno.EIO), None):
        with injected(Disk(str(tmp_path), fault)) as disk:
            (tmp_path / "absent").unlink(missing_ok=True)
            tmp_path.mkdir(exist_ok=True)
            with pytest.raises(OSError, match="Input/output error") if fault else nullcontext():
                (tmp_path / "a").touch()
        assert [call.operation for call in disk.calls] == ["unlink", "mkdir", *["create"] * (fault is None)]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("at", range(1, 10))
def test_after_a_kill_nothing_has_an_effect(tmp_path, at, half):
    with pytest.raises(Killed), injected(Disk(str(tmp_path), Fault(at, half=half))):
        try:
            writes(tmp_path)
        finally:
            (tmp_path / "late").touch()
    left = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))]
    assert left == [[], ["d"], *[["d", "d/a"]] * 4, *[["d", "d/b"]] * 2, ["d"]][at - 1]
    if at == 3:
        assert (tmp_path / "d/a").read_bytes() == (b"01234" if half else b"")


def test_bytes_in_a_buffer_are_lost_with_the_process(tmp_path):
    with pytest.raises(Killed), injected(Disk(str(tmp_path), Fault(2))):
        file = open(tmp_path / "a", "w")  # noqa: SIM115
        file.write("buffered")
        os.mkdir(tmp_path / "d")
    del file
    assert (tmp_path / "a").read_bytes() == b""


def test_a_call_fails_once_or_from_then_on(tmp_path):
    with injected(Disk(str(tmp_path), Fault(2, errno.ENOSPC, half=True))), open(tmp_path / "a", "wb", 0) as file:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            file.write(b"0123456789")
        file.write(b"x")
    assert (tmp_path / "a").read_bytes() == b"01234x"
    with injected(Disk(str(tmp_path), Fault(1, errno.EIO, persistent=True))):
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                open(tmp_path / "b", "wb")  # noqa: SIM115
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("names_survive", "left"),
    [(False, {"old": b"1"}), (True, {"a": b"0123", "b": bytes(4), "old": b"1"})],  # the folder was never synced
)
def test_a_power_cut_takes_what_was_not_synced(tmp_path, names_survive, left):
    (tmp_path / "old").write_bytes(b"1")
    with injected(Disk(str(tmp_path))) as disk:
        for name in ("a", "gone", "b", "new"):
            with open(tmp_path / name, "wb", 0) as file:
                file.write(b"0123")
                if name != "b":
                    os.fsync(file.fileno())
            if name == "gone":
                (tmp_path / name).unlink()  # a file system may give its number to the next
        os.replace(tmp_path / "new", tmp_path / "old")
    disk.cut(names_survive)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left


@pytest.fixture(scope="module")
def tiny():
    with bench() as made:
        yield made


@pytest.fixture
def renames(tiny):
    """The calls that give each of the four checkpoints its name."""
    yield [at for at, call in enumerate(tiny.calls, 1) if ".safetensors" in call.other]
    tiny.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trial", "fault"),
    [
        (calls.kill, lambda renames: Fault(renames[1])),
        (calls.cut, lambda renames: (Fault(renames[1] + 2), False)),
        (calls.refuse, lambda renames: Fault(renames[3], errno.ENOSPC, True, True)),
    ],
)
def test_calls_hold_in_small(tiny, renames, trial, fault):
    assert len(renames) == 4 and tiny.calls[-1].operation == "write"  # of the finding
    assert trial(tiny, fault(renames)) == HELD


class Forgetful(Disk):
    """A disk of a run that syncs no folder."""

    def do(self, call, real, half):
        return super().do(call._replace(operation="none") if os.path.isdir(call.path) else call, real, half)


def test_a_save_that_is_not_synced_is_noticed(tiny, renames, wording):
    disk = Forgetful(str(tiny.runs), Fault(renames[1] + 2))
    assert tiny.train(disk)[0] == -9
    disk.cut(names_survive=False)
    with wording.raises(Broken):
        tiny.again(2)


def test_whatever_differs_is_named(tiny, renames):
    assert tiny.train()[0] == 0 and differing(tiny.whole, tiny.runs) == []
    assert tiny.whole["with"].keys() >= {"parameter embed", "parameter blocks/attn/q/kernel", "TensorBoard's loss/val"}
    run = tiny.runs / "tiny" / "with"
    for name, old, new in (("metrics.jsonl", '"step":6', '"step":7'), ("summary.json", '"steps": 8', '"steps": 9')):
        whole = (run / name).read_text()
        (run / name).write_text(whole.replace(old, new))
        (line,) = differing(tiny.whole, tiny.runs)
        assert line.startswith("with: ") and name in line
        (run / name).write_text(whole)
    Checkpoints(run).path(8).unlink()
    assert {line.split(": ")[1] for line in differing(tiny.whole, tiny.runs)} > {"step", "parameter embed"}


@pytest.mark.parametrize(
    ("code", "output", "good"),
    [
        (1, "deltaflow: x: cannot save: No space left on device (about 1 bytes are needed, 2 are free)", True),
        (0, "done", True),
        (1, "Traceback (most recent call last):\ndeltaflow: x", False),
        (1, "OSError: 28", False),
        (0, "deltaflow: x", False),
        (120, "deltaflow: x", False),
        (1, "deltaflow: x: No space left on device", False),
    ],
    ids=["full", "done", "traceback", "no line", "a line too many", "code", "nothing free"],
)
def test_how_a_run_ends_on_a_full_disk_is_judged(code, output, good, wording):
    with nullcontext() if good else wording.raises(Broken):
        calls.ends_well(code, output, full=True)


@pytest.mark.parametrize("module", ["damage", pytest.param("configs", marks=pytest.mark.slow)])
def test_the_sweep_holds_in_small(module):
    rows, lines = rows_of(module, 0.01, 1)
    assert len(rows) >= 3 and sum(row.trials for row in rows) > 50
    assert [row for row in rows if row.held != row.trials] == [], lines


@pytest.mark.slow
def test_every_sweep_holds(tmp_path):
    """By the command, whose processes are none of this suite's, and which writes the table into a page."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- faults -->\nold\n<!-- /faults -->\nafter\n", encoding="utf-8")
    command = [sys.executable, "scripts/faults", "--scale", "0.01", "--write", str(page)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *table, last = page.read_text(encoding="utf-8").splitlines()
    assert (first, last) == ("before", "after") and len(table) > 20 and "old" not in table


class Equal(bytes):
    def __ne__(self, other):
        return False


@pytest.mark.parametrize("careless", ["nothing is verified", "no digest is compared"])
def test_damage_that_is_not_verified_is_noticed(monkeypatch, careless):
    if careless == "nothing is verified":
        monkeypatch.setattr(Checkpoints, "damage", lambda *_: None)
    else:
        digest = SimpleNamespace(digest=lambda: Equal(32), digest_size=32, update=lambda _: None)
        monkeypatch.setattr(hashlib, "sha256", lambda *_: digest)
    row = row_of(next(damage.sweeps(1)), 0.01)
    assert row.fault == "the newest checkpoint: every bit flipped" and row.held < row.trials


def fails(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize(
    ("name", "stand_in", "broken"),
    [
        *(("load", fails(error), type(error).__name__) for error in (ValueError("a"), RecursionError(), SystemExit(1))),
        ("load", fails(ConfigError([Problem(Place("a\x1b[2J"), "", "x")])), "Broken: printed "),  # unescaped
        ("limit_s", 0.0, "Broken: took "),
        ("to_yaml", lambda config: "name: y\n", "Broken: variant main reads back as another config"),
    ],
)
def test_a_config_that_breaks_its_promise_is_noticed(tmp_path, name, stand_in, broken):
    def trial(content: bytes) -> tuple[str, float]:
        return configs.check_load(tmp_path / "a.yaml", content, **{name: stand_in})

    (line,) = row_of(Sweep("", "", [b"name: x\n"], trial)).broken
    assert broken in line


def test_a_wrong_exit_code_is_noticed(tmp_path, wording):
    assert configs.check_command(tmp_path / "a.yaml", b"name: 1\n") == ("refused", 0.0)
    with wording.raises(Broken):
        configs.check_command(
            tmp_path / "a.yaml", b"name: 1\n", main=lambda _: print("deltaflow: x", file=sys.stderr) or 1
        )


def test_a_sweep_is_a_row_and_one_that_breaks_keeps_what_it_has(monkeypatch):
    def trial(place):
        if place == 3:
            raise KeyboardInterrupt
        return ("odd" if place % 2 else ""), place / 4

    def sweeps(seed):
        yield Sweep("a fault", f"a promise of {seed}", range(8), trial)
        raise RuntimeError("x")

    monkeypatch.setitem(sys.modules, "scripts.faults.half", SimpleNamespace(sweeps=sweeps))
    rows, lines = rows_of("half", 1, 7)
    note = "3 odd; the slowest took 1.75 s"
    assert rows[0] == Row("a fault", "a promise of 7", 8, 7, note, ("3: KeyboardInterrupt: ",))
    assert lines[1:] == [
        f"  a fault: 7 of 8 held; {note}",
        "    broken: 3: KeyboardInterrupt: ",
        "  the sweep half itself: 0 of 1 held",
        "    broken: RuntimeError: x",
    ]
    assert markdown(rows[:1]).splitlines()[2] == f"| a fault | a promise of 7 | 8 | 7 | {note} |"
    assert [row_of(next(sweeps(0)), 0.5, shift).held for shift in (0.0, 0.99)] == [4, 3]
    assert "ModuleNotFoundError" in rows_of("no_such_module", 1, 0)[1][-1]
