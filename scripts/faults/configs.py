"""Configs that were damaged, or crafted to break their reader, through the validator and the whole command line.

A trial loads a file in this process. It holds if the result is an experiment, which then goes to YAML and back
unchanged, or a ConfigError whose every line can be printed, within LIMIT_S seconds of processor time. Any other
exception would be a traceback for a user. Nothing is trained.
"""

import contextlib
import io
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scripts.faults.hostile import crafted, mutate, override
from scripts.faults.sweep import Broken, Sweep
from train.cli import main
from train.config.load import MAX_LINES, ConfigError, Experiment, load, to_yaml
from train.config.schema import RunConfig

LIMIT_S = 1.0
PROMISE = f"one line for each problem or a config that can be used, no traceback, under {LIMIT_S:g} s"
ORIGINALS = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))]


def sweeps(seed: int) -> Iterator[Sweep]:
    files = crafted()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        yield Sweep(
            "a config file was damaged", PROMISE, range(10_000), lambda trial: check_load(path, *case(seed, trial))
        )
        crafts = list(files)
        yield Sweep(
            "a config file was crafted to break its reader", PROMISE, crafts, lambda n: check_load(path, files[n])
        )
        trials = range(10_000, 10_100)
        yield Sweep(
            "the same, through the command line", PROMISE, trials, lambda n: check_command(path, *case(seed, n))
        )


def case(seed: int, trial: int) -> tuple[bytes, list[str]]:
    """A config of configs/, damaged one to five times, and overrides: the same ones for the same seed and number."""
    draw = random.Random(f"{seed} {trial}")
    content = draw.choice(ORIGINALS)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 5))):
        content = mutate(draw, content)
    return content, [override(draw) for _ in range(draw.choice((0, 0, 1, 3)))]


def check_load(
    path: Path,
    content: bytes,
    overrides: Sequence[str] = (),
    *,
    load: Callable[..., Experiment] = load,
    to_yaml: Callable[[RunConfig], str] = to_yaml,
    limit_s: float = LIMIT_S,
) -> tuple[str, float]:
    """Loads `content`. Returns a label and the seconds of processor time. Raises Broken, or what the loader raised."""
    path.write_bytes(content)
    began, variants, lines = time.process_time(), (), ["-"]
    try:
        variants = load(path, overrides).variants
    except ConfigError as error:
        lines = str(error).splitlines()
    seconds = time.process_time() - began
    if not 0 < len(lines) <= MAX_LINES + 1 or any(re.search(r"[\x00-\x1f\x7f-\x9f]", line) for line in lines):
        raise Broken(f"printed {lines!r}")
    if seconds > limit_s:
        raise Broken(f"took {seconds:.2f} s")
    for variant in variants[:3]:  # as they go into a run directory
        path.write_text(to_yaml(variant.config), encoding="utf-8")
        if load(path).variants[0].config != variant.config:
            raise Broken(f"variant {variant.name} reads back as another config")
    return "of use" if variants else "refused", seconds


def check_command(
    path: Path, content: bytes, overrides: Sequence[str] = (), main: Callable[[list[str]], int] = main
) -> tuple[str, float]:
    """Gives a config that is refused to the command line; one that is not would be trained."""
    label, _ = check_load(path, content, overrides)
    if label == "refused":
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(["train", str(path), *overrides])
            except SystemExit as error:  # argparse
                code = error.code
        if (
            code != 2
            or not err.getvalue().startswith(("deltaflow: ", "usage: deltaflow"))
            or "Traceback" in err.getvalue()
        ):
            raise Broken(f"exit code {code}, {err.getvalue()[:100]!r}")
    return label, 0.0
