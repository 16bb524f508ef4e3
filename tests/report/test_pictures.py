"""The pictures of a comparison: their curves, colours, scales and captions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runs import groups_of, write_run
from train.report.comparison import Comparison, as_html, compare
from train.report.groups import Group
from train.report.pictures import MAX_GREY, MAX_GROUPS, gain_product, group_colours, pictures
from train.report.read import Run, depth_series, read_run
from train.report.tables import gain, log10_ratio


def of(groups) -> dict[str, Any]:
    return {picture.key: picture for picture in pictures(groups)}


def rows(picture, kind="curve"):
    return [row for row in picture.chart["data"]["values"] if row["k"] == kind]


def titles(picture):
    return json.loads(picture.chart["facet"]["header"]["labelExpr"].removesuffix("[datum.value]"))


def test_the_heatmaps_pair_each_run_with_itself_without_skips(sweep):
    heat = of(groups_of(sweep))["heat"]
    assert titles(heat)[:2] == ["with: as trained", "with: same weights, skips removed"] and len(titles(heat)) == 4
    third = [row["v"][0] for row in rows(heat, "cell") if row["p"] == 2]
    np.testing.assert_allclose(third, -1 - 4 * (1 + np.arange(0, 91, 10) / 100), rtol=1e-4)


def test_a_group_has_one_colour_on_all_charts_and_the_band_is_the_interval(sweep):
    drawn = of(groups_of(sweep))
    for key in ("loss", "delta", "steps", "gain", "chain", "update"):
        encodings = [layer["encoding"] for layer in drawn[key].chart["spec"]["layer"]]
        domains = [each["color"]["scale"]["domain"] for each in encodings if "color" in each]
        assert domains and all(domain == ["with", "without"] for domain in domains), key
    row = rows(drawn["loss"])[0]
    assert row["high"][-1] - row["low"][-1] == pytest.approx(2 * 4.30265 * 0.1 / np.sqrt(3), rel=1e-3)
    ends = [row["y"][-1] for row in rows(drawn["loss"]) if row["p"] == 0]
    assert ends == pytest.approx([2.1 + 3 * np.exp(-5), 3.2 + 3 * np.exp(-5)], rel=1e-4)


def test_a_group_that_was_never_watched_keeps_its_colour(sweep):
    log = write_run(sweep, "a", residual="rezero") / "metrics.jsonl"
    log.write_text("".join(f'{{"step":{step},"loss/train":2.0}}\n' for step in range(1, 5)))
    drawn = of(groups_of(sweep))
    for key in ("loss", "delta", "steps", "update"):
        layer = drawn[key].chart["spec"]["layer"][-1]
        assert layer["encoding"]["color"]["scale"]["domain"] == ["a", "with", "without"], key


def test_the_chain_starts_at_the_loss_and_the_ideal_ones_are_there(sweep):
    chain = of(groups_of(sweep))["chain"]
    without = [row["y"] for row in rows(chain) if row["g"] == "without"][-1]
    np.testing.assert_allclose(without, [0, -1.9, -3.8, -5.7, -7.6])
    guides = {row["guide"]: row["y"] for row in rows(chain, "guide")}
    np.testing.assert_allclose(guides["ideal: gain 0.9 a block"], np.log10(0.9 ** np.arange(5)), rtol=1e-4)
    np.testing.assert_allclose(guides["ideal: gain 1 a block"], 0)


def test_a_slider_has_every_watched_step_and_gains_are_differences(sweep):
    drawn = of(groups_of(sweep))
    assert titles(drawn["steps"]) == [f"step {step}" for step in range(0, 91, 10)]
    gains = [row["y"] for row in rows(drawn["gain"]) if row["g"] == "without" and row["p"] == 9]
    np.testing.assert_allclose(gains, [[-1.9] * 4], rtol=1e-4)
    assert rows(drawn["gain"], "guide")[0]["y"] == [0.0] * 4  # gain 1, of every block
    assert drawn["steps"].chart["params"][1]["bind"]["max"] == 9


def test_of_many_runs_the_best_and_the_worst_and_some_between_have_a_colour(tmp_path):
    for index in range(34):
        write_run(tmp_path / "many", f"run{index}", loss=2 + (index * 7 % 34) / 10, width=index + 1)
    groups = groups_of(tmp_path / "many")
    shown = group_colours(groups)
    chosen = {name for name, index in shown.items() if index is not None}
    assert len(chosen) == MAX_GROUPS and {"run0", f"run{next(i for i in range(34) if i * 7 % 34 == 33)}"} <= chosen
    assert sorted(index for index in shown.values() if index is not None) == list(range(MAX_GROUPS))
    drawn = of(groups)
    assert (len(rows(drawn["loss"])), len(rows(drawn["loss"], "others"))) == (2 * MAX_GROUPS, 2 * 26)
    assert len(titles(drawn["heat"])) == 2 * MAX_GROUPS
    assert "8 of 34 runs are shown" in drawn["heat"].caption and "the other 26 are grey" in drawn["loss"].caption
    text = as_html(compare([tmp_path / "many"]))
    assert all(f">run{index}</td>" in text for index in range(34)) and "<summary>34 rows</summary>" in text


@pytest.mark.slow
def test_the_largest_sweep_is_a_page_of_less_than_6_mb():
    """1000 variants (no config has more) of 100 blocks, watched 1000 times."""
    steps, random = np.arange(1000), np.random.default_rng(0)
    columns = [(steps, random.normal(size=1000)) for _ in range(303)]
    tags = {f"delta/norm_log10/layer_{i:03d}": columns[i] for i in range(101)}
    tags |= {f"delta_without/norm_log10/layer_{i:03d}": columns[101 + i] for i in range(101)}
    tags |= {f"update/ratio_log10/layer_{i:03d}": columns[202 + i] for i in range(100)}
    tags |= {"loss/train": columns[0], "loss/val": columns[1]}
    runs = [
        Run(f"v,width={i % 40},lr={i // 40}", Path(f"runs/e/{i}"), {"model": {"width": i}}, {}, tags)
        for i in range(1000)
    ]
    groups = [Group(run.name, (run,)) for run in runs]
    few = group_colours(groups)
    assert len(few) == MAX_GROUPS + MAX_GREY
    assert "8 have a colour" in of(groups)["delta"].caption and "; 100 are grey" in of(groups)["delta"].caption
    assert len(as_html(Comparison("e", groups, [])).encode()) < 6_000_000


@pytest.mark.parametrize(
    ("values", "kind", "at"),
    [
        (["0.0001", "0.01", "0.001"], "log", [1e-4, 1e-3, 1e-2]),
        (["8", "4", "16"], "linear", [4, 8, 16]),
        (["gelu", "relu"], "nominal", ["gelu", "relu"]),
    ],
)
def test_a_sweep_is_drawn_against_its_key(tmp_path, values, kind, at):
    for place, value in enumerate(values):
        for seed in range(2):
            for base in ("with", "without"):
                name = f"{base},key={value},seed={seed}"
                write_run(tmp_path / "s", name, seed, loss=place + seed / 5, residual=base, width=place)
    drawn = of(groups_of(tmp_path / "s"))
    assert [key for key in drawn if key.startswith("sweep")] == ["sweep_key"]
    lines = rows(drawn["sweep_key"])
    assert [line["g"] for line in lines] == ["with", "without"] and lines[0]["x"] == at
    encoding = drawn["sweep_key"].chart["spec"]["layer"][-1]["encoding"]["x"]
    assert encoding.get("scale", {"type": "nominal"})["type"] == kind
    half = 12.7062 * 0.2 / np.sqrt(2) / np.sqrt(2)
    np.testing.assert_allclose(np.subtract(lines[0]["high"], lines[0]["low"]), 2 * half, rtol=1e-3)
    places = [values.index(value) for value in (values if kind == "nominal" else sorted(values, key=float))]
    np.testing.assert_allclose(lines[0]["y"], np.add(places, 0.1 + 0.1 + 3 * np.exp(-5)), rtol=1e-4)


def test_the_gains_multiply_up_to_the_ratio(trained):
    _, run = trained
    read = read_run(run)
    _, delta = depth_series(read.steps, "delta/norm_log10")
    _, gains = depth_series(read.steps, "gain")
    product = gain_product(delta)
    np.testing.assert_allclose(product[:, 1:], np.cumsum(np.log10(gains[:, ::-1]), axis=1), atol=1e-5)
    np.testing.assert_array_equal(product[:, 0], 0)
    assert product[-1, -1] == pytest.approx(log10_ratio(read))
    np.testing.assert_allclose(product[-1, -1], read.summary["verdict_end"]["log10_ratio"], atol=1e-5)
    assert gain(read) == pytest.approx(read.summary["verdict_end"]["per_layer_gain"], rel=1e-5)
