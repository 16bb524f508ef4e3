"""One table: this project's training step next to PyTorch, Flax and plain JAX programs of the same shapes.

    python scripts/bench                                          # CPU or GPU, as JAX and PyTorch choose
    python scripts/bench --config configs/shakespeare_char.yaml
    python scripts/bench --only jax,torch --rounds 3 --seconds 1  # a quick look
    python scripts/bench --vocab 50304 model.width=768 model.heads=12 data.context=1024   # other shapes, as in training
    python scripts/bench --watch --rounds 30 --seconds 1          # the cost of watching, in one process
    python scripts/bench --depth                                  # compile time at 96 blocks over 8
    python scripts/bench --scale                                  # step time over sizes, with exponents
    python scripts/bench --rules                                  # the cost of each residual rule
    python scripts/bench --cold                                   # process start to the end of the first dispatch

PyTorch is optional: without it its rows are empty. Close other programs first; every figure is a median over rounds in
which all contestants take a turn, and ratios are taken within a round.
"""

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

if not __package__:  # started as a folder, which Python then puts first on its path; the package lies two above
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.bench.contest import ColdStart, Entry, Here, Lane, Worker, contest  # noqa: E402
from scripts.bench.contestant import SHAKESPEARE_CHARS, Shapes, cores, cpu, device  # noqa: E402
from scripts.bench.table import paired, table  # noqa: E402
from train.config.load import load  # noqa: E402
from train.errors import UserError  # noqa: E402
from train.report.tables import markdown  # noqa: E402

