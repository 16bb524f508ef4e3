"""The run that the sweeps break: a tiny transformer, a save every other step, so that pruning is soon due.

All runs are made in this process by the command line's own function, with programs that are compiled once.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import jax

from scripts.faults.injection import Call, Disk, Killed, injected
from scripts.faults.programs import drawing, shared
from scripts.faults.sweep import Broken
from train.cli import main
from train.run.transfer import open_pretrained

STEPS = 8
CONFIG = f"""
name: tiny
model: {{layers: 1, width: 8, heads: 1, dropout: 0.1}}
data: {{path: corpus.txt, context: 8, batch: 4}}
optimizer: {{lr: 1e-2, min_lr: 1e-3, warmup: 3}}
train: {{steps: {STEPS}, eval_every: 4, eval_batches: 2, checkpoint_every: 2, steps_per_call: 2, unroll: 1}}
watch: {{every: 0}}
variants: {{with: {{}}}}
"""
TWO = ("variants.without={model.residual: none}",)
CLOCK = (
    "perf/",
    "compile_s",
    "seconds_to_first_step",
    "steps_per_s",
    "tokens_per_s",
    "wall_s",
    "peak_bytes",
    "mfu",
    "ended",
    "command",
)


@dataclass(frozen=True)
class Bench:
    """A folder with the config and its corpus, the overrides of the run, and what it left unbroken.

    calls: those that the unbroken run made. whole: the snapshot of each variant.
    """

    folder: Path
    overrides: tuple[str, ...]
    calls: list[Call]
    whole: dict[str, dict[str, str]]

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def train(self, disk: Disk | None = None, report: bool = False) -> tuple[int | str, str]:
        """Starts, or goes on with, the run in `runs`. Returns the exit code, -9 after a kill, and what was printed.

        Pictures and, but for `report`, the report are left out.
        """
        output = StringIO()
        with redirect_stdout(output), redirect_stderr(output), ExitStack() as stack:
            # A signal inside a trace may leave it open in this process, for the runs that follow.
            stack.enter_context(jax.core.eval_context())  # pyright: ignore[reportAttributeAccessIssue]
            stack.enter_context(drawing(report))
            try:
                if disk is not None:
                    stack.enter_context(injected(disk))
                code = main(["train", "tiny.yaml", f"runs_dir={self.runs}", *self.overrides])
            except Killed:
                code = -9
            except BaseException as error:  # a user would see a traceback
                code = f"a traceback: {error!r}"
        return code, output.getvalue()

    def again(self, least: int = 0) -> None:
        """Starts the run once more. Raises Broken if it ends otherwise than unbroken or lost a save of step `least`."""
        code, output = self.train()
        if code:
            raise Broken(f"started again it ended with {code}: {output[-300:]}")
        resumed = re.search(r"resuming at step (\d+)", output)
        first = int(resumed[1]) if resumed else STEPS if "finished before" in output else 0
        if first < least:
            raise Broken(f"goes on from step {first}, and {least} had been saved")
        if different := differing(self.whole, self.runs):
            raise Broken("; ".join(different))

    def clear(self) -> None:
        shutil.rmtree(self.runs, ignore_errors=True)


@contextmanager
def bench(*overrides: str) -> Iterator[Bench]:
    """A folder for the run with these overrides, which is the current one for the time of the `with`."""
    with TemporaryDirectory(prefix="deltaflow-faults-") as name, ExitStack() as stack:
        folder = Path(name).resolve()
        prepare(folder)
        stack.callback(os.chdir, Path.cwd())
        os.chdir(folder)
        stack.enter_context(shared({}))
        tiny = Bench(folder, overrides, [], {})
        code, output = tiny.train(Disk(str(tiny.runs), calls=tiny.calls))
        if code:
            raise RuntimeError(f"the unbroken run ended with {code}: {output[-500:]}")
        tiny.whole.update(snapshots(tiny.runs))
        tiny.clear()
        yield tiny


def prepare(folder: Path) -> None:
    """Writes the config and its corpus."""
    (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    (folder / "tiny.yaml").write_text(CONFIG, encoding="utf-8")


# Snapshots of finished runs: whatever a run left, each thing under its name and as text, without what a clock decides.


def snapshots(runs: Path) -> dict[str, dict[str, str]]:
    """The snapshot of each variant in `runs`. Raises UserError, OSError or ValueError for what cannot be read."""
    return {path.parent.name: _snapshot(path.parent) for path in sorted(runs.glob("*/*/metrics.jsonl"))}


def differing(whole: dict[str, dict[str, str]], runs: Path) -> list[str]:
    """Returns the differences between `runs` and the unbroken run. NaN equals NaN."""
    try:
        others = snapshots(runs)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return [
        f"{variant}: {name}: {expected.get(name)} and not {others.get(variant, {}).get(name)}"
        for variant, expected in whole.items()
        for name in sorted({*expected, *others.get(variant, {})})
        if expected.get(name) != others.get(variant, {}).get(name)
    ]


def _snapshot(run: Path) -> dict[str, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every restart that it sees
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    saved = open_pretrained(run)
    values: dict[str, object] = {"step": saved.step}
    for path, leaf in saved.params.items():
        values[f"parameter {path}"] = f"{leaf.dtype} {leaf.shape} {hashlib.sha256(leaf.tobytes()).hexdigest()}"
    for number, line in enumerate((run / "metrics.jsonl").read_bytes().decode("utf-8").splitlines(), 1):
        values[f"line {number} of metrics.jsonl"] = _timeless(json.loads(line))
    for name, value in _timeless(json.loads((run / "summary.json").read_text(encoding="utf-8"))).items():
        values[f"summary.json, {name}"] = value
    for tag in [tag for tag in events.Tags()["scalars"] if not tag.startswith(CLOCK)]:
        values[f"TensorBoard's {tag}"] = [(event.step, event.value) for event in events.Scalars(tag)]
    return {name: json.dumps(value) for name, value in values.items()}


def _timeless(values: dict) -> dict:
    return {key: value for key, value in values.items() if not key.startswith(CLOCK)}
