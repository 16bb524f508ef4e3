"""Charts: the values that they draw, gaps, scales, limits of size, and that the same data gives the same bytes."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from train.report.charts import OTHERS, SMALL, numbers, save, to_rgb
from train.report.heatmaps import LIVE_CELLS, Field, heatmaps
from train.report.lines import MAX_POINTS, Axes, Curve, Guide, Panel, line_charts, loss_along

NAN = np.full(9, np.nan)
STEPS = np.arange(0, 100, 10)
POWERS = Axes("depth l", "|δ_l|", powers=True)


def rows(chart, kind):
    return [row for row in chart["data"]["values"] if row["k"] == kind]


def layers(chart):
    return chart["spec"]["layer"]


def slope(layers, per_layer, end=-2.0):
    return end + per_layer * (layers - np.arange(layers + 1.0))


def by_depth(series, axes=POWERS):
    curves = [Curve(label, np.arange(len(y)), y, None, i) for i, (label, y) in enumerate(series.items())]
    return line_charts([Panel("t", curves)], axes)


def losses(*values, steps=STEPS):
    curves = [Curve(name, steps, y, None, i) for i, (name, y) in enumerate(zip("abc", values, strict=False))]
    return line_charts([Panel("Loss", curves)], Axes("training step", "loss"))


def curves(count, points=9):
    names = [f"variant_{i},optimizer.lr=1e-{i},seed={i}" for i in range(count)]
    return [
        Curve(name, np.arange(points), slope(points - 1, -0.3 * i), np.full(points, 0.2), i if i < 8 else None)
        for i, name in enumerate(names)
    ]


def grid(layers, steps=STEPS):
    return steps[:, None] / 100 + np.arange(layers + 1.0) - 8


def heatmap(steps, values, **more):
    return heatmaps([Field("t", steps, values)], 1, SMALL, **more)


GUIDE = Guide("ideal: gain 0.9 a block", np.arange(9), np.log10(0.9) * np.arange(9))
CHARTS = {
    "delta": lambda: by_depth({"with": slope(8, 0.01), "none": slope(8, -1)}),
    "1 layer": lambda: by_depth({"a": slope(1, 1)}),
    "NaN": lambda: by_depth({"a": NAN}),
    "odd names": lambda: by_depth({"_$x_{'\"\\": slope(3, 1), "中\n文</script>" * 40: NAN}),
    "1 step": lambda: losses(np.ones(1), steps=STEPS[:1]),
    "3 panels, 34 curves": lambda: line_charts([Panel("step '0\"\\", curves(34))] * 3, POWERS, [GUIDE]),
    "slider": lambda: line_charts([Panel(f"step {i}", curves(2)) for i in range(3)], Axes("x", "y", slider=True)),
    "nothing": lambda: line_charts([Panel("t", []), Panel("u", [])], Axes("training step", "loss")),
    "names": lambda: line_charts(
        [Panel("", [Curve("v", np.array(["relu", "gelu"]), np.ones(2), np.ones(2) * np.nan)])],
        Axes("activation", "loss", x_type="nominal", own=True),
    ),
    "heatmaps without values": lambda: heatmaps(
        [Field("$", STEPS, np.nan * grid(8)), Field("b", STEPS[:0], np.zeros((0, 0)), "not measured")]
    ),
    "1 layer, 1 step": lambda: heatmap(STEPS[:1], grid(1, STEPS[:1])),
    "100 layers": lambda: heatmap(np.arange(5000), grid(100, np.arange(5000)), cells=LIVE_CELLS),
    "along": lambda: loss_along(np.linspace(-5, 15, 21), np.linspace(-5, 15, 21) ** 2 + 0.1, "long name " * 12),
    "along: flat": lambda: loss_along(np.linspace(-1, 1, 21), np.full(21, 2.5), "t"),
    "along: NaN": lambda: loss_along(np.linspace(-1, 1, 9), NAN, "t"),
}


QUICK = ("odd names", "nothing", "slider", "heatmaps without values", "along")


@pytest.mark.parametrize("name", [pytest.param(x, marks=[] if x in QUICK else pytest.mark.slow) for x in CHARTS])
def test_every_chart_is_a_picture_of_about_the_size_asked_for(name):
    pixels = to_rgb(CHARTS[name]())
    high, wide, _ = pixels.shape
    expected = SMALL[0] if name.startswith("along") or name in ("1 layer, 1 step", "100 layers") else 1100
    assert abs(wide - expected) < 60 and 200 < high < 900
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # not an empty ground


def test_a_chart_draws_the_values_in_the_order_given():
    chart = by_depth({"with": slope(4, 0.1), "without": slope(4, -1.0)})
    first, second = rows(chart, "curve")
    assert (first["g"], first["x"], first["y"]) == ("with", [0, 1, 2, 3, 4], [-1.6, -1.7, -1.8, -1.9, -2.0])
    assert (second["g"], second["y"]) == ("without", [-6, -5, -4, -3, -2])
    assert layers(chart)[-1]["encoding"]["color"]["scale"]["domain"] == ["with", "without"]


def test_colours_and_gaps_are_in_the_pixels():
    """The middle value is missing, so that nothing of the line's colour is in the middle third of the picture."""
    pixels = to_rgb(losses(np.r_[2.0, 2.0, 2.0, np.full(4, np.nan), 2.0, 2.0, 2.0]))
    blue = np.flatnonzero((pixels == (0x00, 0x72, 0xB2)).all(axis=2)[:300].any(axis=0))
    middle = pixels.shape[1] // 2
    assert len(blue) > 300 and not ((blue > middle - 100) & (blue < middle + 100)).any()


