"""The speed contest: its arithmetic on made-up times, turns and workers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench.__main__ import target
from scripts.bench.contest import ColdStart, Ended, Entry, Here, Lane, Worker, contest, steps_in
from scripts.bench.contestant import Facts
from scripts.bench.table import paired, table

TRAINS = Facts(versions="made up 1.0", device="abacus", dtype="float32", flops=6e6, tokens=100)
PRODUCT = Facts(versions="made up 1.0", device="abacus", dtype="float32", flops=1e6)


def lane(name: str, facts: Facts | None = None, seconds: tuple[float, ...] = (), trouble: str = "") -> Lane:
    return Lane(Entry(name, name, "nowhere", {}), facts, list(seconds), trouble)


def cells(lanes: list[Lane]) -> dict[str, dict[str, str]]:
    columns, rows = table(lanes, "project")
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def test_ratios_are_taken_within_a_round() -> None:
    # The second round is ten times slower for both: 2/1, 30/10, 2/1 -> 2. The ratio of the minima would be 2, of the
    # means 34/12; and with over = (2, 30, 5) the pairs 2, 3, 5 have the median 3, the medians 5/1.
    under = lane("under", TRAINS, (1.0, 10.0, 1.0))
    assert paired(lane("over", TRAINS, (2.0, 30.0, 2.0)), under) == 2.0
    assert paired(lane("over", TRAINS, (2.0, 30.0, 5.0)), under) == 3.0


def test_a_table_by_hand() -> None:
    lanes = [
        lane("jax", TRAINS, (0.004, 0.006, 0.009)),
        lane("project", TRAINS, (0.002, 0.004, 0.003)),
        lane("torch", trouble="not installed: torch"),
        lane("matmul slow", PRODUCT, (1e-3, 1e-3, 1e-3)),
        lane("matmul", PRODUCT, (1e-4, 2e-4, 1e-4)),
        lane("matmul half", replace(PRODUCT, dtype="bfloat16"), (1e-6, 1e-6, 1e-6)),
    ]
    plain, project, absent, slow, fast, half = cells(lanes).values()
    # Medians 3 and 6 ms; 100 tokens in 3 ms; pairs 2, 1.5, 3; 6e6 FLOP in 3 ms.
    assert (project["ms/step"], project["min"], project["tokens/s"]) == ("3.00", "2.00", "33,333")
    assert (plain["ms/step"], plain["min"], plain["tokens/s"]) == ("6.00", "4.00", "16,667")
    assert (project["time / project"], plain["time / project"]) == ("1.00", "2.00")
    assert (project["GFLOP/s"], plain["GFLOP/s"]) == ("2", "1")
    # The peak of the same dtype, 1e6 FLOP in 0.1, 0.2, 0.1 ms, round by round: 6e6/1e6 * peak/program is
    # 0.3, 0.3, 0.2 for the project and 0.15, 0.2, 0.067 for the plain program.
    assert (project["of peak"], plain["of peak"]) == ("30%", "15%")
    assert (slow["of peak"], fast["of peak"], half["of peak"]) == ("10%", "100%", "100%")
    assert (fast["GFLOP/s"], fast["ms/step"], fast["time / project"]) == ("10", "-", "-")
    assert absent["made with"] == "not installed: torch" and set([*absent.values()][1:-1]) == {"-"}
    assert target(lanes) == ["2.00x the step rate of the straightforward program (jax)"]


def test_without_the_project_the_first_program_is_the_measure() -> None:
    lanes = [lane("project", trouble="not available: so"), lane("jax", TRAINS, (0.2,)), lane("flax", TRAINS, (0.1,))]
    lanes += [lane("matmul", PRODUCT, (1e-4,))]
    assert cells(lanes)["flax"]["time / jax"] == "0.50" and target(lanes) == []
    assert cells(lanes[:1]) == {"project": {"program": "project", "made with": "not available: so"}}


def test_a_lane_that_died_midway_leaves_no_figures_and_starts_are_seconds() -> None:
    died = lane("jax", TRAINS, (1.0,), "died with exit status 3 (in round 2)")
    lanes = [lane("project", TRAINS, (1.0, 1.0)), died]
    assert cells(lanes)["jax"]["ms/step"] == "-" and target(lanes) == []
    start = replace(TRAINS, tokens=0, flops=0.0)
    starts = cells([lane("project", start, (2.0, 4.0)), lane("jax", start, (1.0, 3.0)), died])
    assert list(starts["project"].values()) == ["project", "3.00", "2.00", "1.00", "float32, made up 1.0"]


class Fake:
    """A runner whose steps take `cost(calls so far)` seconds of its own clock."""

    def __init__(self, log: list[tuple[str, int]], name: str, cost: Callable[[int], float], dispatch: int = 1) -> None:
        self.facts = replace(TRAINS, dispatch=dispatch)
        self._log, self._name, self._cost = log, name, cost
        self.calls = 0
        self.closed = False

    def run(self, n: int) -> float:
        self._log.append((self._name, n))
        self.calls += 1
        return n * self._cost(self.calls)

    def close(self) -> None:
        self.closed = True


def test_stretches_are_about_as_long_as_asked_and_whole_windows() -> None:
    # 0.01 s a step: windows of 7 double until 0.3 s are reached (7, 14, 28, 56); 2 s are 200 steps, 29 windows.
    log: list[tuple[str, int]] = []
    assert steps_in(Fake(log, "a", lambda call: 0.01, dispatch=7), 2.0) == 203
    assert [n for _, n in log] == [7, 14, 28, 56]
    assert steps_in(Fake(log, "slow", lambda call: 5.0), 2.0) == 1
    assert steps_in(Fake(log, "untried", lambda call: 5.0, dispatch=3), 0.0) == 3 and log[-1][0] == "slow"


def test_contest_takes_turns_and_outlives_a_death() -> None:
    log: list[tuple[str, int]] = []

    def dies(call: int) -> float:
        if call == 3:  # one call to calibrate, one round, then
            raise Ended("died with exit status 9")
        return 1.0

    fakes = {"a": Fake(log, "a", lambda call: 1.0), "b": Fake(log, "b", dies), "c": Fake(log, "c", lambda call: call)}

    def start(entry: Entry) -> Fake:
        if entry.name == "absent":
            raise Ended("not installed: it")
        return fakes[entry.name]

    entries = [Entry(name, name, "nowhere", {}) for name in ("a", "b", "absent", "c")]
    a, b, absent, c = contest(entries, start, rounds=3, seconds=1.0, pause=0.0)
    assert [name for name, _ in log] == [*"abc", *"abc", *"cba", *"ac"]
    assert a.seconds == [1.0, 1.0, 1.0]
    assert c.seconds == [2.0, 3.0, 4.0]
    assert b.trouble == "died with exit status 9 (in round 2)"
    assert absent.trouble == "not installed: it"
    assert all(fake.closed for fake in fakes.values())


@pytest.fixture
def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Worker]:
    """Starts a real worker process on a module whose `contestant` has the given body."""
    monkeypatch.syspath_prepend(tmp_path)

    def start(body: str) -> Worker:
        (tmp_path / "made_up.py").write_text(f"""
