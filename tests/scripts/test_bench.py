"""The speed contest: its arithmetic on made-up times, its workers, and that the programs in it train the same model."""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scripts.bench import flax_plain, jax_plain, project, save, scale
from scripts.bench.__main__ import entries_of, main, parse, read
from scripts.bench.contestant import Corpus, Shapes
from train.core.state import parameter_count
from train.device.programs import model_flops

ROOT = Path(__file__).resolve().parents[2]
TINY = Shapes(layers=2, heads=2, width=32, context=16, batch=4, vocab=11)


@pytest.fixture
def jax_defaults() -> Iterator[None]:
    """The contestants are written for JAX as it comes, not for the strict mode of these tests."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
def test_step_times_of_two_sizes_and_no_more_devices_than_there_are(jax_defaults) -> None:
    base = {name: 1 for name in scale.BASE} | {"width": 8, "context": 8, "batch": 2}
    _, rows = scale.scaling(1, base, {"width": (8, 16), "variants": (1, 2, 8), "devices": (1, 2)})
    assert [row[0] for row in rows] == ["width", "variants"]
    assert "8: " in rows[0][1] and "8: " not in rows[1][1]  # 8 variants are for accelerators
    assert rows[1][3] == "1.00" and 1 < float(rows[0][3]) < 2  # FLOPs: variants; attention and weights


@pytest.mark.slow
def test_the_cost_of_two_rules(jax_defaults, tmp_path, capsys) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: c\nmodel: {layers: 2, width: 16, heads: 2}\ndata: {context: 8, batch: 2}\n")
    assert main(["--rules", "--rounds", "1", "--config", str(path), "--only", "highway,mhc lite"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["rule", "---", "pre_ln", "highway", "mhc lite"]
    assert rows[2][2:] == ["1.00", "1", "1", "1"]
    assert float(rows[3][5]) > 1 and float(rows[3][4]) > 1


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--rules", "--only", "keel,mch"], "--only mch"),
        (["--scale", "--only", "variant,hight"], "--only hight"),
        (["--only", "jax,tourch"], "--only tourch"),
    ],
)
def test_a_start_of_no_name_is_refused(words, place, capsys, wording) -> None:
    assert main(words) == 2
    wording(capsys.readouterr().err, place, volatile="(?<=starts of ).*")


@pytest.mark.slow
def test_command_lines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wording
) -> None:
    page = tmp_path / "tiny.yaml"
    page.write_text("name: tiny\nmodel: {layers: 1, width: 16, heads: 2}\ndata: {context: 8, batch: 2}\n")
    config = ["--config", str(page)]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main([*config, "--only", "project_10,jax", "--rounds", "2", "--seconds", "0.02"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "shapes: layers 1, heads 2, width 16, context 8, batch 2, vocab 65"
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][2:] == [
        "| this project, watch every 10",
        "| plain JAX",
    ]
    assert main([*config, "--only", "jax", "--rounds", "1", "--cold"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| plain JAX"))
    assert float(row.split(" | ")[1]) > 0.5  # seconds: a process that imports JAX, and compiles
    for arguments in ([*config, "--only", "jaz"], ["--config", str(tmp_path / "other.yaml")]):
        assert main(arguments) == 2
        wording(capsys.readouterr().err.splitlines()[-1], volatile="(?<=starts of ).*")
    with pytest.raises(SystemExit, match="2"):
        main(["--rounds", "0"])
    monkeypatch.setattr("sys.argv", ["save", str(ROOT), "--megabytes", "0.1", "--rounds", "1"])
    assert save.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ms ")[0].rpartition(" ")[0] for line in lines] == [f"{ROOT}: save", f"{ROOT}: restore"]


def test_a_config_gives_the_shapes_and_a_note_for_what_the_others_have_not(tmp_path: Path) -> None:
    shapes = Shapes(layers=4, heads=4, width=128, context=64, batch=12, vocab=65)
    config = ROOT / "configs" / "shakespeare_char_cpu.yaml"
    assert read(config) == (shapes, "auto", [])
    words = ["model.layers=2", "data.batch=3", "train.dtype=bfloat16"]
    assert read(config, words, 300) == (replace(shapes, layers=2, batch=3, vocab=300), "bfloat16", [])
    page = tmp_path / "other.yaml"
    page.write_text("name: other\nmodel: {residual: {rule: rezero}, dropout: 0.1}\n")
    assert read(page)[2] == [
        "model.residual.rule is 'rezero' here; the other programs have 'pre_ln'",
        "model.dropout is 0.1 here; the other programs have 0.0",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("watch_every", [0, 2])
def test_the_project_runs_its_own_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch_every: int) -> None:
    page = tmp_path / "tiny.yaml"
    page.write_text(
        "name: tiny\nmodel: {layers: 2, width: 8, heads: 2}\ndata: {context: 8, batch: 2}\n"
        "train: {steps_per_call: 2, device: cpu}\n"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run, _ = project.make(str(page), watch_every)
    run(6)
    (log,) = tmp_path.glob("deltaflow-bench-*/metrics.jsonl")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows if "loss/train" in row] == [2, 4, 6]
    watched = [row["step"] for row in rows if "delta/norm_log10/layer_000" in row]
    assert watched == ([0, 2, 4] if watch_every else [])


def test_the_project_computes_in_the_dtype_that_its_row_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(project, "tune", lambda: None)
    monkeypatch.setattr(project, "make", lambda *given, vocab: (asked.append((*given, vocab)), 2))
    monkeypatch.setattr(project, "programs_of", lambda *given, vocab: asked.append((*given, vocab)))
    assert project.contestant("a.yaml", TINY, "bfloat16", 3, overrides=("model.width=8",)).facts.dispatch == 2
    with pytest.raises(TypeError):  # from what stands for the programs
        project.contestant("a.yaml", TINY, "bfloat16", layers=8).run(1)
    assert asked == [
        ("a.yaml", 3, "model.width=8", "train.dtype=bfloat16", 11),
        ("a.yaml", "train.dtype=bfloat16", "model.layers=8", "train.unroll=1", 11),
    ]


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch would run")
def test_a_contest_that_no_program_runs_in_is_1(capsys) -> None:
    assert main(["--config", str(ROOT / "configs" / "shakespeare_char_cpu.yaml"), "--only", "torch_compile"]) == 1
    assert "not installed: torch" in capsys.readouterr().out


def test_all_programs_have_the_parameters_of_the_overrides_and_the_vocabulary() -> None:
    config = str(ROOT / "configs" / "shakespeare_char_cpu.yaml")
    words = ["model.layers=3", "model.width=8", "model.heads=2", "data.context=16", "data.batch=2"]
    options = parse(["--config", config, words[0], "--vocab", "300", "--only", "project_1,jax", *words[1:]])
    _, entries, _ = entries_of(options)
    ours, *_, jaxs = (entry.arguments for entry in entries)
    shapes = Shapes(layers=3, heads=2, width=8, context=16, batch=2, vocab=300)
    assert ours["shapes"] == jaxs["shapes"] == shapes
    programs, variant, _ = project.programs_of(ours["config"], *ours["overrides"], vocab=300)
    assert programs.corpus.dtype == np.uint16 and programs.corpus.max() == 299
    theirs = jax.tree.leaves(jax.eval_shape(lambda: jax_plain.init(shapes)))
    by_hand = 3 * (12 * 8 * 8 + 2 * 8) + (300 + 16) * 8 + 8
    assert parameter_count(programs.group.network.shapes()) == sum(leaf.size for leaf in theirs) == by_hand
    assert model_flops(programs.group.network, variant.config.data.batch) == shapes.flops


@pytest.mark.parametrize("mode", [[], ["--rules"], ["--scale"]])
def test_a_bad_override_is_one_line(mode, capsys) -> None:
    try:
        code = main([*mode, "model.wdith=8"])
    except SystemExit as error:  # of the parser, which prints the usage first
        code = error.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and "model.wdith" in lines[-1] and len([line for line in lines if "wdith" in line]) == 1


def test_flops_count_the_matmuls() -> None:
    params = jax.eval_shape(lambda: jax_plain.init(TINY))
    matrices = sum(a.size for block in params["blocks"] for a in block.values() if a.ndim == 2) + params["embed"].size
    assert TINY.matmul_params == matrices
    # One block, one head, D = 2, T = 3, B = 1, V = 5, by hand. Forward: 12 D^2 + V D = 58 parameters, 2 FLOPs each for
    # 3 tokens = 348; scores and mixing 2 * (2 T T D) = 72. Backward twice that.
    assert Shapes(1, 1, 2, 3, 1, 5).flops == 3 * (348 + 72)


@pytest.mark.slow
@pytest.mark.usefixtures("jax_defaults")
@pytest.mark.parametrize("module", [jax_plain, flax_plain])
def test_training_starts_at_chance_and_learns(module) -> None:
    trainer = module.trainer(TINY)
    losses = [float(trainer()) for _ in range(20)]
    assert losses[0] == pytest.approx(np.log(TINY.vocab), rel=0.05)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


def test_batches_are_next_tokens_and_differ() -> None:
    corpus = Corpus(TINY)
    x, y = corpus.batch()
    assert x.shape == y.shape == (TINY.batch, TINY.context)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    assert not np.array_equal(x, corpus.batch()[0])


def rough() -> jax_plain.Params:
    """Weights on which every part matters: larger matrices, gains away from 1."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: jax_plain.init(TINY))
    drawn = jax.tree.map(lambda a: (0.2 * rng.normal(size=a.shape) + (a.ndim == 1)).astype(np.float32), shapes)
    return jax.tree.map(jnp.asarray, drawn)


