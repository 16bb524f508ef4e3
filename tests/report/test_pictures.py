"""The pictures of a comparison: their curves, colours, scales and captions."""

from typing import Any

import numpy as np
import pytest

from runs import groups_of, write_run
from train.report.page import as_html, compare
from train.report.pictures import MAX_GROUPS, gain_product, picked, pictures
from train.report.read import depth_series, read_run
from train.report.tables import gain, log10_ratio


def of(groups) -> dict[str, Any]:
    return {figure.key: figure for figure in pictures(groups)}


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
    groups = groups_of(tmp_path / "many")
    shown = picked(groups)
    chosen = {name for name, index in shown.items() if index is not None}
    assert len(chosen) == MAX_GROUPS and {"run0", f"run{next(i for i in range(34) if i * 7 % 34 == 33)}"} <= chosen
    assert sorted(index for index in shown.values() if index is not None) == list(range(MAX_GROUPS))
    drawn = of(groups)
    assert len(drawn["loss"].figure.axes[0].get_lines()) == 34
    assert len([axes for axes in drawn["heat"].figure.axes if axes.get_title(loc="left")]) == 2 * MAX_GROUPS
    assert "8 of 34 runs are shown" in drawn["heat"].caption and "other 26 are grey" in drawn["loss"].caption
    text = as_html(compare([tmp_path / "many"]))
    assert all(f"<td>run{index}</td>" in text for index in range(34)) and len(text) < 5_000_000
    assert "<summary>34 rows</summary>" in text


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
