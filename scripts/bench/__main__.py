"""One table: this project's training step beside PyTorch, Flax and plain JAX programs of the same shapes.

    python scripts/bench                                          # CPU or GPU, whichever JAX and PyTorch find
    python scripts/bench --config configs/shakespeare_char.yaml --markdown docs/speed.md
    python scripts/bench --shapes 4,4,128,64,12,65                # layers, heads, width, context, batch, vocab
    python scripts/bench --only jax,torch --rounds 3 --seconds 1  # a quick look
    python scripts/bench --watch --rounds 30 --seconds 1          # what watching costs, in one process
    python scripts/bench --depth                                  # compile time at 96 blocks over 8
    python scripts/bench --cold                                   # process start to the end of the first window

PyTorch is optional: without it its rows say so. Close other programs first; every figure is a median over rounds in
which all contestants take a turn, and ratios are taken within a round.
"""

import argparse
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

if not __package__:  # started as a folder, which Python then puts first on its path; the package lies two above
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.bench import depth, machine  # noqa: E402
from scripts.bench.contest import Entry, Here, Lane, Worker, cold_starts, contest  # noqa: E402
from scripts.bench.shapes import Setting, Shapes, read  # noqa: E402
from scripts.bench.table import Table, paired, seconds_table, speed_table  # noqa: E402

DEFAULT_CONFIG = "configs/shakespeare_char_cpu.yaml"
REFERENCE = "project"
STRAIGHTFORWARD = "jax"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 when no contestant ran, or 2 when the arguments fit none."""
    options = parse(argv)
    setting = setting_of(options)
    busy = others_busy()
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share the device's memory
    if options.device == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if options.cold:
        environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

    def start(entry: Entry) -> Worker:
        return Worker(entry, options.timeout, environment)

    say = print_progress if sys.stderr.isatty() or options.verbose else lambda line: None
    config = "" if options.shapes else str(Path(options.config).resolve())
    entries = roster(config, setting)
    if options.only:
        names = [e.name for e in entries]
        entries = [e for e in entries if e.name.startswith(tuple(options.only.split(",")))]
        if not entries:
            print(f"--only {options.only}: expected starts of {', '.join(names)}", file=sys.stderr)
            return 2
    if options.depth:
        lanes = contest(depths(config, setting), start, options.rounds, 0.0, say=say)
        table, footer = seconds_table(lanes, f"depth_{depth.DEPTHS[0]}"), list[str]()
    elif options.cold:
        lanes = cold_starts([e for e in entries if "shapes" in e.arguments], start, options.rounds, say)
        table, footer = seconds_table(lanes, REFERENCE), list[str]()
    elif options.watch:
        os.environ.update(environment)
        own = [e for e in entries if e.name.startswith("project")]
        lanes = contest(own, Here, options.rounds, options.seconds, pause=0.0, say=say)
        table, footer = speed_table(lanes, REFERENCE), list[str]()
    else:
        lanes = contest(entries, start, options.rounds, options.seconds, say=say)
        table, footer = speed_table(lanes, REFERENCE), target(lanes)
    footer += [*setting.notes, *busy]
    lines = heading(lanes, setting, options)
    print("\n".join([*lines, "", table.text(), "", *footer]))
    if options.markdown:
        write_markdown(Path(options.markdown), lines, table, footer, sys.argv[1:] if argv is None else argv)
    return 0 if any(not lane.trouble for lane in lanes) else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="shapes and dtype (default: %(default)s)")
    parser.add_argument("--shapes", type=shapes, metavar="L,H,D,T,B,V", help="instead of a config, without the project")
    parser.add_argument("--rounds", type=positive(int), default=7, help="turns each contestant takes (default: 7)")
    parser.add_argument("--seconds", type=positive(float), default=2.0, help="of a turn (default: 2)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], help="default: the config's")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="cpu: leave the GPU alone")
    parser.add_argument("--only", metavar="NAMES", help="starts of names: project, jax, flax, torch, peak")
    parser.add_argument("--timeout", type=positive(float), default=600.0, help="seconds to wait for an answer")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there too")
    parser.add_argument("--verbose", action="store_true", help="progress on stderr even when it is no terminal")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="what watching costs: the project's rows in one process")
    what.add_argument("--depth", action="store_true", help="compile time at 96 blocks over 8, of the project's step")
    what.add_argument("--cold", action="store_true", help="seconds from process start to the end of the first window")
    return parser.parse_args(argv)


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
        return value

    parsed.__name__ = kind.__name__
    return parsed


def shapes(text: str) -> Shapes:
    """layers, heads, width, context, batch, vocab."""
    try:
        return Shapes(*(int(part) for part in text.split(",")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"expected six sizes L,H,D,T,B,V, got {text!r}: {error}") from None


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def setting_of(options: argparse.Namespace) -> Setting:
    """From --shapes, or else from the config file. A config that cannot be read ends the program with status 2."""
    if options.shapes is not None:
        setting = Setting(options.shapes, "auto", ())
    else:
        try:
            setting = read(Path(options.config))
        except (OSError, ValueError, ImportError) as error:
            print(f"{error} (--shapes L,H,D,T,B,V needs no config)", file=sys.stderr)
            sys.exit(2)
    return replace(setting, dtype=options.dtype) if options.dtype else setting


def roster(config: str, setting: Setting) -> list[Entry]:
    """All rows. `config` is empty where there is none, and the project's rows then say so."""
    program = {"shapes": asdict(setting.shapes), "dtype": setting.dtype}
    watched = {"config": config, **program}
    return [
        entry("project", "this project, watch off", "project", {**watched, "watch_every": 0}),
        entry("project_10", "this project, watch every 10", "project", {**watched, "watch_every": 10}),
        entry("project_1", "this project, watch every step", "project", {**watched, "watch_every": 1}),
        entry("jax", "plain JAX", "jax_plain", program),
        entry("flax", "plain Flax NNX", "flax_plain", program),
        entry("torch", "PyTorch, eager", "torch_gpt", {**program, "compile": False}),
        entry("torch_compile", "PyTorch, torch.compile", "torch_gpt", {**program, "compile": True}),
        *(
            entry(
                f"peak_{framework}_{dtype}",
                f"matmul, {name}, {dtype}",
                "peak",
                {"framework": framework, "dtype": dtype},
            )
            for dtype in ("float32", "bfloat16")
            for framework, name in (("jax", "JAX"), ("torch", "PyTorch"))
        ),
    ]