def test_predictions_are_lines_and_measurements_markers():
    y = 0.5 ** np.arange(50.0)
    chart = line_charts([Panel("t", [Curve("a", np.arange(50), 1.5 * y, None, 0, y)])], Axes("x", "y"))
    (row,) = rows(chart, "curve")
    assert row["line"] == numbers(y) and row["y"] == numbers(1.5 * y)
    fields = {layer["mark"]["type"]: layer["encoding"]["y"]["field"] for layer in layers(chart)}
    assert fields["line"] == "line" and fields["point"] == "y"


@pytest.mark.parametrize(
    ("values", "scale"),
    [(np.logspace(0, -3, 10), "log"), (np.linspace(4, 2, 10), None), (np.logspace(2, 0, 10) - 1, None)],
    ids=["decades", "a factor of 2", "down to zero"],
)
def test_an_axis_is_logarithmic_when_values_span_decades(values, scale):
    y = layers(losses(values))[-1]["encoding"]["y"]
    assert y["scale"].get("type") == scale and ("logarithmic" in y["title"]) == (scale == "log")


def test_a_flat_line_looks_flat_and_the_axis_has_room_for_guides_and_intervals():
    def domain(chart):
        return layers(chart)[-1]["encoding"]["y"]["scale"]["domain"]

    bottom, top = domain(by_depth({"a": np.array([-2.0, -2.01])}))
    assert top - bottom == pytest.approx(2.0)
    far = Guide("far", np.arange(9), np.full(9, -50.0))
    assert domain(line_charts([Panel("t", curves(1))], POWERS, [far]))[0] < -50
    assert domain(line_charts([Panel("t", curves(1))], POWERS))[1] > -2 + 0.2


def test_a_logarithmic_axis_ignores_guides_and_intervals_that_reach_zero():
    y = np.geomspace(1e-3, 5.0, 9)
    low = Curve("a", np.arange(9), y, 2 * y, 0)
    chart = line_charts([Panel("t", [low])], Axes("x", "y"), [Guide("floor", np.arange(9), np.zeros(9))])
    scale = layers(chart)[-1]["encoding"]["y"]["scale"]
    assert scale["type"] == "log" and scale["domain"] == pytest.approx([1e-3, 15.0])


def test_values_that_are_not_finite_are_gaps():
    first, second = rows(by_depth({"a": np.array([-np.inf, -1.0]), "b": NAN}), "curve")
    assert first["y"] == [None, -1.0] and set(second["y"]) == {None}
    assert rows(by_depth({"b": NAN}), "missing") and not rows(by_depth({"b": slope(3, 1)}), "missing")


def test_a_long_curve_keeps_its_extremes_its_ends_and_a_marker_for_a_lonely_value():
    y = np.sin(np.arange(10_000.0))
    y[[1234, 8000]] = 50, -50
    y[5000:5100], y[5050] = np.nan, 3
    (row,) = rows(losses(y, steps=np.arange(10_000)), "curve")
    assert len(row["x"]) <= MAX_POINTS * 3 // 2 + 2 and row["x"][0] == 0 and row["x"][-1] == 9999
    assert {1234, 8000} <= set(row["x"]) and max(filter(None, row["y"])) == 50 and None in row["y"]
    scattered = np.where(np.arange(3000) % 20 == 0, np.nan, 1.0)
    (row,) = rows(losses(scattered, steps=np.arange(3000)), "curve")
    assert sum(value is not None for value in row["y"]) >= 150
    y = np.ones(40)
    y[[6, 8]] = np.nan
    (row,) = rows(losses(y, steps=np.arange(40)), "curve")
    assert row["m"][7] and not row["m"][10]


