"""The run that the sweeps break: a tiny transformer, a save every other step, so that pruning is soon due.

All runs are made in this process by the command line's own function, with programs that are compiled once; pictures and
the report are left out.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from scripts.faults.injection import Call, Disk, Killed, injected
from scripts.faults.programs import shared
from scripts.faults.snapshot import Snapshot, compared, snapshot_of
from train.cli import main

STEPS, EVERY = 8, 2
CONFIG = f"""
name: tiny
model: {{layers: 1, width: 8, heads: 1, dropout: 0.1}}
data: {{path: corpus.txt, context: 8, batch: 4}}
optimizer: {{lr: 1e-2, min_lr: 1e-3, warmup: 3}}
train: {{steps: {STEPS}, eval_every: 4, eval_batches: 2, checkpoint_every: {EVERY}, steps_per_call: 2, unroll: 1}}
watch: {{every: 0}}
"""
VARIANTS = ("variants: {with: {}}\n", "variants: {with: {}, without: {model.residual: none}}\n")  # one, or two


@dataclass(frozen=True)
class Ended:
    """code: the exit code, -9 after a kill. output: of stdout and stderr."""

    code: int
    output: str


@dataclass(frozen=True)
class Bench:
    """A folder with the config, its corpus and what an unbroken run left; `calls`: those that the unbroken run made."""

    folder: Path
    whole: dict[str, Snapshot]
    calls: list[Call]

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def train(self, disk: Disk | None = None) -> Ended:
        """Starts, or goes on with, the run in `runs`."""
        return train(self.runs, disk)

    def again(self, least: int) -> list[str]:
        """Starts the run once more. Returns what is wrong with its end, or that it lost a save of step `least`."""
        ended = self.train()
        if ended.code:
            return [f"started again it ended with {ended.code}: {ended.output[-300:]}"]
        resumed = re.search(r"resuming at step (\d+)", ended.output)
        first = int(resumed[1]) if resumed else STEPS if "finished before" in ended.output else 0
        lost = [f"goes on from step {first}, and {least} had been saved"] if first < least else []
        return lost + compared(self.whole, self.runs / "tiny")

    def clear(self) -> None:
        shutil.rmtree(self.runs, ignore_errors=True)


def train(runs: Path, disk: Disk | None = None) -> Ended:
    """The training of tiny.yaml, in the current folder."""
    output = StringIO()
    with redirect_stdout(output), redirect_stderr(output), ExitStack() as stack:
        try:
            if disk is not None:
                stack.enter_context(injected(disk))
            code = main(["train", "tiny.yaml", f"runs_dir={runs}"])
        except Killed:
            code = -9
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException as error:  # a user would see a traceback
            code = f"a traceback: {error!r}"
    return Ended(code, output.getvalue())  # pyright: ignore[reportArgumentType]


@contextmanager
def bench(variants: int = 1) -> Iterator[Bench]:
    """A folder with one variant or two, which is the current one for the time of the `with`."""
    with TemporaryDirectory(prefix="deltaflow-faults-") as name, ExitStack() as stack:
        folder = Path(name).resolve()
        (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
        (folder / "tiny.yaml").write_text(CONFIG + VARIANTS[variants - 1], encoding="utf-8")
        stack.callback(os.chdir, Path.cwd())
        os.chdir(folder)
        stack.enter_context(shared())
        stack.enter_context(patch("train.run.summary.write_report", lambda *_: None))
        stack.enter_context(patch("train.run.metrics.RunMetrics.draw", lambda _: None))
        disk = Disk(str(folder / "runs"))
        ended = train(folder / "runs", disk)
        if ended.code:
            raise RuntimeError(f"the unbroken run ended with {ended.code}: {ended.output[-500:]}")
        whole = {run.name: snapshot_of(run) for run in (folder / "runs" / "tiny").iterdir() if run.is_dir()}
        shutil.rmtree(folder / "runs")
        yield Bench(folder, whole, disk.calls)


def saved(calls: list[Call], runs: Path, variants: int, synced: bool) -> int:
    """Returns the newest step that every variant has saved: the file had its name, and if `synced` its folder was
    synced after that."""
    steps: dict[str, list[int]] = {}
    named: dict[str, int] = {}
    for call in calls:
        if call.operation == "rename" and (match := re.search(r"/(\d{8})\.safetensors$", call.other)):
            named[os.path.dirname(call.other)] = int(match[1])
        if call.path in named and (synced and call.operation == "fsync"):
            steps.setdefault(call.path, []).append(named[call.path])
    newest = {folder: max(found) for folder, found in steps.items()} if synced else named
    return min(newest.values()) if len(newest) == variants else 0
