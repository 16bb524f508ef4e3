"""Claims of the chain rule: all of them hold here, and one that does not is seen."""

import io
import json
import re
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import model.layers
import train.core.loss
from pages import Reader
from train.chain import descent, loss, optimizer, reference, scalar, transformer
from train.chain.claim import CLAIMS, COUNTEREXAMPLE, Claim, Evidence, Pair, Unmeasured, compare
from train.chain.run import result_of, selected
from train.chain.subject import subject_of
from train.chain.transformer import Sample, Slopes, evidence_of, slopes
from train.cli import main
from train.config.load import from_mapping
from train.report.chain import complaint

DOC = Path(__file__).parents[2] / "docs" / "chain.md"

IDS = [claim.id for claim in selected(None)]


@contextmanager
def exact():
    """The command turns float64 on for its process, which here is that of other tests too."""
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def called(*arguments) -> tuple[int, str]:
    """(exit code, stdout) of `deltaflow chain ARGUMENTS`."""
    with exact(), redirect_stdout(io.StringIO()) as out:
        code = main(["chain", *map(str, arguments)])
    return code, out.getvalue()


# The claims of a whole transformer take as long as all the others.
@pytest.fixture(scope="module", params=["[!t]*", pytest.param("*", marks=pytest.mark.slow)], ids=["most", "all"])
def checked(request, tmp_path_factory):
    """The command, run once: its exit code and output, the JSON and the page."""
    folder = tmp_path_factory.mktemp("chain")
    code, out = called("--only", request.param, "--json", folder / "c.json", "--html", folder / "deep" / "c.html")
    results = json.loads((folder / "c.json").read_text(encoding="utf-8"))
    page = (folder / "deep" / "c.html").read_text(encoding="utf-8")
    ids = [claim.id for claim in selected(request.param)]
    return SimpleNamespace(code=code, out=out, results=results, page=page, ids=ids)


def test_every_law_holds_and_every_false_belief_is_refuted(checked):
    assert [r["id"] for r in checked.results["claims"] if not r["good"]] == []
    assert checked.code == 0 and checked.results["good"] is True
    for result in checked.results["claims"]:
        assert result["status"] == ("refuted" if result["belief"] else "holds")
        assert (result["error"] > result["tolerance"]) == result["belief"]
    beliefs = sum(result["belief"] for result in checked.results["claims"])
    assert beliefs == 11 if checked.ids == IDS else beliefs > 5
    laws = len(checked.ids) - beliefs
    assert f"{laws} of {laws} laws hold, {beliefs} of {beliefs} popular beliefs are refuted" in checked.out


def test_the_tables_the_json_and_the_page_have_every_claim(checked):
    assert [result["id"] for result in checked.results["claims"]] == checked.ids
    read = Reader(checked.page)
    lines = checked.out.splitlines()
    assert re.findall(r"^([a-z]+/\w+)  ", DOC.read_text(encoding="utf-8"), re.M) == IDS
    for result in checked.results["claims"]:
        (line,) = (line for line in lines if line.startswith(f"{result['id']} "))
        assert line.endswith(result["statement"])
        for key in ("statement", "source", "note", "tolerance_why"):
            assert result[key] in read.text, result["id"]
    assert len([tag for tag, _ in read.tags if tag == "figure"]) == 2


def test_figures_that_can_be_looked_up(checked):
    """Written here as numbers, for a claim whose two sides are wrong alike."""
    by_id = {result["id"]: result for result in checked.results["claims"]}
    figures = {
        "scalar/slope": 2.6561398887587544e-05,
        "scalar/underflow": -457.5749056067513,
        "scalar/skips_never_vanish": 7.888609052210118e-31,
        "loss/dropout_of_a_layer": 9 / 0.7,
        "loss/scores": 4.0,
        "descent/threshold": 2 / 3.1,
        "descent/saddle_ends": -0.25,
        "descent/saddle_is_left": 1.3780612339822379e-04,
        "descent/any_rate": 52.4848970,
        "descent/clip_norm": 0.5,
    }
    loose = {"loss/dropout_of_a_layer": 1e-2, "loss/scores": 3e-2}
    for id, value in figures.items():
        assert by_id[id]["measured"] == pytest.approx(value, rel=loose.get(id, 1e-6), abs=0), id
    slope, descents = by_id["scalar/slope"]["curves"], by_id["descent/quadratic"]["curves"]
    np.testing.assert_allclose(slope[0]["measured"], 0.9 ** np.arange(100, -1, -1), rtol=1e-12)
    ends = [curve["measured"][-1] for curve in descents]
    np.testing.assert_allclose(ends, [0.8**200, 0.98**200, 1.0, 1.02**200], rtol=1e-10)
    # Adam's first step is the rate, whatever the gradient.
    np.testing.assert_allclose(np.abs(optimizer.by_hand(optimizer.adam)[-1]), 0.02, rtol=1e-4)
    assert by_id["cost/ratio"]["predicted"] == 64 * 96 + 96 * 64 + 64 * 8


