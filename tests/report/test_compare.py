"""Runs side by side: intervals, groups, differences, the tables, the page, the command."""

import json
import re
from typing import Any

import numpy as np
import pytest

from pages import Reader
from runs import write_run
from train.cli import main
from train.report.figures import MAX_GROUPS, figures, gain_product, picked
from train.report.groups import (
    Group,
    depths_over_seeds,
    differences,
    estimate,
    gather,
    grouped,
    names_of,
    over_seeds,
    quantile,
)
from train.report.page import as_html, as_markdown, compare
from train.report.read import depth_series, read_run
from train.report.tables import ABOVE, final_table, gain, log10_ratio, verdict_table

# Intervals


def test_the_interval_by_hand():
    mean, half = estimate(np.array([1.0, 2.0, 3.0]))
    assert mean == 2 and half == pytest.approx(4.30265273 / np.sqrt(3))  # s = 1
    mean, half = estimate(np.array([[0.0, 5.0], [2.0, 5.0]]))
    np.testing.assert_allclose(mean, [1, 5])
    assert half is not None
    np.testing.assert_allclose(half, [12.7062047, 0], rtol=1e-6)  # t · √2 / √2
    assert estimate(np.array([7.0])) == (7, None)
    assert np.isnan(estimate(np.array([1.0, np.nan])).mean)
    with pytest.raises(ValueError, match="at least one"):
        estimate(np.zeros(0))
    assert quantile(10**9) == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_covers_the_mean_as_often_as_it_says(n):
    mean, half = estimate(np.random.default_rng(n).normal(3.0, 2.0, (n, 40_000)))
    assert half is not None
    assert np.mean(np.abs(mean - 3.0) < half) == pytest.approx(0.95, abs=0.005)


# Groups


@pytest.fixture
def sweep(tmp_path):
    """Three seeds of two variants, their losses 2, 2.1, 2.2 and 3, 3.2, 3.4."""
    root = tmp_path / "sweep"
    for seed in range(3):
        write_run(root, f"with,seed={seed}", seed, loss=2 + seed / 10, residual="pre_ln", slope=0.1 * seed)
        write_run(root, f"without,seed={seed}", seed, loss=3 + seed / 5, residual="none", slope=-4.0)
    return root


def groups_of(*folders):
    return compare(folders).groups


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
    assert differences(groups_of(sweep)) == (["key", "with", "without"], [["model.residual", "pre_ln", "none"]])
    assert differences(groups_of(*(sweep / f"with,seed={seed}" for seed in range(3))))[1] == []


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
    columns, rows = differences(groups_of(tmp_path / "a"))
    assert [columns, *rows] == table


# Figures


def test_final_figures_by_hand(sweep):
    columns, rows = final_table(groups_of(sweep))
    row = dict(zip(columns, rows[0], strict=True))
    # 2.1 + 3 e^-5 and a sample deviation of 0.1 for the training loss
    assert row["loss/train"] == f"{2.1 + 3 * np.exp(-5):.2f} ± {4.30265 * 0.1 / np.sqrt(3):.2f}" == "2.12 ± 0.25"
    assert (row["run"], row["seeds"], row["steps"], row["verdict"]) == ("with", "3", "100", "healthy")
    assert row["accuracy/val"] == "0.250 ± 0" and row["steps/s"] == "10.00"
    # At step 90 the slopes 0, 0.1, 0.2 have become 1.9 times as steep.
    assert row["log10 |δ_0|/|δ_L|"] == f"{0.19:.2f} ± {4.30265 * 0.19 / np.sqrt(3):.2f}"
    assert dict(zip(columns, rows[1], strict=True))["log10 |δ_0|/|δ_L|"] == "-7.600 ± 0"


def test_differences_are_taken_seed_by_seed(sweep):
    columns, rows = final_table(groups_of(sweep))
    cells = [row[columns.index(ABOVE)] for row in rows]
    # 1, 1.1, 1.2: a deviation of 0.1, while the groups' own are 0.1 and 0.2
    assert cells == ["0", f"1.10 ± {4.30265 * 0.1 / np.sqrt(3):.2f}"]
    (sweep / "without,seed=0" / "config.yaml").write_text(
        (sweep / "without,seed=0" / "config.yaml").read_text().replace("seed: 0", "seed: 7")
    )
    columns, rows = final_table(groups_of(sweep))  # two seeds in common: 1.1 and 1.2
    assert rows[1][columns.index(ABOVE)] == f"1.15 ± {12.7062 * 0.05:.2f}"
    assert ABOVE not in final_table(groups_of(sweep / "with,seed=0", sweep / "without,seed=1"))[0]
    assert ABOVE not in final_table(groups_of(sweep)[:1])[0]


