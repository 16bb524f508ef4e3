"""The coordinate check: slopes and verdicts by hand, the same figures by another way, and the command."""

import json

import jax
import numpy as np
import pytest

from train.cli import main
from train.config.load import from_mapping
from train.core.batch import batch_of
from train.core.state import hparams_of, initial_state, network_of
from train.core.step import train_step
from train.run.coordcheck import FLAT, QUANTITIES, coordcheck, flatness, mean_coordinates, resized, slopes
from train.run.experiment import device_of, open_all

STREAM, LOGITS, STREAM_CHANGE, LOGITS_CHANGE = range(4)


@pytest.fixture
def keys(corpus):
    """A model small enough to grow."""
    model = {"model.layers": 2, "model.width": 16, "model.heads": 2, "model.init_std": 0.1}
    return {"name": "c", "data.path": corpus, "data.context": 8, "data.batch": 4, "optimizer.lr": 3e-4} | model


def bench(experiment):
    """The data and the device."""
    (source,) = open_all(experiment.variants).values()
    return source, device_of(experiment)


def test_the_slope_of_a_power_is_its_exponent():
    sizes, powers = [4, 8, 32], np.array([[0.5, -1.0, 0.0], [2.0, 0.25, -0.1]])
    rms = np.array([3.0 * size**powers for size in sizes])
    np.testing.assert_allclose(slopes(sizes, rms), powers, atol=1e-12)
    assert np.isfinite(slopes([1, 2], np.array([[1.0, 0.0, np.inf], [1.0, 1.0, 1.0]]))).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("over", "place", "slope", "flat", "why"),
    [
        ("width", STREAM, 0.0, True, "every slope is as it should be"),
        ("width", LOGITS_CHANGE, FLAT, True, "the rms of logits change, width^0.15, from -0.65 to 0.15)"),
        ("width", LOGITS, -0.64, True, "the rms of logits, width^-0.64, from -0.65"),
        (
            "width",
            LOGITS_CHANGE,
            -0.66,
            False,
            "the rms of logits change shrinks as width^-0.66, and flat is from -0.65",
        ),
        ("width", LOGITS, 0.5, False, "the rms of logits grows as width^0.50, and flat is from -0.65 to 0.15"),
        ("width", STREAM, -0.2, False, "the rms of stream shrinks as width^-0.20, and flat is from -0.15"),
        ("depth", STREAM_CHANGE, -0.64, True, "the rms of stream change, depth^-0.64, from -0.65 to 0.15"),
        ("depth", LOGITS, -0.2, False, "the rms of logits shrinks as depth^-0.20, and flat is from -0.15"),
        ("width", STREAM_CHANGE, np.nan, False, "the rms of stream change is 0 or not finite"),
        ("width", LOGITS, -np.inf, False, "the rms of logits is 0 or not finite"),
    ],
)
def test_verdicts_by_hand(over, place, slope, flat, why):
    result = np.full(4, 0.01)
    result[place] = slope
    verdict = flatness(over, result)
    assert verdict[0] == flat and why in verdict[1]


@pytest.mark.slow
def test_the_figures_are_those_of_training_step_by_step(keys):
    """The stream block by block, logits by `apply`, states by train_step at a constant rate without a warm-up."""
    experiment = from_mapping(keys | {"optimizer.warmup": 100, "seed": 5})
    actual = mean_coordinates(resized(experiment.variants[0], "depth", 2), *bench(experiment), steps=2, seeds=1)
    config = (
        from_mapping(keys | {"optimizer.warmup": 0, "optimizer.schedule": "constant", "seed": 5}).variants[0].config
    )
    source, _ = bench(experiment)
    assert source.resident is not None
    network, hp = network_of(config, source.spec, "float32"), hparams_of(config)
    batch = batch_of(source.train_batches(4, 5, 0, 1)[0], np.asarray(source.resident[0]), 8)
    state = jax.jit(initial_state, static_argnums=(0, 1))(network, config, hp)
    step = jax.jit(train_step, static_argnums=(0, 1, 5))

    @jax.jit
    def ends(params):
        anatomy = network.anatomy(params, batch.inputs)
        x = anatomy.carry
        for layer in range(2):
            x = anatomy.block(jax.tree.map(lambda leaf, at=layer: leaf[at], anatomy.blocks), np.int32(layer), x)
        return x, network.apply(params, batch.inputs)[0]

    snapshots = [jax.device_get(ends(state.params))]
    for _ in range(2):
        state = step(network, config, state, hp, batch, False)[0]
        snapshots.append(jax.device_get(ends(state.params)))
    for index, (stream, logits) in enumerate(snapshots):
        arrays = (stream, logits, stream - snapshots[0][0], logits - snapshots[0][1])
        wanted = [np.sqrt(np.mean(values.astype(np.float64) ** 2)) for values in arrays]
        np.testing.assert_allclose(actual[index], wanted, rtol=1e-3)


