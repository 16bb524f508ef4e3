"""One table: this project's training step beside PyTorch, Flax and plain JAX programs of the same shapes.

    python scripts/bench                                          # CPU or GPU, as JAX and PyTorch choose
    python scripts/bench --config configs/shakespeare_char.yaml
    python scripts/bench --shapes 4,4,128,64,12,65                # layers, heads, width, context, batch, vocab
    python scripts/bench --only jax,torch --rounds 3 --seconds 1  # a quick look
    python scripts/bench --watch --rounds 30 --seconds 1          # the cost of watching, in one process
    python scripts/bench --depth                                  # compile time at 96 blocks over 8
    python scripts/bench --cold                                   # process start to the end of the first window

PyTorch is optional: without it its rows are empty. Close other programs first; every figure is a median over rounds in
which all contestants take a turn, and ratios are taken within a round.
"""

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

if not __package__:  # started as a folder, which Python then puts first on its path; the package lies two above
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.bench.contest import ColdStart, Entry, Here, Lane, Worker, contest  # noqa: E402
from scripts.bench.contestant import Setting, Shapes, cores, cpu, read  # noqa: E402
from scripts.bench.table import paired, seconds_table, speed_table  # noqa: E402

DEFAULT_CONFIG = "configs/shakespeare_char_cpu.yaml"
REFERENCE = "project"
STRAIGHTFORWARD = "jax"
DEPTHS = (8, 96)
ANSWER_TIMEOUT_S = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 when no contestant ran, or 2 when the arguments fit none."""
    options = parse(argv)
    setting = setting_of(options)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share the device's memory
    if options.device == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if options.cold:
        environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

    def start(entry: Entry) -> Worker:
        return Worker(entry, ANSWER_TIMEOUT_S, environment)

    def progress(line: str) -> None:
        if sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)

    entries = roster("" if options.shapes else str(Path(options.config).resolve()), setting, options.depth)
    if options.only:
        names = [e.name for e in entries]
        entries = [e for e in entries if e.name.startswith(tuple(options.only.split(",")))]
        if not entries:
            print(f"--only {options.only}: expected starts of {', '.join(names)}", file=sys.stderr)
            return 2
    footer, seconds = [], options.seconds
    if options.depth:
        lanes = contest(entries, start, options.rounds, 0.0, say=progress)
        table = seconds_table(lanes, entries[0].name)
    elif options.cold:
        entries = [e for e in entries if "shapes" in e.arguments]
        lanes = contest(entries, lambda entry: ColdStart(lambda: start(entry)), options.rounds, 0.0, 0.0, progress)
        table = seconds_table(lanes, REFERENCE)
    elif options.watch:
        os.environ.update(environment)
        entries = [e for e in entries if e.name.startswith("project")]
        lanes = contest(entries, Here, options.rounds, seconds, pause=0.0, say=progress)
        table = speed_table(lanes, REFERENCE)
    else:
        lanes = contest(entries, start, options.rounds, seconds, say=progress)
        table, footer = speed_table(lanes, REFERENCE), target(lanes)
    devices = dict.fromkeys(lane.facts.device for lane in lanes if lane.facts)
    turns = "" if options.cold or options.depth else f" of {seconds:g} s"
    print("shapes: " + ", ".join(f"{name} {value}" for name, value in asdict(setting.shapes).items()))
    print(f"device: {' / '.join(devices) or cpu()}")
    print(f"date: {datetime.date.today().isoformat()}, Python {platform.python_version()}")
    print(f"method: {options.rounds} rounds{turns}, all contestants in turn, medians; ratios within a round")
    print("", table.text(), "", *footer, *setting.notes, sep="\n")
    if load >= cores() / 4:
        print(f"other programs were busy at the start (load average {load:.1f} on {cores()} cores)")
    return 0 if any(not lane.trouble for lane in lanes) else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="shapes and dtype (default: %(default)s)")
    parser.add_argument("--shapes", type=shapes, metavar="L,H,D,T,B,V", help="instead of a config, without the project")
    parser.add_argument("--rounds", type=int, default=7, help="turns each contestant takes (default: 7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (default: 2)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], help="default: the config's")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="cpu: leave the GPU alone")
    parser.add_argument("--only", metavar="NAMES", help="starts of names: project, jax, flax, torch, peak")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--watch", action="store_true", help="the cost of watching: the project's rows in one process")
    mode.add_argument("--depth", action="store_true", help="compile time at 96 blocks over 8, of the project's step")
    mode.add_argument("--cold", action="store_true", help="seconds from process start to the end of the first window")
    options = parser.parse_args(argv)
    if options.rounds < 1 or not options.seconds > 0:
        parser.error("--rounds and --seconds: expected more than 0")
    return options


def shapes(text: str) -> Shapes:
    """Parses layers, heads, width, context, batch, vocab."""
    try:
        return Shapes(*(int(part) for part in text.split(",")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"expected six sizes L,H,D,T,B,V, got {text!r}: {error}") from None


def setting_of(options: argparse.Namespace) -> Setting:
    """Returns the setting of --shapes, or else of the config. A config that cannot be read exits with status 2."""
    try:
        setting = read(Path(options.config)) if options.shapes is None else Setting(options.shapes, "auto", ())
    except (OSError, ValueError, ImportError) as error:
        print(f"{error} (--shapes L,H,D,T,B,V needs no config)", file=sys.stderr)
        sys.exit(2)
    return replace(setting, dtype=options.dtype) if options.dtype else setting


def roster(config: str, setting: Setting, depth: bool = False) -> list[Entry]:
    """Returns all rows, or those of --depth. Without a config (empty) the project's are not available."""
    program = {"shapes": asdict(setting.shapes), "dtype": setting.dtype}
    project = {"config": config, **program}
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


def target(lanes: Sequence[Lane]) -> list[str]:
    """Returns a line with the project's step rate over the straightforward program's, if both ran."""
    running = {lane.entry.name: lane for lane in lanes if not lane.trouble}
    if REFERENCE not in running or STRAIGHTFORWARD not in running:
        return []
    ratio = paired(running[STRAIGHTFORWARD], running[REFERENCE])
    return [f"{ratio:.2f}x the step rate of the straightforward program ({running[STRAIGHTFORWARD].entry.label})"]


if __name__ == "__main__":
    sys.exit(main())
