"""The pictures: what they draw, that nothing in them overlaps, and that the same data gives the same bytes."""

import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pytest

from train.report.charts import (
    SMALL,
    Curve,
    Field,
    Guide,
    Panel,
    canvas,
    heatmaps,
    line_charts,
    loss_along,
    save,
    to_rgb,
    to_svg,
)

NAN = np.full(9, np.nan)
STEPS = np.arange(0, 100, 10)


def slope(layers, per_layer, end=-2.0):
    return end + per_layer * (layers - np.arange(layers + 1.0))


def by_depth(series, title="t"):
    curves = [Curve(label, np.arange(len(y)), y, None, i) for i, (label, y) in enumerate(series.items())]
    return line_charts([Panel(title, curves)], "depth l  (0: the embedding's output)", "gradient norm", powers=True)


def losses(*values, steps=STEPS):
    curves = [Curve(name, steps, y, None, i) for i, (name, y) in enumerate(zip("abc", values, strict=False))]
    return line_charts([Panel("Loss", curves)], "training step", "loss (nats per token)")


def predicted(*values, title="t"):
    curves = [Curve(f"η = {i} · 2/λ", np.arange(len(y)), 1.5 * y, None, i, y) for i, y in enumerate(values)]
    return line_charts([Panel(title, curves)], "x", "y")


def curves(count, points=9, index=None):
    names = [f"variant_{i},optimizer.lr=1e-{i},seed={i}" for i in range(count)]
    return [
        Curve(name, np.arange(points), slope(points - 1, -0.3 * i), np.full(points, 0.2), i if i < 8 else index)
        for i, name in enumerate(names)
    ]


def grid(layers, steps=STEPS):
    return steps[:, None] / 100 + np.arange(layers + 1.0) - 8


def fields(count, layers=8):
    return [Field(f"variant_{i},seed={i}: same weights, skips removed " * 3, STEPS, grid(layers)) for i in range(count)]


def heatmap(steps, values, title="t"):
    return heatmaps([Field(title, steps, values)], 1, SMALL)


