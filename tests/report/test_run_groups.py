"""From folders to groups of runs, and intervals over their seeds."""

import numpy as np
import pytest

from runs import groups_of, write_run
from train.cli import main
from train.report.comparison import compare
from train.report.groups import (
    Group,
    config_table,
    depths_over_seeds,
    estimate,
    gather,
    names_of,
    over_seeds,
    seed_groups,
)
from train.report.read import read_run
from train.report.tables import final_table


def test_the_interval_by_hand(wording):
    mean, half = estimate(np.array([1.0, 2.0, 3.0]))
    assert mean == 2 and half == pytest.approx(4.30265273 / np.sqrt(3))  # s = 1
    mean, half = estimate(np.array([[0.0, 5.0], [2.0, 5.0]]))
    np.testing.assert_allclose(mean, [1, 5])
    assert half is not None
    np.testing.assert_allclose(half, [12.7062047, 0], rtol=1e-6)  # t · √2 / √2
    assert estimate(np.array([7.0])) == (7, None)
    assert np.isnan(estimate(np.array([1.0, np.nan])).mean)
    with wording.raises(ValueError):
        estimate(np.zeros(0))
    values = np.tile([-1.0, 1.0], 500_000)  # of a million, as of a normal distribution
    assert estimate(values).half == pytest.approx(1.959964e-3, rel=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_covers_the_mean_as_often_as_it_says(n):
    mean, half = estimate(np.random.default_rng(n).normal(3.0, 2.0, (n, 40_000)))
    assert half is not None
    assert np.mean(np.abs(mean - 3.0) < half) == pytest.approx(0.95, abs=0.005)


RUNS: dict[str, tuple[list[tuple], dict[str, int]]] = {  # (folder, name, seed, config) of runs; groups and their sizes
    "another seed": ([("a", "x,seed=0", 0, {}), ("a", "x,seed=1", 1, {}), ("a", "x,seed=2", 2, {})], {"x": 3}),
    "another label": ([("a", "x,seed=0", 0, {}), ("b", "x,seed=1", 1, {})], {"a/x,seed=0 and 1 more": 2}),
    "another key": ([("a", "x", 0, {}), ("a", "y", 1, {"width": 8})], {"x": 1, "y": 1}),
    "the same seed twice": ([("a", "x", 0, {}), ("b", "x", 0, {})], {"a/x": 1, "b/x": 1}),
    "a key of another version": ([("a", "x,seed=0", 0, {}), ("a", "x,seed=1", 1, {"window": "null"})], {"x": 2}),
    "two groups of one name": (
        [("a", "x", 5, {"width": 4}), ("a", "x,seed=0", 0, {"width": 8}), ("a", "x,seed=1", 1, {"width": 8})],
        {"x": 1, "x,seed=0": 2},
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_runs_that_differ_in_seed_only_are_a_group(case, tmp_path):
    runs, groups = RUNS[case]
    for folder, name, seed, config in runs:
        write_run(tmp_path / folder, name, seed, **config)
    folders = dict.fromkeys(tmp_path / folder for folder, *_ in runs)
    assert {group.name: len(group.runs) for group in groups_of(*folders)} == groups


def test_only_what_differs_is_listed(sweep):
    assert config_table(groups_of(sweep)) == (["key", "with", "without"], [["model.residual", "pre_ln", "none"]])
    assert config_table(groups_of(*(sweep / f"with,seed={seed}" for seed in range(3))))[1] == []


@pytest.mark.parametrize(
    ("configs", "table"),
    [
        ([{"width": 2**n} for n in range(8)], [["run", "model.width"], *([f"r{n}", str(2**n)] for n in range(8))]),
        (
            [{"gains": "{}"}, {"gains": "{q: 2.0, k: 1e-3}"}],
            [["key", "r0", "r1"], ["model.gains.q", "-", "2.0"], ["model.gains.k", "-", "0.001"]],
        ),
        ([{}, {"window": "null"}], [["key", "r0", "r1"]]),
        ([{}, {"window": "null"}, {"window": 4}], [["key", "r0", "r1", "r2"], ["model.window", "-", "null", "4"]]),
    ],
    ids=["a row for each of many", "key by key of a mapping", "a missing key is null", "a missing key is shown"],
)
def test_a_table_of_differences(configs, table, tmp_path):
    for index, config in enumerate(configs):
        write_run(tmp_path / "a", f"r{index}", **config)
    columns, rows = config_table(groups_of(tmp_path / "a"))
    assert [columns, *rows] == table


def test_curves_are_at_the_steps_that_all_seeds_have(sweep):
    log = sweep / "with,seed=2" / "metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"step": 30' not in line))
    steps, values = over_seeds(groups_of(sweep)[0], "loss/train")
    assert steps.tolist() == [10, 20, *range(40, 101, 10)] and values.shape == (3, 9)
    np.testing.assert_allclose(values[:, -1] - values[0, -1], [0, 0.1, 0.2])
    steps, values = depths_over_seeds(groups_of(sweep)[0], "delta/norm_log10")
    assert values.shape == (3, len(steps), 5) and 30 not in steps
    assert over_seeds(groups_of(sweep)[0], "nothing")[0].size == 0


def test_names_tell_runs_apart(tmp_path):
    for folder in ("a/q/with", "b/q/with", "a/p/with"):
        write_run(tmp_path / folder.rpartition("/")[0], "with")
    runs, _ = gather([tmp_path / "a" / "q", tmp_path / "b" / "q", tmp_path / "a" / "p"])
    assert names_of(runs) == ["a/q/with", "b/q/with", "a/p/with"]
    assert names_of(runs[::2]) == ["q/with", "p/with"]
    assert names_of(runs[:1]) == ["with"]


def test_variants_come_in_the_order_of_their_numbers(tmp_path):
    for layers in (16, 4, 100):
        write_run(tmp_path / "a", f"x,layers={layers}", layers=layers)
    assert [run.name for run in gather([tmp_path / "a"])[0]] == ["x,layers=4", "x,layers=16", "x,layers=100"]


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["nowhere"], "nowhere"),
        (["file"], "file"),
        (["empty"], "empty"),
        (["."], "."),
        (["exp", "exp/a"], "exp/a"),
        (["exp/a", "exp/../exp/a"], "exp/../exp/a"),
        (["exp/fresh"], "exp/fresh"),
        (["quiet"], "quiet"),
        (["broken/log"], "broken/log/metrics.jsonl:1"),
        (["broken/summary"], "broken/summary/summary.json"),
        (["broken/config"], "broken/config/config.yaml:2"),
        (["broken"], "broken"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_wrong_folders_are_one_line(tmp_path, monkeypatch, capsys, arguments, place, wording):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "exp", "a")
    (write_run(tmp_path / "exp", "fresh", done=False) / "metrics.jsonl").write_text("")
    (write_run(tmp_path / "quiet", "x", done=False) / "metrics.jsonl").unlink()
    for name, file in (("log", "metrics.jsonl"), ("summary", "summary.json"), ("config", "config.yaml")):
        (write_run(tmp_path / "broken", name) / file).write_text("{\n\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", *arguments, "--html"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("deltaflow: ") and err.count("\n") == 1
    wording(err, place)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json", "config.yaml"])
def test_a_run_that_cannot_be_read_costs_an_experiment_that_run_only(sweep, capsys, file, wording):
    (sweep / "with,seed=1" / file).write_text("{\n\n")
    assert main(["compare", str(sweep)]) == 0
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))
    assert f"{sweep}/with,seed=1/{file}" in warning
    wording(warning, "warning")
    assert [len(group.runs) for group in compare([sweep]).groups] == [2, 3]


def test_a_copy_of_the_yaml_next_to_the_runs_makes_the_experiment_no_run(sweep):
    (sweep / "config.yaml").write_text("name: sweep\n")
    assert [len(group.runs) for group in compare([sweep]).groups] == [3, 3]


def test_an_unfinished_group_shows_all_it_has(tmp_path):
    runs = [read_run(write_run(tmp_path / "a", f"x,seed={seed}", seed, done=False)) for seed in range(2)]
    (group,) = seed_groups(runs, names_of(runs))
    assert isinstance(group, Group) and group.done == () and group.counted == group.runs
    assert final_table([group])[1][0][2] == "50 of 100, unfinished, 50 of 100, unfinished"