def test_bands_and_grey_lines():
    chart = line_charts([Panel("t", curves(10))], POWERS, [GUIDE])
    (guide,) = rows(chart, "guide")
    assert guide["y"][-1] == pytest.approx(8 * np.log10(0.9), rel=1e-4)
    others = rows(chart, "others")
    assert [row["g"] for row in others] == [OTHERS] * 2 and not any(row["low"] for row in others)
    row = rows(chart, "curve")[3]
    np.testing.assert_allclose(np.subtract(row["high"], row["low"]), 0.4, rtol=1e-4)


def test_a_heatmap_puts_the_embedding_at_the_top_and_steps_where_they_are():
    steps = np.array([0, 10, 20, 25])
    values = np.array([[-8.0, -7.0, -6.0], [-5.0, -4.0, -3.0], [-2.0, np.nan, 0.0], [-np.inf, 2.0, 3.0]])
    chart = heatmap(steps, values)
    cells = rows(chart, "cell")
    assert [cell["v"] for cell in cells] == [[-8, -7, -6], [-5, -4, -3], [-2, None, 0], [None, 2, 3]]
    assert [(cell["x"], cell["x2"], cell["step"]) for cell in cells] == [
        *((-5, 5, 0), (5, 15, 10), (15, 22.5, 20), (22.5, 27.5, 25))
    ]
    pixels = to_rgb(chart)
    grey = np.argwhere((pixels == 0xBF).all(axis=2))
    dark, bright = (
        np.argwhere((pixels[:300] == colour).all(axis=2)) for colour in ((0x44, 1, 0x54), (0xFD, 0xE7, 0x25))
    )
    left, top = dark.mean(axis=0)[::-1]  # step 0, depth 0
    right, bottom = bright.mean(axis=0)[::-1]  # step 25, depths 1 and 2, beyond the scale
    assert left < 120 and right > 0.8 * SMALL[0] and top < 100 < bottom
    assert len(grey) > 1000 and grey[:, 1].min() > left


def test_every_heatmap_is_on_one_scale_and_the_first_steps_are_shown_where_they_are_missing():
    chart = heatmaps(
        [Field("a", STEPS, grid(8)), Field("b", STEPS, np.where(STEPS[:, None] < 50, np.nan, grid(8) - 30))]
    )
    encoding = layers(chart)[0]["encoding"]
    assert encoding["color"]["scale"] == {"scheme": "viridis", "domain": (-8.0, 1.0), "clamp": True}
    assert encoding["x"]["scale"]["domain"] == [-5, 95] and encoding["y"]["scale"]["domain"] == [-0.5, 8.5]


def test_long_runs_are_thinned_to_a_number_of_cells():
    for layers_, steps in ((12, 5000), (100, 5000)):
        cells = rows(heatmap(np.arange(steps), grid(layers_, np.arange(steps)), cells=LIVE_CELLS), "cell")
        assert sum(len(cell["v"]) for cell in cells) <= LIVE_CELLS
        assert (cells[0]["step"], cells[-1]["step"]) == (0, steps - 1)


def test_files_are_the_same_bytes_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        save(CHARTS["delta"](), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), to_rgb(CHARTS["delta"]()))


def test_the_javascript_engine_starts_with_the_first_picture():
    program = (
        "import sys\nfrom train.report import heatmaps, lines\n"
        "assert not any(name in sys.modules for name in ('vl_convert', 'PIL', 'jax'))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_pictures_are_drawn_next_to_jax_and_in_threads():
    """One process holds XLA's threads and the engine's, and a training draws from whichever thread it has."""
    program = (
        "import threading, jax, numpy as np\nfrom train.report.charts import png\nfrom train.report.lines import *\n"
        "jax.jit(lambda x: x @ x)(np.ones((300, 300))).block_until_ready()\n"
        "chart = lambda: png(line_charts([Panel('t', [Curve('a', np.arange(3), np.arange(3.0))])], Axes('x', 'y')))\n"
        "out = [chart()]\n"
        "threads = [threading.Thread(target=lambda: out.append(chart())) for _ in range(2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert len(out) == 3 and len(set(out)) == 1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_ticks_of_depths_and_powers_are_whole():
    encoding = layers(by_depth({"a": slope(12, 0.5)}))[-1]["encoding"]
    assert encoding["x"]["axis"]["values"] == [0, 2, 4, 6, 8, 10, 12]  # Vega drops some where tickCount is less
    assert "tickCount" not in encoding["x"]["axis"]
    assert encoding["y"]["axis"]["values"] == [-2, -1, 0, 1, 2, 3, 4]
    fine = layers(by_depth({"a": np.array([-2.0, -2.01])}))[-1]["encoding"]["y"]["axis"]["values"]
    np.testing.assert_allclose(np.power(10.0, fine), [0.001, 0.002, 0.005, 0.01, 0.02, 0.05])
