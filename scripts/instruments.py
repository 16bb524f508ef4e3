"""The two tables of docs/instruments.md: the measurements of the instruments, and their costs.

python scripts/instruments.py [CONFIG] [key=value ...]
python scripts/instruments.py --page docs/instruments.md

The first prints the costs: it runs each instrument and a dispatch of ten plain steps in turn, several times, and gives
the ratio of the medians, and the seconds of CPU that its program takes to compile. The second writes the table
of measurements, from the declarations (train/config/instruments/), into the page.
"""

import argparse
import re
import resource
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from train.config.instruments import INSTRUMENTS
from train.config.load import load
from train.core.dispatch import run_dispatch
from train.core.state import initial_state
from train.device import platform as platforms
from train.device.programs import compiled, grouped
from train.instruments.snapshot import read
from train.report.tables import markdown
from train.run.experiment import build_group, data_key, open_all
from train.text import number

ROUNDS, STEPS = 5, 10
HEAD = "| instrument | tags | meaning | source |\n|---|---|---|---|\n"


def measured() -> str:
    """The table of what the instruments measure."""
    rows = []
    for name, instrument in INSTRUMENTS.items():
        for index, tags in enumerate(instrument.tags):
            names = ", ".join(f"`{tag}`" for tag in tags.names)
            meaning = tags.meaning.replace("|", "\\|")
            rows.append(f"| {'' if index else name} | {names} | {meaning} | {tags.source} |".replace("  ", " "))
    return HEAD + "\n".join(rows) + "\n"


def write(page: Path) -> None:
    """Puts the table of what the instruments measure into the page, in place of the one there."""
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(rf"{re.escape(HEAD)}(\|.*\n)+", lambda _: measured(), text), encoding="utf-8")


def main(path: str, overrides: list[str]) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    experiment = load(path, overrides)
    sources, platform = open_all(experiment.variants), platforms.select(experiment.variants[0].config.train)
    members = grouped(experiment.variants)[0]
    source = sources[data_key(members[0].config)]
    group = build_group(members[:1], source.spec, platform)
    hp, data = group.hparams[0], group.config.data
    state = compiled(partial(initial_state, group.network, group.config), (hp,))(hp)
    corpus = None if source.resident is None else jnp.asarray(source.resident[0])

    def program(function, batches: int):
        arguments = (state, hp, corpus, source.train_batches(data.batch, data.seed or 0, 0, batches))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        made = compiled(function, arguments)
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
        jax.block_until_ready(made(*arguments))
        return lambda: jax.block_until_ready(made(*arguments)), seconds

    dispatch, _ = program(partial(run_dispatch, group.network, group.config, 0), STEPS)
    rows = []
    for name, instrument in INSTRUMENTS.items():
        if not instrument.applies(group.config):
            continue
        run, seconds = program(partial(read, name, group.network, group.config), instrument.batches(group.config.watch))
        pairs = [(_timed(run), _timed(dispatch) / STEPS) for _ in range(ROUNDS)]
        measured, step = (statistics.median(values) for values in zip(*pairs, strict=True))
        rows.append(
            [name, number(measured / step, digits=2), number(1e3 * measured, digits=2), number(seconds, digits=2)]
        )
    print(f"{experiment.name}, variant {members[0].name}; {platform.label}; {platforms.versions()}\n")
    print(markdown(["instrument", "steps", "ms", "compile, CPU s"], rows), end="")


def _timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--page", type=Path, help="rewrite the table of this page instead of measuring")
    parsed = parser.parse_args()
    if parsed.page:
        write(parsed.page)
    else:
        main(parsed.config, parsed.overrides)
