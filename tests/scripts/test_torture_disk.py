"""The shim sees what a run writes, the sweeps can fail, and in small they hold; `make torture` does all of them."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.torture import disks, kills, powercuts
from scripts.torture.power import Disk
from scripts.torture.row import Row, markdown
from scripts.torture.shim import Action, Fault, Unavailable, calls, library, preloaded
from scripts.torture.stage import ROOT, Ended
from scripts.torture.tiny import bench

try:
    library()
except Unavailable as why:
    pytest.skip(str(why), allow_module_level=True)

WRITER = """
import os, sys
os.mkdir("d")
with open("d/a", "wb", buffering=0) as file:
    file.write(b"0123456789")
    os.fsync(file.fileno())
    file.truncate(6)
os.replace("d/a", "d/b")
folder = os.open("d", os.O_RDONLY)
os.fsync(folder)
os.unlink("b", dir_fd=folder)
os.rmdir("d")
"""
SEEN = [
    "mkdir d",
    "create d/a",
    "write d/a",
    "fsync d/a",
    "truncate d/a",
    "rename d/a",
    "fsync d",
    "unlink d/b",
    "rmdir d",
]


def python(code: str, folder: Path, fault: Fault) -> subprocess.CompletedProcess:
    environment = {**os.environ, **preloaded(), **fault.environment()}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def seen(log: Path, root: Path) -> list[str]:
    return [f"{call.operation} {Path(call.path).relative_to(root)}" for call in calls(log)]


def test_the_shim_counts_every_call_in_order(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    done = python(WRITER, root, Fault(str(root), log=str(tmp_path / "log")))
    assert done.returncode == 0, done.stderr
    assert seen(tmp_path / "log", root) == SEEN
    assert [call.number for call in calls(tmp_path / "log")] == list(range(1, 10))
    assert {call.outcome for call in calls(tmp_path / "log")} == {"ok"}


@pytest.mark.parametrize("at", range(1, 10))
def test_the_shim_kills_before_or_in_the_middle_of_a_call(tmp_path, at):
    root = tmp_path / "root"
    root.mkdir()
    done = python(WRITER, root, Fault(str(root), at, Action.BEFORE, log=str(tmp_path / "log")))
    assert done.returncode == -9
    assert seen(tmp_path / "log", root) == SEEN[:at]
    there = [str(path.relative_to(root)) for path in sorted(root.rglob("*"))]
    assert there == [[], ["d"], *[["d", "d/a"]] * 4, *[["d", "d/b"]] * 2, ["d"]][at - 1]
    if SEEN[at - 1].startswith("write"):
        shutil.rmtree(root)
        root.mkdir()
        assert python(WRITER, root, Fault(str(root), at, Action.DURING)).returncode == -9
        assert (root / "d/a").read_bytes() == b"01234"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_the_shim_fails_a_call(tmp_path, code):
    root = tmp_path / "root"
    root.mkdir()
    done = python(WRITER, root, Fault(str(root), 4, Action.ONCE, code, log=str(tmp_path / "log")))
    assert done.returncode == 1 and f"OSError: [Errno {code}]" in done.stderr
    assert [call.outcome for call in calls(tmp_path / "log")] == ["ok"] * 3 + [str(code)]
    assert (root / "d/a").read_bytes() == b"0123456789"


def test_a_disk_that_becomes_full_takes_half_and_then_nothing(tmp_path):
    code = """
import os
with open("a", "wb", buffering=0) as file:
    print(file.write(b"0123456789"))
    for _ in range(2):
        try:
            file.write(b"56789")
        except OSError as error:
            print(error.errno)