DEFAULT_CONFIG = "configs/shakespeare_char_cpu.yaml"
REFERENCE = "project"
STRAIGHTFORWARD = "jax"
DEPTHS = (8, 96)
ANSWER_TIMEOUT_S = 600.0
# The architecture of all contestants but the project. A config that differs is still timed, with a note. The norm is
# not listed: the project's RMS norm is part of what it offers, the others have GPT-2's layer norm.
WRITTEN_FOR = {
    "model.residual.rule": "pre_ln",
    "model.mlp_ratio": 4,
    "model.activation": "gelu",
    "model.positions": "learned",
    "model.attention": "causal",
    "model.bias": False,
    "model.tied_head": True,
    "model.dropout": 0.0,
    "optimizer.name": "adamw",
    "optimizer.clip": 1.0,
    "optimizer.accumulate": 1,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 when no contestant ran, or 2 when the arguments fit none."""
    options = parse(argv)
    overrides = tuple(options.overrides)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    try:
        if options.scale:
            from scripts.bench.scale import BASE, SIZES, scaling

            axes = {axis: SIZES[axis] for axis in chosen(SIZES, options.only)}
            print(f"around {', '.join(f'{axis} {size}' for axis, size in BASE.items())}; {device('jax')}\n")
            print(markdown(*scaling(options.rounds, axes=axes)), *loaded(busy), sep="\n")
            return 0
        if options.rules:
            from scripts.bench.rules import NAMED, costs

            rows = costs(options.config, options.rounds, chosen(NAMED, options.only), overrides, options.vocab)
            print(markdown(*rows), f"\n{device('jax')}", *loaded(busy), sep="\n")
            return 0
        shapes, entries, notes = entries_of(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share the device's memory
    if options.cold:
        environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

    def start(entry: Entry) -> Here | Worker | ColdStart:
        if options.watch:
            return Here(entry)
        if options.cold:
            return ColdStart(lambda: Worker(entry, ANSWER_TIMEOUT_S, environment))
        return Worker(entry, ANSWER_TIMEOUT_S, environment)

    def progress(line: str) -> None:
        if sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)

    seconds = 0.0 if options.cold or options.depth else options.seconds
    lanes = contest(entries, start, options.rounds, seconds, 0.0 if options.watch or options.cold else 0.25, progress)
    devices = dict.fromkeys(lane.facts.device for lane in lanes if lane.facts)
    print("shapes: " + ", ".join(f"{name} {value}" for name, value in asdict(shapes).items()))
    print(f"device: {' / '.join(devices) or cpu()}")
    print(f"date: {datetime.date.today().isoformat()}, Python {platform.python_version()}")
    turns = f" of {seconds:g} s" if seconds else ""
    print(f"method: {options.rounds} rounds{turns}, all contestants in turn, medians; ratios within a round\n")
    print(markdown(*table(lanes, entries[0].name if options.depth else REFERENCE)))
    print(*target(lanes), *notes, *loaded(busy), sep="\n")
    return 0 if any(not lane.trouble for lane in lanes) else 1


def entries_of(options: argparse.Namespace) -> tuple[Shapes, list[Entry], list[str]]:
    """Returns the shapes of all programs, the rows that the options ask for, and notes. Raises UserError."""
    overrides = tuple(options.overrides)
    shapes, dtype, notes = read(Path(options.config), overrides, options.vocab)
    entries = roster(str(Path(options.config).resolve()), overrides, shapes, dtype, options.depth)
    names = chosen([entry.name for entry in entries], options.only)
    entries = [entry for entry in entries if entry.name in names]
    if options.watch or options.cold:  # the project's rows, or those of programs
        entries = [e for e in entries if e.name.startswith("project") or (options.cold and "shapes" in e.arguments)]
    return shapes, entries, notes


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="shapes and dtype (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="turns each contestant takes (default: 7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (default: 2)")
    parser.add_argument("--only", metavar="NAMES", help="starts of names: project, jax, flax, torch, peak; rules; axes")
    vocab = "size of the vocabulary of random tokens (default: %(default)s)"
    parser.add_argument("--vocab", type=int, metavar="N", default=SHAKESPEARE_CHARS, help=vocab)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config, as in `deltaflow train`")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--watch", action="store_true", help="the cost of watching: the project's rows in one process")
    mode.add_argument("--depth", action="store_true", help="compile time at 96 blocks over 8, of the project's step")
    mode.add_argument("--scale", action="store_true", help="step time over depth, width, context, batch, variants")
    mode.add_argument("--rules", action="store_true", help="cost of each residual rule in time, memory and FLOPs")
    mode.add_argument("--cold", action="store_true", help="seconds from process start to the end of the first dispatch")
    options = parser.parse_intermixed_args(argv)
    if options.rounds < 1 or not options.seconds > 0 or options.vocab < 2:
        parser.error("--rounds, --seconds: expected more than 0; --vocab: more than 1")
    if options.scale and options.overrides:
        parser.error(f"--scale has sizes of its own, not {options.overrides[0]}")
    return options


def read(path: Path, overrides: Sequence[str] = (), vocab: int = SHAKESPEARE_CHARS) -> tuple[Shapes, str, list[str]]:
    """Returns shapes, dtype and notes of a config's first variant. Raises ConfigError."""
    config = load(path, overrides).variants[0].config
    model, data = config.model, config.data
    shapes = Shapes(model.layers, model.heads, model.width, data.context, data.batch, vocab)
    notes = [
        f"{key} is {got!r} here; the other programs have {expected!r}"
        for key, expected in WRITTEN_FOR.items()
        if (got := attrgetter(key)(config)) != expected
    ]
    return shapes, config.train.dtype, notes


def roster(config: str, overrides: tuple[str, ...], shapes: Shapes, dtype: str, depth: bool = False) -> list[Entry]:
    """Returns all rows, or those of --depth."""
    program = {"shapes": shapes, "dtype": dtype}
    project = {"config": config, "overrides": overrides, **program}
    if depth:
        rows = [(f"depth_{n}", f"{n} blocks", "project", {**project, "layers": n}) for n in DEPTHS]
    else:
        rows = [
            ("project", "this project, watch off", "project", {**project, "watch_every": 0}),
            ("project_10", "this project, watch every 10", "project", {**project, "watch_every": 10}),
            ("project_1", "this project, watch every step", "project", {**project, "watch_every": 1}),
            ("jax", "plain JAX", "jax_plain", program),
            ("flax", "plain Flax NNX", "flax_plain", program),
            ("torch", "PyTorch, eager", "torch_gpt", {**program, "compile": False}),
            ("torch_compile", "PyTorch, torch.compile", "torch_gpt", {**program, "compile": True}),
        ]
        for dtype in ("float32", "bfloat16"):
            for framework, title in (("jax", "JAX"), ("torch", "PyTorch")):
                peak = {"framework": framework, "dtype": dtype}
                rows.append((f"peak_{framework}_{dtype}", f"matmul, {title}, {dtype}", "peak", peak))
    return [Entry(name, label, f"scripts.bench.{module}", arguments) for name, label, module, arguments in rows]


def chosen(names: Iterable[str], only: str | None) -> list[str]:
    """Returns the names that start with a word of --only. Raises UserError if a word starts none."""
    words, names = tuple((only or "").split(",")), list(names)
    if unknown := [word for word in words if not any(name.startswith(word) for name in names)]:
        raise UserError(f"--only {unknown[0]}: expected starts of {', '.join(names)}")
    return [name for name in names if name.startswith(words)]


def loaded(busy: float) -> list[str]:
    """Returns a line where other programs were running at the start."""
    return [f"loaded: a load average of {busy:.1f} on {cores()} cores at the start"] if busy >= cores() / 4 else []


def target(lanes: Sequence[Lane]) -> list[str]:
    """Returns a line with the project's step rate over the straightforward program's, if both ran."""
    running = {lane.entry.name: lane for lane in lanes if not lane.trouble}
    if REFERENCE not in running or STRAIGHTFORWARD not in running:
        return []
    ratio = paired(running[STRAIGHTFORWARD], running[REFERENCE])
    return [f"{ratio:.2f}x the step rate of the straightforward program ({running[STRAIGHTFORWARD].entry.label})"]


if __name__ == "__main__":
    sys.exit(main())