loss_and_grads = jax.jit(jax.value_and_grad(jax_plain.loss), static_argnums=3)


@pytest.mark.slow
@pytest.mark.usefixtures("jax_defaults")
def test_flax_computes_the_same_loss_and_gradient() -> None:
    from flax import nnx

    params = rough()
    x, y = map(jnp.asarray, Corpus(TINY).batch())
    model = flax_plain.GPT(TINY, jnp.float32, nnx.Rngs(0))
    model.embed.embedding[...] = params["embed"]
    model.positions.embedding[...] = params["positions"]
    assert model.norm.scale is not None
    model.norm.scale[...] = params["norm"]
    for block, given in zip(model.blocks, params["blocks"], strict=True):
        for name in ("qkv", "out", "up", "down"):
            getattr(block, name).kernel[...] = given[name]
        for name in ("norm_1", "norm_2"):
            getattr(block, name).scale[...] = given[name]
    loss, grads = loss_and_grads(params, x, y, TINY.heads)
    graph, state = nnx.split(model)
    flax_loss, flax_grads = jax.jit(jax.value_and_grad(lambda state: nnx.merge(graph, state).loss(x, y)))(state)
    np.testing.assert_allclose(flax_loss, loss, rtol=1e-5)
    theirs = nnx.to_pure_dict(flax_grads)
    np.testing.assert_allclose(theirs["embed"]["embedding"], grads["embed"], rtol=1e-3, atol=1e-5)
    for i, block in enumerate(grads["blocks"]):
        np.testing.assert_allclose(theirs["blocks"][i]["qkv"]["kernel"], block["qkv"], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("jax_defaults")
@pytest.mark.filterwarnings("default")  # of PyTorch's own import
def test_torch_computes_the_same_loss_and_gradient_and_update() -> None:
    torch = pytest.importorskip("torch")
    from scripts.bench import torch_gpt

    params = rough()
    x, y = Corpus(TINY).batch()
    trainer = torch_gpt.Trainer(TINY)
    model = trainer.model

    def pairs(tree: jax_plain.Params, of: Callable):
        yield of(model.embed.weight), tree["embed"]
        yield of(model.positions.weight), tree["positions"]
        yield of(model.norm.weight), tree["norm"]
        for block, given in zip(model.blocks, tree["blocks"], strict=True):
            for name in ("qkv", "out", "up", "down"):
                yield of(getattr(block, name).weight).T, given[name]
            for name in ("norm_1", "norm_2"):
                yield of(getattr(block, name).weight), given[name]

    for tensor, array in pairs(params, lambda p: p.data):
        tensor.copy_(torch.tensor(np.asarray(array)))
    loss, grads = loss_and_grads(params, jnp.asarray(x), jnp.asarray(y), TINY.heads)
    device = trainer.device
    torch_loss = model(torch.tensor(x, device=device).long(), torch.tensor(y, device=device).long())
    torch_loss.backward()
    assert torch_loss.item() == pytest.approx(float(loss), rel=1e-5)
    for tensor, array in pairs(grads, lambda p: p.grad):
        np.testing.assert_allclose(tensor.cpu().numpy(), array, rtol=1e-3, atol=1e-5)
    model.zero_grad(set_to_none=True)

    # Three whole steps on the same batches: clipping, AdamW and weight decay are the same too.
    corpus = Corpus(TINY, seed=0)
    jax_trainer = jax_plain.Trainer(params, lambda p, x, y: jax_plain.loss(p, x, y, TINY.heads), corpus)
    for _ in range(3):
        assert float(trainer()) == pytest.approx(float(jax_trainer()), rel=1e-5)