GUIDE = Guide("ideal: gain 0.9 a block", np.arange(9), np.log10(0.9) * np.arange(9))
PICTURES = {
    "1100: delta": lambda: by_depth({"with": slope(8, 0.01), "none": slope(8, -1)}),
    "1100: 1 layer": lambda: by_depth({"a": slope(1, 1)}),
    "1100: 100 layers": lambda: line_charts([Panel("t", curves(12, 101))], "x", "y", powers=True),
    "1100: NaN": lambda: by_depth({"a": NAN}),
    "1100: odd names": lambda: by_depth({"_$x_{": slope(3, 1), "中\n文" * 40: NAN}, "$ {" * 100),
    "1100: loss": lambda: losses(STEPS + 1.0, STEPS * np.nan),
    "1100: 1 step": lambda: losses(np.ones(1), steps=STEPS[:1]),
    "1100: predicted": lambda: predicted(*(np.arange(200.0) ** i for i in range(4)), title="t " * 60),
    "1100: 3 panels, 34 curves": lambda: line_charts([Panel("step 0", curves(34))] * 3, "x", "y", powers=True),
    "1100: 2 panels and a guide": lambda: line_charts(
        [Panel("a" * 200, curves(8))] * 2, "x", "y", [GUIDE], powers=True
    ),
    "1100: 1 panel": lambda: line_charts([Panel("t", curves(1, 1))], "training step", "loss (nats per token)"),
    "1100: nothing": lambda: line_charts([Panel("t", []), Panel("u", [])], "training step", "loss"),
    "1100: a long odd name": lambda: line_charts([Panel("$", [Curve("_$x_{" * 30, STEPS, STEPS * np.nan)])], "x", "y"),
    "1100: 16 heatmaps": lambda: heatmaps(fields(16)),
    "1100: 1 heatmap of 100 layers": lambda: heatmaps(fields(1, 100)),
    "1100: heatmaps without values": lambda: heatmaps(
        [Field("$", STEPS, np.nan * grid(8)), Field("b", STEPS[:0], np.zeros((0, 0)), "not measured")]
    ),
    "500: 1 layer, 1 step": lambda: heatmap(STEPS[:1], grid(1, STEPS[:1])),
    "500: 100 layers": lambda: heatmap(np.arange(5000), grid(100, np.arange(5000)), "t " * 200),
    "500: some NaN": lambda: heatmap(STEPS, np.where(grid(8) > -5, grid(8), np.nan)),
    "500: no step": lambda: heatmap(STEPS[:0], grid(8)[:0]),
    "500: along": lambda: loss_along(np.linspace(-5, 15, 21), np.linspace(-5, 15, 21) ** 2 + 0.1, "long name " * 12),
    "500: along: flat": lambda: loss_along(np.linspace(-1, 1, 21), np.full(21, 2.5), "t"),
    "500: along: NaN": lambda: loss_along(np.linspace(-1, 1, 9), NAN, "t"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_overlaps_or_leaves_the_picture(name):
    figure = PICTURES[name]()
    high, wide, _ = to_rgb(figure).shape
    assert wide == int(name.partition(":")[0])
    boxes = visible_texts(figure)
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= high, f"{text!r} leaves the picture: {box}"
        for other, that in boxes[i + 1 :]:
            assert not box.overlaps(that), f"{text!r} overlaps {other!r}"


def visible_texts(figure):
    """Every text that is drawn, with its box in pixels, one pixel taken off each side."""
    artists = [figure._supxlabel, figure._supylabel]
    for legend in figure.legends:
        artists += legend.get_texts()
    for axes in figure.axes:
        artists += [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *axes.texts]
        artists += [t.label1 for axis in (axes.xaxis, axes.yaxis) for t in axis._update_ticks()]
        artists += [t.label2 for axis in (axes.xaxis, axes.yaxis) for t in axis._update_ticks()]
        artists += axes.get_legend().get_texts() if axes.get_legend() else []
    shown = [text for text in artists if text is not None and text.get_visible() and text.get_text()]
    return [(text.get_text(), text.get_window_extent().padded(-1)) for text in shown]


def axes_of(figure) -> Any:
    return figure.axes[0]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_chart_draws_the_values_in_the_order_given():
    figure = by_depth({"with": slope(4, 0.1), "without": slope(4, -1.0)})
    lines = axes_of(figure).get_lines()
    assert legend_of(figure) == ["with", "without"]
    np.testing.assert_array_equal(lines[0].get_xdata(), [0, 1, 2, 3, 4])
    np.testing.assert_allclose(lines[0].get_ydata(), [-1.6, -1.7, -1.8, -1.9, -2.0])
    np.testing.assert_allclose(lines[1].get_ydata(), [-6, -5, -4, -3, -2])
    assert [(line.get_color(), line.get_marker()) for line in lines] == [("#0072B2", "o"), ("#D55E00", "s")]
    assert "10^{-5}" in axes_of(figure).yaxis.get_major_formatter()(-5.0, None)


def test_predictions_are_lines_and_measurements_markers():
    axes = axes_of(predicted(0.5 ** np.arange(50.0)))
    line, markers = axes.lines[:2]
    assert line.get_linestyle() == "-" and line.get_marker() == "None"
    assert markers.get_linestyle() == "None" and markers.get_marker() == "o"
    np.testing.assert_array_equal(line.get_ydata(), 0.5 ** np.arange(50.0))
    np.testing.assert_array_equal(markers.get_ydata(), 0.5 ** np.arange(50.0) * 1.5)
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize(
    ("values", "scale"),
    [(np.logspace(0, -3, 10), "log"), (np.linspace(4, 2, 10), "linear"), (np.logspace(2, 0, 10) - 1, "linear")],
    ids=["decades", "a factor of 2", "down to zero"],
)
def test_an_axis_is_logarithmic_when_values_span_decades(values, scale):
    axes = axes_of(losses(values))
    assert axes.get_yscale() == scale and ("logarithmic" in axes.get_ylabel()) == (scale == "log")


def test_a_flat_line_looks_flat():
    bottom, top = axes_of(by_depth({"a": np.array([-2.0, -2.01])})).get_ylim()
    assert top - bottom == pytest.approx(2.0)


def test_values_that_are_not_finite_are_gaps_and_named():
    figure = by_depth({"a": np.array([-np.inf, -1.0]), "b": NAN})
    np.testing.assert_array_equal(axes_of(figure).get_lines()[0].get_ydata(), [np.nan, -1.0])
    assert legend_of(figure) == ["a", "b\n(no finite values)"]


def test_heatmap_puts_the_embedding_at_the_top_and_steps_where_they_are():
    steps = np.array([0, 10, 20, 25])
    values = np.array([[-8.0, -7.0, -6.0], [-5.0, -4.0, -3.0], [-2.0, np.nan, 0.0], [-np.inf, 2.0, 3.0]])
    figure = heatmap(steps, values)
    axes = axes_of(figure)
    (mesh,) = axes.collections
    np.testing.assert_array_equal(mesh.get_array().filled(9), [[-8, -5, -2, 9], [-7, -4, 9, 2], [-6, -3, 0, 3]])
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [-5, 5, 15, 22.5, 27.5])
    np.testing.assert_array_equal(mesh.get_coordinates()[:, 0, 1], [-0.5, 0.5, 1.5, 2.5])
    assert axes.get_ylim() == (2.5, -0.5)
    assert "top" in figure.get_supylabel() and "grey" in figure.get_supxlabel()
    assert mesh.get_clim() == (-8, 1)
    pixels = to_rgb(figure)
    left, bottom, right, top = axes.get_window_extent().extents.round().astype(int)
    drawn = [pixels[340 - bottom - 20, left + 20], pixels[340 - top + 20, left + 20], pixels[340 - top + 20, right - 5]]
    viridis = matplotlib.colormaps["viridis"]
    expected = [*viridis([2 / 9, 0.0], bytes=True)[:, :3].tolist(), [191, 191, 191]]  # depth 2 is at the bottom
    np.testing.assert_allclose(np.array(drawn, float), np.array(expected, float), atol=2)


@pytest.mark.parametrize(
    ("low", "high", "extend"), [(-9, 2, "both"), (-8, 2, "max"), (-9, 1, "min"), (-8, 1, "neither")]
)
def test_the_bar_is_pointed_where_values_are_beyond_the_scale(low, high, extend):
    fields = [Field("t", STEPS[:1], np.array([[at, at]])) for at in (low, high)]
    mesh = axes_of(heatmaps(fields)).collections[0]
    assert mesh.get_clim() == (-8, 1) and mesh.colorbar.extend == extend


def test_long_labels_are_folded_at_a_comma():
    assert canvas.folded("with") == ["with"]
    assert canvas.folded("without_skip_and_norm,optimizer.lr=0.001") == [
        "without_skip_and_norm,",
        "optimizer.lr=0.001",
    ]
    assert canvas.folded("x" * 100) == ["x" * 28, "x" * 13 + "…" + "x" * 14]


def test_files_are_the_same_bytes_each_time(tmp_path, monkeypatch):
    svg = to_svg(PICTURES["1100: delta"]())
    assert svg.startswith("<?xml") and "<dc:date>" not in svg
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)  # a reader's own matplotlibrc
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "mine")
    assert to_svg(PICTURES["1100: delta"]()) == svg
    for name in ("a.png", "b.png"):
        save(PICTURES["1100: delta"](), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_matplotlib_is_imported_late_and_pyplot_never():
    program = (
        "import sys, numpy as np\nfrom train.report.charts import *\n"
        "assert not any(name in sys.modules for name in ('matplotlib', 'jax'))\n"
        "to_svg(line_charts([Panel('t', [Curve('a', np.arange(3), np.arange(3.0))])], 'x', 'y'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_legend_reads_row_by_row():
    """matplotlib fills columns: five entries in four columns are 1 and 2, 3, 4, 5 from left to right."""
    figure = line_charts([Panel("t", curves(6))], "x", "y")
    to_rgb(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.legends[0].get_texts()]
    boxes.sort(key=lambda entry: (-round(entry[1].y0 / 20), entry[1].x0))
    assert [text.replace("\n", "") for text, _ in boxes] == [curve.label for curve in curves(6)]


def test_bands_guides_and_grey_lines():
    figure = line_charts([Panel("t", curves(10))], "x", "y", [GUIDE], powers=True)
    axes = axes_of(figure)
    lines = {line.get_label().replace("\n", ""): line for line in axes.get_lines()}
    assert lines["ideal: gain 0.9 a block"].get_ydata()[-1] == pytest.approx(8 * np.log10(0.9))
    assert [line.get_color() for line in axes.get_lines()[:2]] == ["0.8", "0.8"]
    assert "grey: all others" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(axes.collections) == 8  # the grey ones have no band
    edge = axes.collections[3].get_paths()[0].vertices[:, 1]
    assert edge.min() == pytest.approx(curves(4)[3].y.min() - 0.2) and edge.max() == pytest.approx(-2 + 0.2)
    assert axes.get_ylim()[0] < edge.min()


def test_the_axis_has_room_for_guides():
    far = Guide("far", np.arange(9), np.full(9, -50.0))
    for powers in (True, False):
        figure = line_charts([Panel("t", curves(1))], "x", "y", [far], powers)
        assert axes_of(figure).get_ylim()[0] < -50


def test_heatmaps_are_on_one_scale_with_one_bar():
    figure = heatmaps([Field("a", STEPS, grid(8)), Field("b", STEPS, grid(8) - 30)])
    meshes = [axes.collections[0] for axes in figure.axes[:2]]
    assert {mesh.get_clim() for mesh in meshes} == {(-8.0, 1.0)}
    (bar,) = figure.axes[2:]
    assert "delta" in bar.get_ylabel() and bar.get_ylim() == (-8, 1)


def test_one_step_is_one_cell_and_no_name_is_left_out_of_the_legend():
    (mesh,) = axes_of(heatmap(np.array([7]), np.zeros((1, 2)))).collections
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [6.5, 7.5])
    assert [text.strip() for text in legend_of(by_depth({"_x": slope(2, 1)}))] == ["_x"]