def test_one_seed_has_no_interval_and_no_column_of_counts(tmp_path):
    write_run(tmp_path / "a", "x")
    columns, rows = final_table(groups_of(tmp_path / "a"))
    assert "seeds" not in columns and not any("±" in cell for cell in rows[0])


def test_unfinished_runs_are_shown_as_such_and_do_not_count_beside_finished_ones(sweep):
    write_run(sweep, "with,seed=3", 3, loss=9.0, residual="pre_ln", done=False)
    write_run(sweep, "alone", 0, loss=9.0, residual="rezero", done=False)
    columns, rows = final_table(groups_of(sweep))
    alone, with_, _ = [dict(zip(columns, row, strict=True)) for row in rows]
    assert alone["steps"] == "50 of 100, unfinished" and alone["loss/train"] == "9.246" and alone["verdict"] == "-"
    assert (
        with_["steps"] == "100 (1 more unfinished)" and with_["seeds"] == "3" and with_["loss/train"].startswith("2.")
    )


def test_what_to_try_is_shown_where_a_verdict_says_it(sweep):
    assert verdict_table(groups_of(sweep))[0] == ["run", "verdict", "why"]
    summary = sweep / "without,seed=1" / "summary.json"
    summary.write_text(summary.read_text().replace('"why"', '"try": "model.residual: pre_ln", "why"'))
    columns, rows = verdict_table(groups_of(sweep))
    assert columns[3] == "what to try" and [row[3] for row in rows] == [*"----", "model.residual: pre_ln", "-"]


def test_what_is_not_finite_is_said(sweep):
    log = sweep / "with,seed=1" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 101, "loss/train": null, "nonfinite": ["loss/train"]}\n')
    columns, rows = final_table(groups_of(sweep))
    assert rows[0][columns.index("loss/train")] == "not finite in 1 of 3"
    columns, rows = final_table(groups_of(sweep / "with,seed=1"))
    assert rows[0][columns.index("loss/train")] == "nan"


def test_a_step_that_was_not_finite_is_told_with_what_followed(sweep):
    def told(name, **changed):
        path = sweep / name / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 30, **changed}))
        groups = groups_of(sweep / name)
        return final_table(groups)[1][0][1:3], verdict_table(groups)[1][0][2]

    bad = {"first_nonfinite_step": 30, "nonfinite": "the loss went bad first", "exit_reason": "nonfinite"}
    steps, why = told("with,seed=0", **bad)
    assert "100 of 100, stopped, not finite" in steps
    assert why.endswith("; step 30 was not finite: the loss went bad first; the run stopped at step 30")
    _, why = told("with,seed=1", **{**bad, "exit_reason": "done", "skipped_steps": 2})
    assert why.endswith("went bad first; 2 updates left out")
    assert "not finite" not in told("without,seed=0")[1]


def test_an_exact_zero_is_not_left_out(tmp_path):
    run = write_run(tmp_path / "a", "x")
    log = run / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step":101,"delta/norm_log10/layer_000":null,"delta/norm_log10/layer_004":1}\n')
    assert log10_ratio(read_run(run)) == -np.inf


def test_the_gains_multiply_up_to_the_ratio(trained):
    _, run = trained
    read = read_run(run)
    _, delta = depth_series(read, "delta/norm_log10")
    _, gains = depth_series(read, "gain")
    product = gain_product(delta)
    np.testing.assert_allclose(product[:, 1:], np.cumsum(np.log10(gains[:, ::-1]), axis=1), atol=1e-5)
    np.testing.assert_array_equal(product[:, 0], 0)
    assert product[-1, -1] == pytest.approx(log10_ratio(read))
    assert read.summary is not None
    np.testing.assert_allclose(product[-1, -1], read.summary["verdict_end"]["log10_ratio"], atol=1e-5)
    assert gain(read) == pytest.approx(read.summary["verdict_end"]["per_layer_gain"], rel=1e-5)


def test_curves_are_at_the_steps_that_all_seeds_have(sweep):
    log = sweep / "with,seed=2" / "metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"step": 30' not in line))
    steps, values = over_seeds(groups_of(sweep)[0], "loss/train")
    assert steps.tolist() == [10, 20, *range(40, 101, 10)] and values.shape == (3, 9)
    np.testing.assert_allclose(values[:, -1] - values[0, -1], [0, 0.1, 0.2])
    steps, values = depths_over_seeds(groups_of(sweep)[0], "delta/norm_log10")
    assert values.shape == (3, len(steps), 5) and 30 not in steps
    assert over_seeds(groups_of(sweep)[0], "nothing")[0].size == 0


