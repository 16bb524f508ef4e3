"""Run directories: trained and stopped on purpose, read back, or written by hand for what reads them."""

import io
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.faults.injection import Killed
from train.config.load import load
from train.device.programs import Programs
from train.device.signals import Stop
from train.log.console import Console
from train.report.comparison import compare
from train.report.groups import Group
from train.run.experiment import Outcome, prepared, train
from train.run.loop import GroupRun
from train.run.setup import GroupSetup
from train.store.checkpoint import Checkpoints

# The corpus, and the config tiny.yaml, of the run that tests/run/conftest.py trains.
TEXT = "the quick brown fox jumps over the lazy dog. "
CONFIG = """
name: tiny
model: {layers: 1, width: 8, heads: 1, dropout: 0.1}
data: {path: corpus.txt, context: 8, batch: 4}
optimizer: {lr: 1e-2, min_lr: 1e-3, warmup: 2}
train: {steps: 12, eval_every: 4, eval_batches: 1, checkpoint_every: 4, steps_per_call: 4, unroll: 1}
watch: {every: 4, counterfactual: false}
"""
# Of tests in this process, which goes on: cut short are files, half an event loop, coroutines that are never awaited.
SIGNALLED = [
    pytest.mark.usefixtures("handlers"),
    *(
        pytest.mark.filterwarnings(f"ignore:{each}")
        for each in (
            ":ResourceWarning",
            "coroutine .* was never awaited:RuntimeWarning",
            "Exception ignored in. <(function BaseEventLoop.__del__|coroutine):pytest.PytestUnraisableExceptionWarning",
        )
    ),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class At(Console):
    """A console that calls `action` once, when the progress of a variant has come to `step`."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        super().__init__()
        self.step, self.action = step, action

    def progress(self, variant, step, *rest, **more) -> None:
        super().progress(variant, step, *rest, **more)
        if step >= self.step:
            self.step, action = 10**9, self.action
            action()


def train_until(step: int, config: Path | str, *keys: str, action: Callable[[Stop], object]) -> Outcome:
    """Trains a config file in this process; `action` is called with its Stop when a variant has come to `step`."""
    stop = Stop()
    return train(load(config, list(keys)), At(step, lambda: action(stop)), stop)


def killed_at(step: int, config: Path | str, *keys: str) -> None:
    """Trains a config file until a variant has come to `step`, and ends there as by kill -9."""

    def kill(stop: Stop) -> None:
        raise Killed

    with pytest.raises(Killed):
        train_until(step, config, *keys, action=kill)


class NotedPrograms(Programs):
    """Programs that note their calls in `events`: the method's name, and of how many variants."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events: list[tuple[str, int]] = []

    def noted(self, name: str, states: list) -> None:
        self.events.append((name, sum(state is not None for state in states)))

    def dispatch(self, states: list, batches: list, watched: bool) -> tuple[list, list]:
        self.noted("dispatch", states)
        return super().dispatch(states, batches, watched)

    def evaluate(self, states: list, *arguments, **more) -> list:
        self.noted("evaluate", states)
        return super().evaluate(states, *arguments, **more)

    def instrument(self, name: str, states: list, batches: list) -> list:
        self.noted("instrument", states)
        return super().instrument(name, states, batches)


def group_runs(config: Path | str, *keys: str, programs: type[Programs] = Programs) -> Iterator[GroupRun]:
    """The run of each group of a config file, in this process, with programs of that class."""
    _, platform, groups = prepared(load(config, list(keys)), Console(), Stop())
    for source, group in groups:
        setup = GroupSetup(group, source, platform, Console())
        setup.programs = programs(group, None if source.resident is None else np.asarray(source.resident[0]))
        yield GroupRun(setup, Stop())


def kill(number: int = signal.SIGTERM) -> None:
    """Sends a signal to this process; its handler runs before this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def rows(run: Path) -> dict[int, dict]:
    """metrics.jsonl by step, without what depends on the clock. Each step has one row, and they come in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line.pop("step") for line in lines]
    assert steps == sorted(set(steps))
    timeless = [{tag: x for tag, x in line.items() if not tag.startswith("perf/")} for line in lines]
    return dict(zip(steps, timeless, strict=True))