def test_the_page_says_where_it_was_made(checked):
    assert checked.results["model"].startswith("the built-in model: 3 blocks")
    assert checked.results["dtype"] == "float64" and "cpu" in checked.results["platform"]


def made(*pairs: Pair, **fields) -> Claim:
    return Claim("scalar/made_up", "made up", "no source", "one; the other", lambda: Evidence(pairs), **fields)


LOOSE_BELIEF = {"belief": True, "tolerance": COUNTEREXAMPLE}
BAD = {
    "wrong": (made(Pair(1.0, 1.0 + 1e-9)), "fails", "does not hold"),
    "one of many": (made(Pair(np.ones(9), np.r_[np.ones(8), 1.001])), "fails", "measured 1.001"),
    "second pair": (made(Pair(1, 1), Pair(1, 2, "there")), "fails", "(there)"),
    "above a bound": (made(Pair(1.0, 1.1), relation="<="), "fails", "predicted ≤ 1"),
    "below a bound": (made(Pair(1.0, 0.9), relation=">="), "fails", "predicted ≥ 1"),
    "borne out": (made(Pair(1.0, 1.001), **LOOSE_BELIEF), "not refuted", "a false belief was borne out"),
    "nan": (made(Pair(1.0, np.nan)), "error", "the measurement is not finite"),
    "nan predicted": (made(Pair([np.nan, 1], [1, 1])), "error", "the prediction is not finite"),
    "nan refutes nothing": (made(Pair(1.0, np.nan), belief=True), "error", "not finite"),
    "inf": (made(Pair(np.inf, np.inf)), "error", "the prediction is not finite"),
    "zeros": (made(Pair(np.zeros(3), np.zeros(3))), "error", "nothing was measured"),
    "zeros among others": (made(Pair(1, 1), Pair(0, 0, "here")), "error", "here: prediction and"),
    "shapes": (made(Pair(np.ones(3), 1.0)), "error", "one shape, got (3,) and ()"),
    "no entry": (made(Pair([], [])), "error", "one shape, got (0,) and (0,)"),
    "no pair": (made(), "error", "nothing was compared"),
    "a size that hides": (made(Pair(1, 2, "", 1e3)), "error", "negligible compared with its size"),
    "no size": (made(Pair(0, 1, "", np.inf)), "error", "negligible compared with its size"),
    "not as small": (made(Pair(0, 1e-3, "", 1.0)), "fails", "predicted 0, measured 0.001"),
    "raises": (Claim("scalar/made_up", "", "", "", lambda: Pair(1, 1 / 0)), "error", "ZeroDivisionError: division by"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_claim_that_is_not_borne_out_is_named(name):
    claim, status, reason = BAD[name]
    result = result_of(claim, transformer.tiny())
    assert (result["status"], result["good"]) == (status, False)
    assert complaint(result).startswith("scalar/made_up: ") and reason in complaint(result)


def test_one_bad_claim_is_exit_code_1_a_warning_and_a_line_of_the_page(monkeypatch, tmp_path, wording):
    monkeypatch.setattr(loss, "softmax", lambda z: reference.softmax(2 * z))
    code, out = called("--only", "loss/softmax*", "--json", tmp_path / "c.json", "--html", tmp_path / "c.html")
    (warning,) = (line for line in out.splitlines() if line.startswith("warning: "))
    assert code == 1
    wording(warning, "warning: loss/softmax_jacobian", volatile=r"\d[\d.e+-]*")
    results = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert [r["status"] for r in results["claims"]] == ["fails", "holds"] and results["good"] is False
    page = Reader((tmp_path / "c.html").read_text(encoding="utf-8")).text
    assert "What is not as it should be" in page and complaint(results["claims"][0]) in page


def test_errors_are_relative_to_what_they_say():
    pair = Pair([1.0, 1e-6], [1.0, 1.1e-6])
    assert compare(pair) == (pytest.approx(1e-7), 1) and compare(pair, each=True) == (pytest.approx(1 / 11), 1)
    assert compare(Pair([0.0, 1.0], [0.0, 1.0]), each=True) == (0.0, 0)
    assert compare(Pair([0.0, 1.0], [1e-30, 1.0]), each=True) == (1.0, 0)
    assert compare(Pair(0.0, 3e-9, "", 2.0)) == (1.5e-9, 0)
    assert compare(Pair(-2.0, -3.0), "<=") == (0.0, 0) and compare(Pair(-2.0, -1.0), "<=") == (0.5, 0)
    with pytest.raises(Unmeasured):
        compare(Pair(0.0, 0.0), "<=")


def doubled(function):
    return lambda *arguments, **keywords: jax.tree.map(lambda x: 2 * x, function(*arguments, **keywords))


def without_rescaling(x, rate, key):
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x, 0)


scalar_tap = scalar.tap
# One of the two sides of a claim that holds, replaced.
BROKEN = {
    "loss/cross_entropy": (train.core.loss, "cross_entropy", doubled(train.core.loss.cross_entropy)),
    "loss/dropout": (model.layers, "dropout", without_rescaling),
    "scalar/underflow": (scalar, "tap", lambda x, exponent, slot: scalar_tap(x, exponent, 2 * slot)),
    "scalar/activations": (scalar, "ACTIVATIONS", scalar.ACTIVATIONS | {"gelu": scalar.ACTIVATIONS["silu"]}),
    "descent/clip_norm": (descent, "clipped", lambda grads, *_: (grads, None)),
    "optimizer/nesterov": (optimizer, "moved", lambda *_: optimizer.by_hand(optimizer.momentum)),
    "transformer/delta": (reference, "normalized", lambda x, *_: x),
}


@pytest.mark.parametrize("id", BROKEN)
def test_a_broken_rule_is_seen(id, x64, checked, monkeypatch):
    module, name, broken = BROKEN[id]
    (claim,) = selected(id)
    transformer.by_hand.cache_clear()
    monkeypatch.setattr(module, name, broken)
    assert result_of(claim, transformer.tiny())["status"] == "fails"
    transformer.by_hand.cache_clear()


def sample(label, size=0.5, gradient=0.0) -> Sample:
    return Sample(label, np.zeros(1), size, np.array([gradient]))


def test_differences_know_a_slope_and_how_well(x64):
    functions = {
        "exp": (jnp.exp, 1.0, 1e-11),
        "quartic": (lambda x: 3 * x + x**2 - 5 * x**3 + x**4, 3.0, 1e-12),
        "a kink nearby": (lambda x: 2 * x + jnp.maximum(0, x - 1e-3), 2.0, 1e-9),
        "large values": (lambda x: 1e6 + jnp.sin(x), 1.0, 1e-6),
    }
    for name, (f, slope, close) in functions.items():
        estimate = slopes(lambda place, change, f=f: f(place + change), [sample(name)])
        off = abs(estimate.value[0] - slope)
        assert off < close and off <= 10 * estimate.doubt[0], name
    flat = slopes(lambda place, change: 3.0 + 0 * change, [sample("flat", 1.0)])
    assert flat.value[0] == 0 and 0 < flat.doubt[0] < 1e-10  # not certain: the values are rounded


def test_slopes_that_differences_cannot_tell_from_zero_are_against_the_largest():
    predicted = Slopes(np.array([0.0, 1.0, 1e-9, 1e-9]), np.array([0.0, 1e-12, 1e-12, 1e-20]))
    gradients = zip("abcd", (1e-17, 1.0, 1e-9, 1e-9), strict=True)
    pairs, note = evidence_of([sample(label, gradient=gradient) for label, gradient in gradients], predicted, "four")
    assert [(pair.label, pair.size) for pair in pairs] == [("b", None), ("d", None), ("a", 1.0), ("c", 1.0)]
    assert note == "four. Too small for differences, so their errors are against the largest slope: a; c"


def config(**keys):
    """The first variant of an experiment; model__layers is model.layers."""
    dotted = {key.replace("__", "."): value for key, value in keys.items()}
    return from_mapping({"name": "c"} | dotted).variants[0].config


def test_a_large_model_is_made_small_and_says_so(x64):
    large = config(model__layers=48, model__width=1024, model__heads=4, model__kv_heads=2, data__context=1024)
    subject = subject_of(large, "large")
    model = subject.network.config
    assert (model.layers, model.width, model.heads, model.kv_heads) == (16, 32, 4, 2)
    assert subject.shrunk == ("layers 48 → 16", "width 1,024 → 32", "context 1,024 → 8")
    assert "large: 16 blocks (pre_ln), width 32" in subject.note and "layers 48 → 16" in subject.note
    assert set(np.unique(subject.batch.inputs)) == set(range(16))
    small = subject_of(config(model__layers=2, model__width=12, model__heads=2, data__context=5), "small")
    assert small.shrunk == () and small.network.config.width == 12 and "smaller" not in small.note


@pytest.mark.parametrize(
    ("task", "data", "inputs", "targets", "outputs"),
    [
        ("regression", {"kind": "linear_regression", "context": 6, "dimensions": 3}, (2, 6, 4), (2, 6, 1), 1),
        ("lm", {"kind": "copy", "context": 3}, (2, 3), (2, 3), 16),
        pytest.param("classification", {"kind": "digits"}, (2, 8, 4), (2,), 10, marks=pytest.mark.slow),
    ],
)
def test_the_form_of_the_data_is_kept(task, data, inputs, targets, outputs, x64):
    if data["kind"] == "digits":
        pytest.importorskip("sklearn")
    keys = {f"data__{key}": value for key, value in data.items()}
    subject = subject_of(config(model__layers=1, model__width=8, model__heads=2, **keys), "x")
    assert (subject.network.task, subject.network.outputs, subject.network.pooled) == (task, outputs, targets == (2,))
    assert subject.batch.inputs.shape == inputs and subject.batch.targets.shape == targets
    loss = jax.eval_shape(subject.loss, subject.network.shapes())
    assert loss.shape == () and loss.dtype == np.float64


def test_every_parameter_of_every_block_is_looked_at(x64):
    shapes = subject_of(config(model__layers=3, model__width=8, model__heads=2, model__bias=True), "x").network.shapes()
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5), shapes)
    indices = np.arange(sum(leaf.size for leaf in jax.tree.leaves(params)), dtype=float)
    samples = transformer.samples_of(params, ravel_pytree(params)[1](indices))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    blocks = [leaf for keys, leaf in leaves if keys[0].key == "blocks"]
    assert len(samples) == 3 * len(blocks) + len(leaves) - len(blocks)
    places = np.concatenate([sample.places for sample in samples])
    np.testing.assert_array_equal(np.concatenate([sample.measured for sample in samples]), places)
    owner = np.concatenate([np.full(leaf.size, n) for n, (_, leaf) in enumerate(leaves)])
    assert len(set(places.tolist())) == len(places) and set(owner[places]) == set(range(len(leaves)))
    assert {sample.size for sample in samples} == {0.5}