# Pictures


def of(groups) -> dict[str, Any]:
    return {figure.key: figure for figure in figures(groups)}


def test_every_heatmap_is_on_one_scale(sweep):
    figure = of(groups_of(sweep))["heat"].figure
    meshes = [axes.collections[0] for axes in figure.axes if axes.get_title(loc="left")]
    assert len(meshes) == 4 and {mesh.get_clim() for mesh in meshes} == {(-8.0, 1.0)}
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "with: as trained",
        "with: same weights, skips removed",
    ]
    np.testing.assert_allclose(meshes[2].get_array()[0], -1 - 4 * (1 + np.arange(0, 91, 10) / 100))


def test_a_group_has_one_colour_on_all_charts_and_the_band_is_the_interval(sweep):
    drawn = of(groups_of(sweep))
    for key in ("loss", "delta", "chain", "update"):
        for axes in drawn[key].figure.axes:
            named = [line for line in axes.get_lines() if line.get_label() in ("with", "without")]
            assert [line.get_color() for line in named] == ["#0072B2", "#D55E00"], key
    axes = drawn["loss"].figure.axes[0]
    band = axes.collections[0].get_paths()[0].vertices
    at_the_end = band[band[:, 0] == 100][:, 1]
    assert at_the_end.max() - at_the_end.min() == pytest.approx(2 * 4.30265 * 0.1 / np.sqrt(3), rel=1e-4)
    ends = [line.get_ydata()[-1] for line in axes.get_lines()]
    assert ends == pytest.approx([2.1 + 3 * np.exp(-5), 3.2 + 3 * np.exp(-5)])


def test_the_chain_starts_at_the_loss_and_the_ideal_ones_are_there(sweep):
    figure = of(groups_of(sweep))["chain"].figure
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[-1].get_lines()}
    np.testing.assert_allclose(lines["without"], [0, -1.9, -3.8, -5.7, -7.6])
    np.testing.assert_allclose(lines["ideal: gain 0.9 a block"], np.log10(0.9 ** np.arange(5)))
    np.testing.assert_allclose(lines["ideal: gain 1 a block"], 0)


def test_of_many_runs_the_best_and_the_worst_and_some_between_have_a_colour(tmp_path):
    for index in range(34):
        write_run(tmp_path / "many", f"run{index}", loss=2 + (index * 7 % 34) / 10, width=index + 1)
    comparison = compare([tmp_path / "many"])
    shown = picked(comparison.groups)
    chosen = {name for name, index in shown.items() if index is not None}
    assert len(chosen) == MAX_GROUPS and {"run0", f"run{next(i for i in range(34) if i * 7 % 34 == 33)}"} <= chosen
    assert sorted(index for index in shown.values() if index is not None) == list(range(MAX_GROUPS))
    drawn = of(comparison.groups)
    assert len(drawn["loss"].figure.axes[0].get_lines()) == 34
    assert len([axes for axes in drawn["heat"].figure.axes if axes.get_title(loc="left")]) == 2 * MAX_GROUPS
    assert "8 of 34 runs are shown" in drawn["heat"].caption and "other 26 are grey" in drawn["loss"].caption
    text = as_html(comparison)
    assert all(f"<td>run{index}</td>" in text for index in range(34)) and len(text) < 5_000_000


# The page and the markdown


def test_the_page_holds_every_run_and_loads_nothing(sweep):
    text = as_html(compare([sweep]))
    read = Reader(text)
    for run in gather([sweep])[0]:
        assert f"because of {run.name}" in read.text
    assert "with, seed 2" in read.text and "±" in read.text
    assert not re.search(r"https?:|<script|<link|url\(", text)
    images = [attrs for tag, attrs in read.tags if tag == "img"]
    assert len(images) == 5 and all(attrs["src"].startswith("data:") and attrs["alt"] for attrs in images)
    assert len([tag for tag, _ in read.tags if tag == "figcaption"]) == 5


def test_the_same_runs_give_the_same_page(sweep):
    assert as_html(compare([sweep])) == as_html(compare([sweep]))


def test_one_run_that_was_never_watched_is_a_page_too(tmp_path):
    run = write_run(tmp_path / "a", "x", done=False)
    (run / "metrics.jsonl").write_text('{"step":1,"loss/train":2.0}\n')
    comparison = compare([run])
    assert list(of(comparison.groups)) == ["loss"]
    assert "no verdict yet: unfinished" in as_html(comparison)