def depths(config: str, setting: Setting) -> list[Entry]:
    return [
        entry(f"depth_{n}", f"{n} blocks", "depth", {"config": config, "layers": n, "dtype": setting.dtype})
        for n in depth.DEPTHS
    ]


def entry(name: str, label: str, module: str, arguments: dict[str, object]) -> Entry:
    return Entry(name, label, f"scripts.bench.{module}", arguments)


def target(lanes: Sequence[Lane]) -> list[str]:
    """The project's step rate over the straightforward program's, where both ran."""
    running = {lane.entry.name: lane for lane in lanes if not lane.trouble}
    if REFERENCE not in running or STRAIGHTFORWARD not in running:
        return []
    ratio = paired(running[STRAIGHTFORWARD], running[REFERENCE])
    return [f"{ratio:.2f}x the step rate of the straightforward program ({running[STRAIGHTFORWARD].entry.label})"]


def heading(lanes: Sequence[Lane], setting: Setting, options: argparse.Namespace) -> list[str]:
    """Where, when and what was measured, a line each."""
    devices = dict.fromkeys(lane.facts.device for lane in lanes if lane.facts)
    shapes = ", ".join(f"{name} {value}" for name, value in asdict(setting.shapes).items())
    turns = "" if options.cold or options.depth else f" of {options.seconds:g} s"
    return [
        f"shapes: {shapes}",
        f"device: {' / '.join(devices) or machine.cpu()}",
        f"date: {datetime.date.today().isoformat()}, Python {platform.python_version()}",
        f"method: {options.rounds} rounds{turns}, all contestants in turn, medians; ratios within a round",
    ]


def others_busy() -> list[str]:
    """A warning where other programs were at work when the contest began."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < machine.cores() / 4:
        return []
    return [f"other programs were busy at the start (load average {load:.1f} on {machine.cores()} cores)"]


def write_markdown(path: Path, lines: Sequence[str], table: Table, footer: Sequence[str], argv: Sequence[str]) -> None:
    command = shlex.join(["python", "scripts/bench", *argv])
    text = [f"`{command}`", "", *(f"- {line}" for line in lines), "", table.markdown(), ""]
    text += [line for note in footer for line in (note, "")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
