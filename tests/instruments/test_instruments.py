"""Instruments in a run and in a probe: at their steps, the same wherever they run, and no part of the training."""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from problems import lines
from runs import events_of
from train.cli import main
from train.config.instruments import INSTRUMENTS
from train.log.charts_layout import chart_layout
from train.report.read import read_run

NAMES = [name for name in INSTRUMENTS if name != "residual"]  # pre_ln has no parameters
ROOT = Path(__file__).parents[2]


def config_of(folder, corpus, runs, instruments, train=None, **more):
    lines = {
        "name": "tiny",
        "runs_dir": str(folder / runs),
        "model": {"layers": 2, "width": 8, "heads": 2, "init_std": 0.1, "activation": "relu"},
        "data": {"path": corpus, "context": 8, "batch": 4},
        "optimizer": {"warmup": 2, "lr": 1e-2, "min_lr": 1e-3},
        "train": {"steps": 8, "eval_every": 4, "eval_batches": 2, "checkpoint_every": 4, "unroll": 1} | (train or {}),
        "watch": {"every": 4, "instruments": instruments},
    }
    path = folder / f"{runs}.yaml"
    path.write_text(json.dumps(lines | more), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("instruments")


@pytest.fixture(scope="module")
def whole(folder, corpus):
    """A run with every instrument every fourth step."""
    path = config_of(folder, corpus, "whole", dict.fromkeys(NAMES, 4))
    assert main(["train", str(path)]) == 0
    return folder / "whole" / "tiny" / "main"


def same_series(actual, wanted, rtol=0.0, atol=0.0):
    """Asserts that two runs logged equal values at equal steps under the tags of `wanted`, but for the throughput."""
    for tag, (at, values) in wanted.items():
        if not tag.startswith("perf/"):
            np.testing.assert_array_equal(at, actual[tag][0], err_msg=tag)
            np.testing.assert_allclose(values, actual[tag][1], rtol=rtol, atol=atol, err_msg=tag)


@pytest.mark.slow
def test_they_measure_at_their_steps(whole):
    series = read_run(whole).steps
    tags = ["attn/entropy/layer_001", "attn/logit_max/layer_000/head_01", "act/dead_units/layer_001"]
    tags += ["split/skip_log10/layer_000", "cosine/without_skip/all", "cosine/next_step/layer_001"]
    tags += ["attn/sink/layer_001/head_00", "act/peak/layer_001", "ledger/mlp_delta_log10/layer_001"]
    tags += ["depth_loss/lens/layer_002", "depth_loss/ablated/layer_001", "grad_mean/mean/layer_000/attn_v"]
    tags += ["weight/stable_rank/layer_001", "grad/stable_rank/layer_000/mlp_out", "sharpness/critical_multiple"]
    tags += [
        "noise/scale",
        "noise/block_scale/layer_001",
        "sharpness/top",
        "jacobian/stack_largest_log10",
        "landscape/update_lowest_at",
    ]
    for tag in [*tags, "grad/zero_fraction/layer_000/mlp_in"]:
        assert series[tag][0].tolist() == [0, 4, 8], tag
    assert series["sharpness_adam/top"][0].tolist() == [4, 8]  # before the first step Adam knows no curvature


@pytest.mark.slow
def test_what_they_say_agrees_with_the_watched_step(whole):
    """delta_l by the split and by the ledger, Adam's threshold and the critical sharpness by the rate, and the loss at
    the last depth, from tags that come another way."""
    series = {tag: dict(zip(at.tolist(), x, strict=True)) for tag, (at, x) in read_run(whole).steps.items()}
    for step in (0, 4):
        skip, branch = (10 ** series[f"split/{part}_log10/layer_000"][step] for part in ("skip", "branch"))
        cosine = series["split/cosine/layer_000"][step]
        delta = 10 ** series["delta/norm_log10/layer_000"][step]
        assert delta == pytest.approx(np.sqrt(skip**2 + branch**2 + 2 * cosine * skip * branch), rel=1e-4)
        assert skip == pytest.approx(10 ** series["delta/norm_log10/layer_001"][step], rel=1e-4)
        for layer in (0, 1):
            delta = series[f"delta/norm_log10/layer_00{layer + 1}"][step]
            assert series[f"ledger/mlp_delta_log10/layer_00{layer}"][step] == pytest.approx(delta, abs=1e-4)
    step_rate = 2 / series["sharpness/critical"][8] / series["sharpness/critical_multiple"][8]
    assert step_rate == pytest.approx(1e-3, rel=1e-4)
    assert series["sharpness/bottom"][8] < series["sharpness/top"][8]
    assert series["noise/scale"][8] == pytest.approx(series["noise/trace"][8] / series["noise/gradient_square"][8])
    # At the rate of the next step, which at the end is min_lr.
    assert series["sharpness_adam/threshold"][8] == pytest.approx((2 + 2 * 0.9) / (1 - 0.9) / 1e-3, rel=1e-4)


@pytest.mark.slow
def test_training_is_the_same_without_them(whole, folder, corpus):
    assert main(["train", str(config_of(folder, corpus, "bare", {}, {"steps_per_call": 4}))]) == 0
    with_them, without = read_run(whole).steps, read_run(folder / "bare" / "tiny" / "main").steps
    assert len(with_them.keys() - without.keys()) > 50
    same_series(with_them, without)


@pytest.mark.slow
def test_a_resumed_run_measures_each_step_once(whole, folder, corpus):
    """A copy that has lost its last checkpoint. What was compiled for `whole` serves again."""
    directory = folder / "again" / "tiny" / "main"
    shutil.copytree(whole, directory)
    (directory / "ckpt" / "00000008.safetensors").unlink()
    (directory / "summary.json").unlink()
    assert main(["train", str(config_of(folder, corpus, "again", dict.fromkeys(NAMES, 4)))]) == 0
    before, after = read_run(whole).steps, read_run(directory).steps
    assert before.keys() == after.keys()
    same_series(after, before)
    # TensorBoard forgets what it had from step 4 on, also the pictures of step 4.
    events = events_of(directory)
    for result in (events.Histograms("grad/histogram_log10/layer_000"), events.Images("landscape/update")):
        assert [event.step for event in result] == [0, 4, 8]


@pytest.mark.slow
def test_vmapped_variants_measure_what_single_ones_do(folder, corpus):
    """Every figure of the gradient's flow, each variant its own; a batched matmul may sum in another order."""
    variants = {"one": {}, "two": {"optimizer.lr": 3e-3, "model.skip_scale": 0.5}}
    result = []
    for group in ("turn", "vmap"):
        path = config_of(folder, corpus, group, {"split": 4}, {"group": group}, variants=variants)
        assert main(["train", str(path)]) == 0
        result.append([read_run(folder / group / "tiny" / name).steps for name in variants])
    for turn, vmap in zip(*result, strict=True):
        assert turn.keys() == vmap.keys()
        same_series(vmap, turn, rtol=2e-4, atol=1e-4)
    one, two = result[0]  # or the wrong one would not be told apart
    early = ["delta/norm_log10/layer_000", "gain/layer_001", "grad/norm_log10/layer_000/attn_v", "act/rms/layer_001"]
    late = ["delta_without/norm_log10/layer_000", "update/ratio_log10/layer_001", "split/skip_log10/layer_001"]
    for tag in early + late:
        assert (np.abs(one[tag][1] - two[tag][1])[tag in late :] > 1e-3).all(), tag


@pytest.mark.slow
def test_histograms_and_pictures_reach_tensorboard(whole):
    events = events_of(whole)
    assert [image.step for image in events.Images("landscape/update")] == [0, 4, 8]
    assert {"landscape/random", "landscape/update"} <= set(events.Tags()["images"])
    tags = events.Tags()["histograms"]
    assert tags == ["grad/histogram_log10/layer_000", "grad/histogram_log10/layer_001"]
    zero = read_run(whole).steps["grad/zero_fraction/layer_001"][1][-1]
    last = events.Histograms(tags[1])[-1]
    size = 2 * 8 + 4 * 64 + 2 * 8 * 32  # gains, attention, MLP
    assert last.step == 8
    assert last.histogram_value.num == pytest.approx(size * (1 - zero))
    biggest = 10 ** read_run(whole).steps["grad/norm_log10/layer_001"][1][-1]
    limits = np.array(last.histogram_value.bucket_limit)
    assert 10 ** limits[-1] < 4 * biggest and (np.diff(limits) > 0).all()


@pytest.mark.slow
def test_probe_reads_them(folder, whole, corpus, capsys):
    path = config_of(folder, corpus, "whole", dict.fromkeys(NAMES, 4))
    file = folder / "probe.json"
    assert main(["probe", str(path), "--instruments", "all", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    whole_object = json.loads(file.read_text())
    jsonschema.validate(whole_object, json.loads((ROOT / "docs" / "probe.schema.json").read_text()))
    result = whole_object["instruments"]
    series = read_run(whole).steps

    def first(tag):
        return series[tag][1][0]

    assert result["attn/entropy"]["layer"] == pytest.approx([first(f"attn/entropy/layer_00{i}") for i in (0, 1)])
    assert result["sharpness/top"] == pytest.approx(first("sharpness/top"), rel=1e-3)
    assert result["depth_loss/lens"][-1] == pytest.approx(whole_object["loss"], rel=1e-6)
    assert result["sharpness_adam/top"] is None
    assert result["noise/scale"] == pytest.approx(first("noise/scale"), rel=1e-3)
    counts = np.array(result["grad/histogram_log10"]["counts"])
    assert counts.sum() + np.sum(result["grad/histogram_log10"]["zeros"]) == 2 * (2 * 8 + 4 * 64 + 2 * 8 * 32)
    curve = result["landscape/update"]
    assert curve["at"][5] == 0 and curve["loss"][5] == pytest.approx(whole_object["loss"], rel=1e-5)
    assert curve["loss"][6] < curve["loss"][5]  # the next update goes downhill
    assert "split/cosine" in printed and "sharpness/top" in printed


@pytest.mark.slow
def test_a_probe_explains_starved_attention(folder, corpus, capsys):
    """With the mean parts, if they are read."""
    model = {"layers": 12, "width": 16, "heads": 2, "residual": "none", "init": "xavier"}
    path = config_of(folder, corpus, "starved", {}, model=model)
    for instruments, expected in (("units", False), ("grad_mean", True)):
        assert main(["probe", str(path), "--instruments", instruments]) == 0
        printed = capsys.readouterr().out
        assert "dead_qk" in printed
        assert bool(re.search(r"make \d\d+ % of the gradient of V, and 0 % of that of K\n", printed)) == expected


@pytest.mark.slow
def test_probe_reads_a_checkpoint(folder, whole, corpus, capsys, wording):
    """The optimizer's state too, where an instrument needs it."""
    path, file = config_of(folder, corpus, "whole", dict.fromkeys(NAMES, 4)), folder / "checkpoint.json"
    at_the_end = ["probe", str(path), "--checkpoint", str(whole), "--json", str(file)]
    assert main([*at_the_end, "--instruments", "sharpness_adam,units"]) == 0
    result = json.loads(file.read_text())["instruments"]
    assert result["sharpness_adam/top"] > 0
    assert result["sharpness_adam/threshold"] == pytest.approx(38 / 1e-3, rel=1e-4)
    assert main([*at_the_end, "optimizer.lr=0.5", "--instruments", "units,landscape"]) == 2
    wording(capsys.readouterr().err, whole)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("watch: {instruments: {sharpnes: 5}}", "2: watch.instruments.sharpnes"),
        ("watch: {instruments: {noise: -1}}", "2: watch.instruments.noise"),
        ("watch: {instruments: {noise: 4}}\ndata: {batch: 1}", "2: watch.instruments.noise"),
        ("watch: {instruments: {sharpness_adam: 4}}\noptimizer: {name: sgd}", "2: watch.instruments.sharpness_adam"),
        (
            "watch: {instruments: {sharpness_adam: 4}}\noptimizer: {freeze: [embed]}",
            "2: watch.instruments.sharpness_adam",
        ),
        ("watch: {instruments: {units: 5}}\ntrain: {steps_per_call: 4}", "3: train.steps_per_call"),
    ],
    ids=["name", "below 0", "batch", "optimizer", "frozen", "steps a call"],
)
def test_bad_values_get_a_line(tmp_path, text, key, wording):
    (line,) = lines(tmp_path, f"name: a\n{text}\n")
    wording(line, f"a.yaml:{key}")


@pytest.mark.slow
def test_every_tag_is_documented(whole):
    text = (ROOT / "docs" / "instruments.md").read_text(encoding="utf-8")
    parts = r"/(layer_\d+|head_\d+|all|embed|head|lookup|positions|norm_f)\b.*"
    tags = {re.sub(parts, "", tag) for tag in read_run(whole).steps}
    mine = {tag for tag in tags if tag.split("/")[0] in ("attn", "split", "cosine", "noise", "jacobian", "landscape")}
    mine |= {tag for tag in tags if tag.split("/")[0] in ("ledger", "depth_loss", "grad_mean")}
    mine |= {tag for tag in tags if tag.startswith(("sharpness", "act/dead", "act/peak", "grad/zero", "grad/dot"))}
    mine |= {tag for tag in tags if tag.endswith("stable_rank")}
    assert len(mine) > 30
    assert {tag for tag in mine if f"`{tag}" not in text} == set()


@pytest.mark.slow
def test_every_chart_in_tensorboard_has_something_to_draw(whole):
    """And a tag is on one chart at most."""
    tags = list(read_run(whole).steps)
    charts = chart_layout(["attn_q"], True, NAMES)["instruments"]
    drawn = {title: [tag for tag in tags if re.match(pattern, tag)] for title, pattern in charts.items()}
    assert {title for title, found in drawn.items() if not found} == set()
    assert len(charts) == 35
    together = sum(drawn.values(), [])
    assert len(together) == len(set(together))
    (event,) = events_of(whole).Tensors("custom_scalars__config__")
    written = event.tensor_proto.string_val[0].decode(errors="replace")
    assert all(title in written for title in charts)
    assert "instruments" not in chart_layout(["attn_q"])