"""
    done = python(code, tmp_path, Fault(str(tmp_path), 2, Action.SHORT, errno.ENOSPC))
    assert done.stdout.split() == ["5", "28", "28"]
    assert (tmp_path / "a").read_bytes() == b"01234"


def test_what_lies_elsewhere_is_not_touched(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    done = python(WRITER, tmp_path / "root2", Fault(str(tmp_path / "root"), 1, Action.BEFORE))
    assert done.returncode == 0


NOTED = """1\tmkdir\tok\t0\t{0}/c\t
2\tcreate\tok\t0\t{0}/c/a\t
3\twrite\tok\t4\t{0}/c/a\t
4\tfsync\tok\t4\t{0}/c/a\t
5\twrite\tok\t3\t{0}/c/a\t
6\tfsync\tok\t0\t{0}/c\t
7\trename\tok\t0\t{0}/new\t{0}/old
8\tfsync\tok\t0\t{0}\t
9\trename\tok\t0\t{0}/c\t{0}/d
"""


@pytest.mark.parametrize(
    ("done", "left"),
    [
        (9, {"c/a": b"0123", "old": b"2"}),  # the rename of c is not synced, and of a the first write only
        (8, {"c/a": b"0123", "old": b"2"}),
        (7, {"new": b"2", "old": b"1"}),  # nor c's own name
        (5, {"new": b"2", "old": b"1"}),
    ],
)
def test_a_power_cut_takes_what_was_not_synced(tmp_path, done, left):
    root, keep, log = tmp_path / "root", tmp_path / "keep", tmp_path / "log"
    root.mkdir()
    keep.mkdir()
    (root / "old").write_bytes(b"1")
    (root / "new").write_bytes(b"2")
    disk = Disk.of(root)
    log.write_text("".join(NOTED.format(root).splitlines(keepends=True)[:done]))
    (root / "c").mkdir()
    (root / "c/a").write_bytes(b"0123456")
    if done >= 7:
        os.link(root / "old", keep / "7")  # as the shim does
        os.replace(root / "new", root / "old")
    if done >= 9:
        os.replace(root / "c", root / "d")
    disk.saw(calls(log))

    class All:  # of what is not safe
        def random(self):
            return 0.0

    disk.cut(keep, All())
    assert {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()} == left


def test_how_a_run_ends_on_a_full_disk_is_judged():
    def judged(code: int, output: str, late: bool = False) -> str:
        return " ".join(disks.wrong(Ended(code, 1.0, late, output), full=True))

    assert judged(1, "deltaflow: x: cannot save: No space left on device (about 1 bytes are needed, 2 are free)") == ""
    assert judged(0, "done") == ""
    assert judged(-9, "", late=True) == "hangs"
    assert judged(1, "Traceback (most recent call last):\ndeltaflow: x") == "a traceback: deltaflow: x"
    assert judged(1, "OSError: 28") == "0 lines of what was wrong: OSError: 28"
    assert "1 lines" in judged(0, "deltaflow: x")
    assert "ended with 120" in judged(120, "deltaflow: x")
    assert "free" in judged(1, "deltaflow: x: No space left on device")


def test_the_table_has_a_line_a_row():
    table = markdown([Row("kill -9", "nothing lost", 1200, 1200, "so")])
    assert table.splitlines()[2] == "| kill -9 | nothing lost | 1,200 | 1,200 | so |"


@pytest.fixture(scope="module")
def made():
    with bench(1) as bench_of_one:
        yield bench_of_one


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_strace_sees_no_other_calls(made, tmp_path):
    """Neither by a bare syscall nor by one that the shim does not know."""
    kinds = "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,msync,rename,"
    kinds += "renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,ftruncate,truncate,fallocate,copy_file_range,"
    kinds += "sendfile,splice,io_uring_enter,link,linkat,symlink,symlinkat,mknod,mknodat"
    log, runs, trace = tmp_path / "log", tmp_path / "runs", tmp_path / "trace"
    runs.mkdir()
    command = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", f"trace={kinds}"]
    fault = Fault(str(runs), log=str(log))
    environment = {**os.environ, **preloaded(), **fault.environment(), "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "train", "train", "tiny.yaml", f"runs_dir={runs}", "train.steps=2"]
    done = subprocess.run([*command, *program], cwd=made.folder, env=environment, capture_output=True, text=True)
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip("strace is not allowed here")
    assert done.returncode == 0, done.stderr[-500:]
    reads = re.compile(r"open(at)?\(.*O_RDONLY")
    text = trace.read_text(errors="replace")
    lines = [line for line in text.splitlines() if str(runs) in line and "<unfinished" not in line]
    changing = [line for line in lines if not reads.search(line) and " resumed>" not in line]
    unfinished = [line for line in text.splitlines() if str(runs) in line and "<unfinished" in line]
    changing += [line for line in unfinished if not reads.search(line)]
    opened = [line for line in changing if re.search(r"open(at)?\(", line) and not re.search("O_CREAT|O_TRUNC", line)]
    assert len(changing) - len(opened) == len(calls(log)), json.dumps(changing[:5])


def test_kills_in_small(made):
    row = kills.at_calls(made, 0.003, 0)
    assert row.trials >= 2 and row.held == row.trials, row.broken


def test_power_cuts_in_small(made):
    row = powercuts.at_calls(made, 0.003, 0)
    assert row.trials >= 2 and row.held == row.trials, row.broken


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_failing_disks_in_small(made, code):
    row = disks.failing(made, code, 60.0, 0.003, 0)
    assert row.trials >= 2 and row.held == row.trials, row.broken


def test_a_real_full_disk(made):
    rows = list(disks.full(made, 60.0, 0.05))
    if not rows:
        pytest.skip("mounting is not allowed here")
    assert rows[0].held == rows[0].trials == 1, rows[0].broken