def test_markdown_is_tables_with_as_many_cells_as_titles(sweep):
    text = as_markdown(compare([sweep]))
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) == 3
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1
        assert re.fullmatch(r"(\| -{3}:? )+\|", table.splitlines()[1])
    assert "| model.residual | pre_ln | none |" in text


HOSTILE = '<img src=x onerror=alert(1)>"&|`'


def test_hostile_names_are_text(tmp_path):
    write_run(tmp_path / f"e{HOSTILE}", HOSTILE)
    comparison = compare([tmp_path / f"e{HOSTILE}"])
    read = Reader(as_html(comparison))
    assert HOSTILE in read.text and not [attrs for tag, attrs in read.tags if tag == "img" and "onerror" in attrs]
    assert "<img" not in as_markdown(comparison)
    assert (
        re.findall(r"(?<!\\)\|", as_markdown(comparison).splitlines()[6]).count("|")
        == len(final_table(comparison.groups)[0]) + 1
    )


# What is wrong is said in a line


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
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["file"], "file: expected a folder, got a file"),
        (["empty"], "empty: no run and no experiment (no config.yaml in it or in a folder of it)"),
        (["."], "; the experiments in it are broken, exp, quiet)"),
        (["exp", "exp/a"], "exp/a: expected different runs, got the same folder as exp/a"),
        (["exp/a", "exp/../exp/a"], "exp/../exp/a: expected different runs, got the same folder as exp/a"),
        (["exp/fresh"], "exp/fresh: nothing to show yet (no line in metrics.jsonl)"),
        (["quiet"], "quiet: nothing to show yet, no run has logged"),
        (["broken/log"], "metrics.jsonl:1: expected an object with step and numbers"),
        (["broken/summary"], "summary.json: not JSON"),
        (["broken/config"], "config.yaml"),
        (["broken"], "broken: left out, cannot be read: broken/config/config.yaml"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_wrong_folders_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "exp", "a")
    (write_run(tmp_path / "exp", "fresh", done=False) / "metrics.jsonl").write_text("")
    (write_run(tmp_path / "quiet", "x", done=False) / "metrics.jsonl").unlink()
    for name, file in (("log", "metrics.jsonl"), ("summary", "summary.json"), ("config", "config.yaml")):
        (write_run(tmp_path / "broken", name) / file).write_text("{\n\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", *arguments, "--html"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("deltaflow: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json", "config.yaml"])
def test_a_run_that_cannot_be_read_costs_an_experiment_that_run_only(sweep, capsys, file):
    (sweep / "with,seed=1" / file).write_text("{\n\n")
    assert main(["compare", str(sweep)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"warning: left out, cannot be read: {sweep}/with,seed=1/{file}" in said
    assert [len(group.runs) for group in compare([sweep]).groups] == [2, 3]


def test_a_copy_of_the_yaml_beside_the_runs_makes_the_experiment_no_run(sweep):
    (sweep / "config.yaml").write_text("name: sweep\n")
    assert [len(group.runs) for group in compare([sweep]).groups] == [3, 3]


def test_the_command_prints_tables_and_writes_what_is_asked_for(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (write_run(sweep, "fresh", done=False) / "metrics.jsonl").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", str(sweep)]) == 0
    out, _ = capsys.readouterr()
    assert "2.12 ± 0.25" in out and "model.residual" in out and "because of with,seed=1" in out
    assert "fresh: left out, nothing logged yet" in out
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["compare", str(sweep), "--html", "--markdown", "new/tables.md"]) == 0
    assert (tmp_path / "compare.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "new" / "tables.md").read_text().startswith("# sweep: 6 runs in 2 groups\n")
    assert "written: compare.html\n" in capsys.readouterr().out


def test_a_run_is_never_written_over(sweep, capsys):
    with pytest.raises(SystemExit) as error:
        main(["compare", "--html", str(sweep / "with,seed=0" / "config.yaml"), str(sweep)])
    assert error.value.code == 2
    assert "--html: expected a name that ends in .html, got" in capsys.readouterr().err


def test_an_unfinished_group_shows_all_it_has(tmp_path):
    runs = [read_run(write_run(tmp_path / "a", f"x,seed={seed}", seed, done=False)) for seed in range(2)]
    (group,) = grouped(runs, names_of(runs))
    assert isinstance(group, Group) and group.done == () and group.shown == group.runs
    assert final_table([group])[1][0][2] == "50 of 100, unfinished, 50 of 100, unfinished"
