"""The run that sweeps break: one variant or two of one shape, a save every other step, so that pruning is soon due."""

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from scripts.torture.left import Left, compared, left_in
from scripts.torture.shim import Action, Call, Fault, calls
from scripts.torture.stage import Ended, Stage

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
class Part:
    """A stretch of the run whose every call is a place to break it: `before` is the runs folder that it starts from
    (None: it starts from nothing), `calls` are its calls in the folder `runs`, in order, when nothing breaks."""

    before: Path | None
    runs: Path
    calls: list[Call]

    @property
    def step(self) -> int:
        """Of the newest save that it starts from."""
        return 0 if self.before is None else STEPS - EVERY


@dataclass(frozen=True)
class Bench:
    """A folder with the config, its corpus and what an unbroken run left.

    `parts`: from nothing to the first save of every variant; and from three saves on, over the fourth, which prunes
    the first, to the end.
    """

    folder: Path
    stage: Stage
    whole: dict[str, Left]
    parts: tuple[Part, Part]

    def train(self, runs: Path, fault: Fault | None = None, seconds: float = 60.0) -> Ended:
        """Starts, or goes on with, the run in `runs`."""
        return self.stage.run(arguments(runs), self.folder, fault, seconds)

    @contextmanager
    def copy(self, part: Part) -> Iterator[Path]:
        """The runs folder as `part` finds it, for one trial."""
        runs = self.folder / "runs"
        if part.before is None:
            runs.mkdir()
        else:
            shutil.copytree(part.before, runs, symlinks=True)
        try:
            yield runs
        finally:
            shutil.rmtree(runs)

    def again(self, runs: Path, least: int) -> list[str]:
        """Starts the run in `runs` once more; what is wrong with its end, or that it lost a save of step `least`."""
        ended = self.train(runs)
        if ended.code:
            return [f"started again it ended with {ended.code}: {ended.last}"]
        resumed = re.search(r"resuming at step (\d+)", ended.output)
        first = int(resumed[1]) if resumed else STEPS if "finished before" in ended.output else 0
        lost = [f"goes on from step {first}, and {least} had been saved"] if first < least else []
        return lost + compared(self.whole, runs / "tiny")


def arguments(runs: Path) -> list[str]:
    return ["train", "tiny.yaml", f"runs_dir={runs}"]


@contextmanager
def bench(variants: int) -> Iterator[Bench]:
    """With one variant, or two. Raises Unavailable where the shim cannot be built."""
    with TemporaryDirectory(prefix="deltaflow-torture-") as name:
        folder = Path(name).resolve()
        (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
        (folder / "tiny.yaml").write_text(CONFIG + VARIANTS[variants - 1], encoding="utf-8")
        with Stage(folder / "programs") as stage:
            first = stage.run(arguments(folder / "compiled"), folder, seconds=300)
            if first.code:
                raise RuntimeError(f"the unbroken run ended with {first.code}: {first.output[-500:]}")
            whole = _noted(stage, folder, "whole")
            before = _before_the_last_save(stage, folder, _first(whole, STEPS))
            shutil.copytree(before, folder / "rest")
            rest = _noted(stage, folder, "rest")
            start = whole[: _first(whole, 2 * EVERY) - 1]
            parts = (Part(None, folder / "whole", start), Part(before, folder / "rest", rest))
            yield Bench(folder, stage, lefts(folder / "whole"), parts)


def _before_the_last_save(stage: Stage, folder: Path, near: int) -> Path:
    """A run that was killed when all but the last of its saves were done; near that call of it."""
    runs, log = folder / "before", folder / "before.log"
    for at in range(near, near + 50):  # the threads that write do not always take their turns alike
        runs.mkdir()
        stage.run(arguments(runs), folder, Fault(str(runs), at, Action.BEFORE, log=str(log)))
        noted = calls(log)
        log.unlink()
        if saved(noted, runs) == STEPS - EVERY and f"{STEPS:08d}" in noted[-1].path:
            return runs
        shutil.rmtree(runs)
    raise RuntimeError("no run could be stopped before its last save")


def _noted(stage: Stage, folder: Path, runs: str) -> list[Call]:
    """The calls of a run that nothing breaks."""
    (folder / runs).mkdir(exist_ok=True)
    log = folder / f"{runs}.log"
    ended = stage.run(arguments(folder / runs), folder, Fault(str(folder / runs), log=str(log)))
    if ended.code:
        raise RuntimeError(f"the unbroken run ended with {ended.code}: {ended.output[-500:]}")
    return calls(log)


def _first(noted: list[Call], step: int) -> int:
    """The number of the first call that has to do with the checkpoint of `step`."""
    return next(call.number for call in noted if f"{step:08d}" in call.path)


def lefts(runs: Path) -> dict[str, Left]:
    return {folder.name: left_in(folder) for folder in variants_in(runs)}


def variants_in(runs: Path) -> list[Path]:
    return sorted(folder for folder in runs.glob("tiny/*") if folder.is_dir())


def saved(noted: Sequence[Call], runs: Path, least: int = 0) -> int:
    """The newest step that every variant has saved: its folder was given its name, and the run went on after that.
    `least`: what had been saved before."""
    newest = []
    for variant in variants_in(runs):
        folder, renamed, steps = f"{variant}/ckpt", 0, [least]
        for call in noted:
            if call.outcome != "ok":
                continue
            if call.operation == "rename" and re.fullmatch(re.escape(folder) + r"/\d{8}", call.other):
                renamed = int(call.other[-8:])
            elif not call.path.startswith(folder) and "events.out" not in call.path:  # these have a thread of their own
                steps.append(renamed)
        newest.append(max(steps))
    return min(newest, default=least)


def sites(noted: Iterable[Call], root: Path) -> set[tuple[str, str]]:
    """(operation, what it was done to) with what changes from run to run taken out: one place in the code, roughly."""
    found = set()
    for call in noted:
        path = Path(call.path)
        inside = path.relative_to(root) if path.is_relative_to(root) else path
        found.add((call.operation, "/".join(_general(part) for part in inside.parts)))
    return found


def _general(part: str) -> str:
    if part.startswith("events.out"):
        return "events"
    if re.fullmatch(r"[0-9a-f]{32}", part):  # of Orbax's storage, named at random
        return "*"
    return re.sub(r"[0-9]+", "#", part)


def some(count: int, of: int, seed: int) -> list[int]:
    """`count` of the numbers 1..of, spread evenly and rising, from a place that the seed chooses."""
    count = max(1, min(count, of))
    shift = np.random.default_rng(seed).random()
    return sorted({1 + int((index + shift) * of / count) for index in range(count)})