def test_a_model_of_the_users_own(tmp_path):
    """Its first variant; the config may follow an option."""
    own = tmp_path / "own.yaml"
    own.write_text("name: c\nmodel: {layers: 2, width: 12, heads: 2}\nvariants: {a: {}, b: {model.layers: 3}}\n")
    code, out = called("--only", "cost/model", own, "model.residual=rezero")
    assert code == 0 and "own.yaml, variant a: 2 blocks (rezero), width 12" in out
    assert "1 of 1 laws hold (" in out and "scalar/slope" not in out
    code, out = called(own, "model.layers=1", "--only", "scalar/skip")
    assert code == 0 and "variant a: 1 blocks (pre_ln)" in out


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["--only", "scaler"], "command line: --only"),
        (["--only", "nosuch"], "command line: --only"),
        (["--only", "scalar/slop"], "command line: --only"),
        (["god.yaml"], "god.yaml"),
        (["good.yaml", "model.layers=0"], "command line: model.layers"),
        (["good.yaml", "data.kind=copy", "task.kind=regression"], "command line: task.kind"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_one_line(arguments, place, tmp_path, monkeypatch, capsys, wording):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text("name: good\n", encoding="utf-8")
    with exact():
        assert main(["chain", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("deltaflow: ") and err.count("\n") == 1
    wording(err, place)


def test_a_page_in_the_place_of_a_folder_is_wrong_usage(tmp_path, capsys, wording):
    (page := tmp_path / "page.html").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["chain", "--html", str(page)])
    assert stop.value.code == 2
    wording(capsys.readouterr().err.splitlines()[-1], "argument --html")


def test_patterns_are_of_ids_and_of_groups():
    assert [claim.id for claim in selected("loss/scor*")] == ["loss/scores"]
    assert {claim.group for claim in selected("cost")} == {"cost"}
    assert len(selected(None)) == len(CLAIMS) == 64
