"""Every fault of a config: its place and key in the tables here, its wording in messages.txt.

After a change of wording: python -m tests.config.test_messages
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from train.config.load import ConfigError, Problem, load
from train.config.yaml import clean

GOLDEN = Path(__file__).with_name("messages.txt")
VARIANTS = "model: {heads: 4, width: 128}\nvariants:\n  with: {}\n  narrow: {model.width: 6}\n  odd: {model.heads: 5}"
SWEEP = "variants: {x: {}, y: {}}\nsweep:\n  optimizer.lr:\n  - 1e-2\n  - 1e-5"

# A whole file, and the line and key of each problem.
FILES: list[tuple[str | bytes, str]] = [
    ("", "1"),
    ("- 1\n", "1"),
    ("name: *n\nseed: x\n", "1 name; 2 seed"),
    (b"name: a\n# caf\xe9\n", "2"),
    (b"\xef\xbb\xbfname: \xff\n", "1"),
    (b"\xff\xfen\x00a\x00m\x00e\x00:\x00 \x00a\x00\n\x00", "1"),
    ("# " + "x" * 2**18, "0"),
    ("model: {layers: 1}", "0 name"),
    ("name: 8", "1 name"),
    ("name: ../x", "1 name"),
    ("name: a..b", "1 name"),
    ("name: &n a\n", "1 name"),
    ("name: !!str a\n", "1 name"),
    ("name: !!python/object/apply:os.system [ls]\n", "1 name"),
    ("name: [a\n", "1"),
    ("name: a\nmodel: {layers: 1,\n\nseed: 1\n", "4"),
    ("name: " + "[" * 5000, "1"),
    ("name: a\nx: [" + "1," * 60_000 + "]", "2"),
    ("name: a\nseed: " + "1" * 5000, "2 seed"),
    ('name: "\\UFFFFFFFF"', "1"),
]
# The rest of a file that begins with `name: a`.
KEYS = [
    ("model: {layers: 1}\nmodel.layers: 2", "3 model.layers"),
    ("seed: 1\nseed: x", "3 seed"),
    ("model:", "2 model"),
    ("model:\n  hedas: 8", "3 model.hedas"),
    ("model: {lr: 8}", "2 model.lr"),
    ("layers: 8", "2 layers"),
    ("model: {seed: 8}", "2 model.seed"),
    ("optimzer: {lr: 1}", "2 optimzer"),
    ("watch: {zzz: 8}", "2 watch.zzz"),
    ("bias: true", "2 bias"),
    ("model: {layers:2}", "2 model.layers:2"),
    ("optimizer: {lr:0.1}", "2 optimizer.lr:0.1"),
    ("seed:3", "2"),
    ("seed.x: 1", "2 seed.x"),
    ('model: {layers: "8"}', "2 model.layers"),
    ("model: {layers: true}", "2 model.layers"),
    ("model: {layers: 8.0}", "2 model.layers"),
    ("model: {layers: 0}", "2 model.layers"),
    ("model: {layers: 0.0}", "2 model.layers"),
    (
        "train: {steps: 1e3, steps_per_call: 1.0, device: cuda, dtype: FP16}",
        "2 train.steps; 2 train.steps_per_call; 2 train.device; 2 train.dtype",
    ),
    ("model: {residual: prenorm}", "2 model.residual"),
    ("model: {residual: {rule: postnorm}}", "2 model.residual.rule"),
    ("model: {kv_heads: 0}", "2 model.kv_heads"),
    ("model: {norm_gain: yes}", "2 model.norm_gain"),
    ("model: {activation: gleu}", "2 model.activation"),
    ("model: {norm: null}", "2 model.norm"),
    ("data: {corpus: shakespear}", "2 data.corpus"),
    ("optimizer: {lr: fast}", "2 optimizer.lr"),
    ("optimizer: {lr: .inf}", "2 optimizer.lr"),
    ("optimizer: {lr: 1e999}", "2 optimizer.lr"),
    ("model: {dropout: .nan}", "2 model.dropout"),
    ("optimizer:\n  betas:\n  - 1\n  - x", "3 optimizer.betas"),
    ("optimizer: {betas: [0.9]}", "2 optimizer.betas"),
    ("train: {steps_per_call: 1.5}", "2 train.steps_per_call"),
    ("mesh: {fsdp: true}", "2 mesh.fsdp"),
    ("data: {path: 3}", "2 data.path"),
    ("model: {heads: 5}", "2 model.heads"),
    ("model: {width: 6}", "2 model.heads"),
    ("model: {width: 9223372036854775807}", "2 model.width"),
    ("model: {mlp_ratio: 1e308}", "2 model.mlp_ratio"),
    ("data: {corpus: shakespeare, path: x}", "2 data.path"),
    ("optimizer: {lr: 1e-5}", "2 optimizer.min_lr"),
    ("model: {attention: full}", "2 model.attention"),
    ("model: {residual: highway, skip_scale: 0.0}", "2 model.skip_scale"),
    ("model: {residual: {rule: hyper_connections, gate: 0.1}}", "2 model.residual.gate"),
    ("model: {init_gain: {mlp_gate: 2.0}}", "2 model.init_gain.mlp_gate"),
    ("data: {kind: linear_regression}\ntask: {z_loss: 0.1}", "3 task.z_loss"),
    (
        "variants:\n  a: {train.device: cpu}\n  b: {}\n  c: {train.device: cpu, train.dtype: float64}",
        "3 train.device; 5 train.dtype",
    ),
    ("optimizer: {schedule: wsd, warmup: 1999}\ntrain: {steps: 2000}", "2 optimizer.decay_fraction"),
    ("optimizer: {schedule: wsd, warmup: 2000}\ntrain: {steps: 2000}", "2 optimizer.warmup"),
    ("optimizer: {accumulate: 3}", "2 optimizer.accumulate"),
    ("optimizer: {accumulate: 17}", "2 optimizer.accumulate"),
    ("optimizer: {betas: [0, 1]}", "2 optimizer.betas"),
    ("train: {steps_per_call: 0}", "2 train.steps_per_call"),
    ("train: {steps_per_call: 20}", "2 train.steps_per_call"),
    ("train: {steps_per_call: 20, eval_every: 30}\nwatch: {every: 0}", "2 train.steps_per_call"),
    ("train: {steps_per_call: 25}", "2 train.steps_per_call"),
    ("train: {unroll: 0}", "2 train.unroll"),
    ("train: {dtype: float64, device: gpu}", "2 train.dtype"),
    ("task: {kind: regression}", "2 task.kind"),
    ("optimizer: {lr: 3.5e38}", "2 optimizer.lr"),
    ("model: {skip_scale: -1e39}", "2 model.skip_scale"),
    ("model: {init_gain: {attn_v: 1e-50}}", "2 model.init_gain.attn_v"),
    ("mesh: {data: 4}", "2 mesh.data"),
    ("variants: {a/b: {}}", "2 variants.a/b"),
    ('variants: {"": {}}', "2 variants."),
    ("variants: {A: {}, a: {}}", "2 variants.a"),
    ("variants: {x: null}", "2 variants.x"),
    ("variants: [x]", "2 variants"),
    ("variants: {x: {name: b}}", "2 variants.x.name"),
    ("variants: {x: {runs_dir: b}}", "2 variants.x.runs_dir"),
    ("variants: {x: {sweep.seed: [1]}}", "2 variants.x.sweep.seed"),
    ('sweep: {name: [x, "y"]}', "2 sweep.name"),
    ("sweep: {expect: []}", "2 sweep.expect"),
    ("variants: {x: {model.hedas: 1}}", "2 variants.x.model.hedas"),
    ("variants: {x: {lr: 1}}", "2 variants.x.lr"),
    ("variants: {x: {model.layers: 1, model: {layers: 2}}}", "2 variants.x.model.layers"),
    ("variants: {x: {model: 3}}", "2 variants.x.model"),
    ("sweep: {sede: [1]}", "2 sweep.sede"),
    ("sweep: {seed: 3}", "2 sweep.seed"),
    ("sweep: {seed: [0, 0]}", "2 sweep.seed[1]"),
    ("sweep: {model: [{layers: 1}]}", "2 sweep.model"),
    ("sweep: {model.residual: [pre_ln, {rule: rezero}]}", "2 sweep.model.residual[1]"),
    ("sweep: {seed: []}", "2 sweep.seed"),
    ("sweep: null", "2 sweep"),
    ("sweep: {seed: [0, -1]}", "2 sweep.seed[1]"),
    ("sweep: {optimizer.lr: [1.0, 1.0]}", "2 sweep.optimizer.lr[1]"),
    ('sweep: {data.path: [a/b, "a b"]}', "2 sweep.data.path[1]"),
    ("variants: {x: {seed: 1}}\nsweep: {seed: [0]}", "2 variants.x.seed"),
    (f"sweep: {{seed: {list(range(501))}, optimizer.lr: [1.0, 2.0]}}", "2 sweep"),
    ("sweep: {data.path: [" + "x" * 120 + "]}", "2 sweep"),
    ("expect: {mian: {loss: [1, 2]}}", "2 expect.mian"),
    ("expect: {main: 3}", "2 expect.main"),
    ("expect: {main: {loss: [2, 1]}}", "2 expect.main.loss"),
    ("expect: {main: {loss: [2]}}", "2 expect.main.loss"),
    ("expect: {main: {loss: [true, 2]}}", "2 expect.main.loss"),
    ("expect: {main: {loss: [0, .inf]}}", "2 expect.main.loss"),
    ("expect: {main: {loss: low}}", "2 expect.main.loss"),
    ("expect: {main: {verdict: [0, 1]}}", "2 expect.main.verdict"),
    ("expect: {main: {verdict: helthy}}", "2 expect.main.verdict"),
    ("expect: [1]", "2 expect"),
    ("seed: 1\nseed: 2", "3 seed"),
    ("model: {layers: 1, layers: 2}", "2 model.layers"),
    ("runs_dir: *n", "2 runs_dir"),
    ("model:\n  <<: {layers: 1}", "3 model"),
    ("---\nname: b", "2"),
    ("1: 2", "2"),
    ("? [x]\n: 2", "2"),
    ("model:\n\tlayers: 1", "3"),
    ("model: b: c", "2"),
    ("seed: \0", "2"),
    ('data: {path: "a\\0b"}', "2 data.path"),
    ("data: {context: 1099511627776}", "2 data.context"),
    ("data: {kind: copy, context: 65536}", "2 data.context"),
    ("data: {batch: 4611686018427387904}", "2 data.batch"),
    ("data: {kind: markov, symbols: 9999}", "2 data.symbols"),
    (
        "train: {steps_per_call: 100000000, eval_every: 100000000, checkpoint_every: 100000000}",
        "2 train.steps_per_call",
    ),
    ("watch: {curvature_batches: 1000}\ndata: {batch: 4096, context: 1024}", "2 watch.curvature_batches"),
    ("runs_dir: runs/" + "a" * 256, "2 runs_dir"),
    ("runs_dir: " + "é" * 128, "2 runs_dir"),
    ("runs_dir: " + "a/" * 1501, "2 runs_dir"),
    ("model: {layers: 0}\nvariants: {x: {model.layers: 1}}", "2 model.layers"),
    # Rules between keys: in the base once, else in the variant or at the swept value that breaks them.
    ("model: {heads: 5}\nvariants: {x: {}, y: {seed: 1}, z: {model.layers: 2}}", "2 model.heads"),
    (VARIANTS, "5 model.heads; 6 variants.odd.model.heads"),
    (VARIANTS + "\nsweep: {seed: [0, 1, 2]}", "5 model.heads; 6 variants.odd.model.heads"),
    (SWEEP, "6 optimizer.min_lr"),
    (SWEEP + "\n  optimizer.min_lr: [1e-6, 1e-3]", "7 sweep.optimizer.min_lr[1]"),
    ("train: {dtype: float64}\noptimizer: {lr: 1e300}\nvariants:\n  y: {train.dtype: float32}", "5 optimizer.lr"),
    # All at once, in the order of the file; rules between keys only where all keys are clean.
    (
        "model:\n  hedas: 8\n  width: 130\noptimizer: {lr: fast, betas: [0.9, 1.5]}\nextra: [1]\nexpect: {mian: {}}",
        "3 model.hedas; 5 optimizer.lr; 5 optimizer.betas; 6 extra; 7 expect.mian",
    ),
    ("optimzer: {min_lr: 1e-5}\noptimizer: {lr: 1e-5}", "2 optimzer"),
    ("model: {heads: 5}\nsweep: {model.heads: 4}", "3 sweep.model.heads"),
    ("train: {dtype: float64, device: tpu}\noptimizer: {min_lr: 1.0}", "2 train.dtype; 3 optimizer.min_lr"),
]
# An override of a file that has one variant, `with`.
COMMANDS = [
    ("optimizer.lr=fast", "- optimizer.lr"),
    ("model.hedas=4", "- model.hedas"),
    ("optimzer.lr=1", "- optimzer.lr"),
    ("layers=1", "- layers"),
    ("optimizer.lr.x=1", "- optimizer.lr.x"),
    ("seed", "-"),
    ("=1", "-"),
    ("model..layers=1", "-"),
    ("seed=", "- seed"),
    ("model=3", "- model"),
    ("optimizer.betas=[0.9", "- optimizer.betas"),
    ("variants.wiht.seed=1", "- variants.wiht.seed"),
    ("variants.with.sede=1", "- variants.with.sede"),
    ("variants.with.name=b", "- variants.with.name"),
    ("data.path=\udcff", "- data.path"),
    ("se\ned=1", "- se\\ned"),
    ("residual=1", "- residual"),
    ("block_size=1", "- block_size"),
    ("model.n_embd=1", "- model.n_embd"),
    ("model.depth=1", "- model.depth"),
    ("optimizer.type=1", "- optimizer.type"),
    ("train.epochs=1", "- train.epochs"),
    ("learning_rate=1", "- learning_rate"),
]
FINE = [
    b"\xef\xbb\xbfname: a\r\nseed: 3\r\n",
    "name: a\noptimizer: {lr: 1e-5, schedule: constant}",
    "name: a\nmodel: {attention: full}\ndata: {kind: digits}",
    "name: a\ntrain: {steps: 99}",
    "name: a\ntrain: {steps_per_call: 250}\nwatch: {every: 0}",
    "name: a\ntrain: {steps_per_call: 50}",
    "name: a\ntrain: {steps_per_call: 5}",
    "name: a\ntrain: {dtype: float64, device: cpu}",
    "name: a\ntask: {kind: regression}\ndata: {kind: digits}",
    "name: a\nmodel: {skip_scale: 3.4e38}",
    "name: a\nmodel: {skip_scale: 1e300, init_gain: {attn_v: 1e-50}}\ntrain: {dtype: float64}",
    "name: a\nmesh: {data: 1}",
    "name: a\ndata: {corpus: shakespeare}\nvariants: {x: {data.path: x.txt}}",
    "name: a\nmodel.residual: {rule: mhc, streams: 2}\nvariants: {x: {model.residual: rezero}}",
]
CASES: list[tuple[str | bytes, tuple[str, ...], str]] = [
    *((text, (), places) for text, places in FILES),
    *((f"name: a\n{text}\n", (), places) for text, places in KEYS),
    *(("name: a\nvariants: {with: {}}\n", (override,), places) for override, places in COMMANDS),
]


def problems(folder: Path, text: str | bytes, *overrides: str) -> Sequence[Problem]:
    path = folder / "a.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        load(path, overrides)
    except ConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(("text", "overrides", "places"), CASES, ids=range(len(CASES)))
def test_each_fault_is_reported_at_its_place_and_key(tmp_path, text, overrides, places):
    reported = []
    for problem in problems(tmp_path, text, *overrides):
        assert problem.place.source == ("command line" if overrides else str(tmp_path / "a.yaml"))
        reported.append(f"{'-' if overrides else problem.place.line or 0} {problem.key}".strip())
    assert "; ".join(reported) == places


@pytest.mark.parametrize("text", FINE, ids=range(len(FINE)))
def test_configs_without_fault(tmp_path, text):
    assert problems(tmp_path, text) == ()


def messages(folder: Path) -> str:
    """Each case and its problems, one a line."""
    lines = []
    for text, overrides, _ in CASES:
        shown = text.decode("latin-1") if isinstance(text, bytes) else text
        lines += [f"> {clean(line)}" for line in (*overrides, *shown.removeprefix("name: a\n").splitlines())]
        lines += [
            str(problem).replace(str(folder / "a.yaml"), "a.yaml") for problem in problems(folder, text, *overrides)
        ]
        lines.append("")
    return "\n".join(lines)


def test_the_wording_is_that_of_the_golden_file(tmp_path):
    assert messages(tmp_path) == GOLDEN.read_text(encoding="utf-8")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        GOLDEN.write_text(messages(Path(folder)), encoding="utf-8")