import os, sys, tempfile, time
from scripts.bench.contestant import Contestant, Facts, Unavailable

def contestant():
    {body}
    return Contestant(run, Facts('v', 'd', 'float32', dispatch=5))
""")
        return Worker(Entry("a", "a", "made_up", {}), 10.0, {"MADE": "4"})

    return start


def test_a_worker_answers_and_ends(fake_worker: Callable[[str], Worker]) -> None:
    worker = fake_worker("print('noise'); tempfile.mkstemp(); run = lambda n: n / int(os.environ['MADE'])")
    assert worker.facts == Facts("v", "d", "float32", dispatch=5)
    assert [worker.run(1), worker.run(10)] == [0.25, 2.5]
    assert worker.start_seconds > 0
    folder = Path(worker._folder.name)
    assert len(list(folder.iterdir())) == 2 and (folder / "output").read_text() == "noise\n"
    worker.close()
    assert not folder.exists()


def test_a_cold_start_is_a_new_process_each_time(fake_worker: Callable[[str], Worker]) -> None:
    pids = []

    def start() -> Worker:
        pids.append((worker := fake_worker("run = lambda n: n"))._process.pid)
        return worker

    cold = ColdStart(start)
    (lane,) = contest([Entry("a", "a", "made_up", {})], lambda entry: cold, rounds=2, seconds=0.0, pause=0.0)
    assert len(set(pids)) == 3 and len(lane.seconds) == 2 and min(lane.seconds) > 0
    assert lane.facts == Facts("v", "d", "float32", dispatch=1)


@pytest.mark.parametrize(
    "body",
    [
        "import no_such_package",
        "raise Unavailable('no device')",
        "raise OSError('first line\\nsecond')",
        "print('last words'); sys.stdout.flush(); os._exit(7)",
    ],
)
def test_a_worker_that_cannot_start_says_one_line(fake_worker: Callable[[str], Worker], body: str, wording) -> None:
    with wording.raises(Ended) as ended:
        fake_worker(body)
    assert "\n" not in str(ended.value)


def test_a_worker_that_dies_later_says_one_line(fake_worker: Callable[[str], Worker], wording) -> None:
    worker = fake_worker("run = lambda n: 0.5 if n < 9 else os._exit(3)")
    assert worker.run(8) == 0.5
    for _ in range(2):
        with wording.raises(Ended):
            worker.run(9)
    worker.close()


@pytest.mark.slow
def test_a_contestant_in_this_process_runs_or_says_one_line(wording) -> None:
    here = Here(Entry("a", "a", "scripts.bench.peak", {"framework": "jax", "dtype": "float32"}))
    assert here.facts.flops > 0 and here.run(1) > 0
    with wording.raises(Ended):
        Here(Entry("a", "a", "no_such_module", {}))