@pytest.mark.slow
def test_seeds_are_averaged_as_logarithms(keys):
    def rms(seed, seeds):
        experiment = from_mapping(keys | {"model.layers": 1, "seed": seed, "data.seed": 0})
        return mean_coordinates(resized(experiment.variants[0], "width", 16), *bench(experiment), steps=1, seeds=seeds)[
            1
        ]

    np.testing.assert_allclose(rms(3, 2), np.sqrt(rms(3, 1) * rms(4, 1)), rtol=1e-5)


@pytest.mark.slow
def test_the_stream_of_pre_ln_grows_as_the_root_of_depth(keys):
    """L MLPs add vectors of one size in directions of their own. Attention would add more where tokens are alike."""
    model = {"model.width": 64, "model.init_std": 1e-2, "model.activation": "relu", "model.init_gain.attn_o": 0.0}
    (result,) = coordcheck(from_mapping(keys | model), {"depth": [2, 4, 8, 16]}, steps=1, seeds=2)
    assert result["slope"]["stream"][0] == pytest.approx(0.5, abs=0.05)
    assert not result["flat"]


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("check") / "c.yaml"
    content = {
        "name": "c",
        "model": {"layers": 1, "width": 16, "heads": 2, "init": "normal", "init_std": 0.1},
        "data": {"path": corpus, "context": 8, "batch": 4},
        "optimizer": {"lr": 3e-3},
        "variants": {"mup": {"model.base_width": 16}, "standard": {}},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_command_prints_writes_and_fails(config, tmp_path, capsys):
    files = [tmp_path / "c.json", tmp_path / "c.html"]
    small = ["--only", "width", "--widths", "16,32", "--steps", "2", "--seeds", "1"]
    assert main(["coordcheck", str(config), *small, "--json", str(files[0]), "--html", str(files[1])]) == 1
    out = capsys.readouterr().out
    mup, standard = json.loads(files[0].read_text())
    assert (mup["variant"], mup["over"], mup["sizes"]) == ("mup", "width", [16, 32])
    assert standard["flat"] is False and f"standard, width 16 to 32: not flat: {standard['why']}" in out
    for result in (mup, standard):
        assert {name: np.shape(rms) for name, rms in result["rms"].items()} == dict.fromkeys(QUANTITIES, (2, 3))
        wanted = slopes([16, 32], np.array(result["rms"]["logits"]))
        np.testing.assert_allclose(result["slope"]["logits"], wanted)
        assert result["slope"]["logits_change"][0] is None
    for name in QUANTITIES:  # at the base width both are one
        assert mup["rms"][name][0] == pytest.approx(standard["rms"][name][0], rel=1e-4)
    page = files[1].read_text()
    assert page.count("<figure data-chart>") == 2 and standard["why"] in page and "standard, width 16 to 32" in page


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--widths", "64"], "argument --widths"),
        (["--depths", "2,2"], "argument --depths"),
        (["--depths", "2,x"], "argument --depths"),
        (["--widths", "16,40000"], "argument --widths"),
        (["--steps", "0"], "argument --steps"),
        (["--only", "both"], "argument --only"),
        (["--widths", "16,33"], "command line: --widths 33: model.heads"),
    ],
    ids=lambda x: "=".join(x) if isinstance(x, list) else None,
)
def test_bad_words_get_a_line(config, words, place, capsys, wording):
    try:
        code = main(["coordcheck", str(config), *words])
    except SystemExit as error:  # argparse
        code = error.code
    err = capsys.readouterr().err
    assert code == 2 and len(err.splitlines()) == 1
    wording(err, place, volatile=r"\(choose from [^)]*\)")