def bytes_needed(out: str) -> float:
    """The memory that a training announces, in bytes."""
    ((number, unit),) = re.findall(r"\n  memory +estimated ([\d.]+) ([kM])B", out)
    return float(number) * {"k": 1e3, "M": 1e6}[unit]


def arrays(run: Path, step: int | None = None) -> dict[str, tuple]:
    """All arrays of a checkpoint, by default of the newest, in a form that `==` compares bit for bit."""
    checkpoints = Checkpoints(run)
    saved = checkpoints.arrays(checkpoints.only_newest() if step is None else step)
    return {path: (array.dtype.name, array.shape, array.tobytes()) for path, array in saved.items()}


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[Path, bytes]:
    """The bytes of every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def cut_back(run: Path, step: int = 8) -> None:
    """As after a kill behind `step`: the log holds more than the checkpoint knows."""
    (run / "summary.json").unlink()
    for newer in [there for there in Checkpoints(run).steps() if there > step]:
        Checkpoints(run).path(newer).unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "loss/tr')


def same(run: Path, whole: Path) -> bool:
    """Returns True for equal figures, parameters and rows of a run and of its original in another current folder."""
    ends = [{key: summary(each)[key] for key in ("steps", "loss_val", "verdict")} for each in (run, whole / run)]
    return ends[0] == ends[1] and arrays(run) == arrays(whole / run) and rows(run) == rows(whole / run)


def damage(run: Path, step: int) -> None:
    """Flips a bit in the middle of a checkpoint."""
    flip(Checkpoints(run).path(step), 4 * Checkpoints(run).path(step).stat().st_size)


def flip(path: Path, bit: int = 5) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def write_run(
    root: Path, name: str, seed: int = 0, *, loss: float = 2.0, slope: float = 0.0, done: bool = True, **config
) -> Path:
    """A run of 100 steps, watched every 10: |δ| falls by 10^slope from the loss down to the embedding, over 4 blocks.

    `config`: keys of model, such as `residual`. Without `done` it stands at step 50 and has no summary.
    """
    folder = root / name
    folder.mkdir(parents=True)
    lines = [f"name: {root.name}", f"seed: {seed}", f"runs_dir: {root.parent}", "model:"]
    lines += [f"  {key}: {value}" for key, value in ({"layers": 4} | config).items()]
    lines += ["data:", "  kind: text", f"  seed: {seed}", "train:", "  steps: 100"]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = []
    for step in range(0, 101 if done else 51, 10):
        row: dict = {"step": step}
        if step:
            row |= {"loss/train": loss + 3 * np.exp(-step / 20), "perf/steps_per_s": 10.0}
        if step % 50 == 0:
            row |= {"loss/val": loss + 0.1 + 3 * np.exp(-step / 20), "accuracy/val": 0.25}
        if step < 100:
            for depth in range(5):
                row[f"delta/norm_log10/layer_{depth:03d}"] = -1.0 + slope * (1 - depth / 4) * (1 + step / 100)
                row[f"delta_without/norm_log10/layer_{depth:03d}"] = -1.0 - 3 * (1 - depth / 4)
            row |= {f"update/ratio_log10/layer_{block:03d}": -3.0 + block / 10 for block in range(4)}
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if done:
        summary = {
            **{"variant": name, "task": "lm", "steps": 100, "steps_per_s": 10.0, "exit_reason": "done"},
            **{"platform": "cpu, 2 cores", "versions": {"jax": "0.0"}},
            "verdict": {"state": "healthy", "why": f"because of {name}"},
        }
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def write_sweep(root: Path) -> Path:
    """Three seeds of two variants, their losses 2, 2.1, 2.2 and 3, 3.2, 3.4."""
    for seed in range(3):
        write_run(root, f"with,seed={seed}", seed, loss=2 + seed / 10, residual="pre_ln", slope=0.1 * seed)
        write_run(root, f"without,seed={seed}", seed, loss=3 + seed / 5, residual="none", slope=-4.0)
    return root


def groups_of(*folders: Path) -> list[Group]:
    """The groups of a report on run directories and experiments."""
    return compare(folders).groups


def events_of(directory: Path) -> EventAccumulator:
    """Returns all that TensorBoard reads of a run."""
    events = EventAccumulator(str(directory), {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0})
    return events.Reload()
