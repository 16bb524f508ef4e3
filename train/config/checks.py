"""What must hold between keys of a config, across its sections."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

import data.config
import model.config

from . import instruments
from .fields import related
from .names import wrong_path
from .schema import RunConfig
from .yaml12 import show

MAX_WIDTH = 2**15  # the search for the nearest divisor walks up to here
MAX_HIDDEN = 10_000_000
MOST_BATCHES = 100_000  # handed to the device at a time
FLOAT32_LEAST, FLOAT32_BEYOND = 2.0**-126, 2.0**128  # normal sizes are from the first to below the second

# One process has one of each.
OF_THE_PROCESS = ("train.device", "train.matmul_precision")


class Finding(NamedTuple):
    """What is wrong with a key, and the keys or sections that were read to find it."""

    key: str
    message: str
    reads: tuple[str, ...]


def problems(config: RunConfig) -> list[tuple[str, str]]:
    """All that is wrong between keys, as (dotted key, what is wrong); empty for a config that can run."""
    return [(found.key, found.message) for found in findings(config)]


def findings(config: RunConfig, doubtful: Collection[str] = ()) -> list[Finding]:
    """The same, without the checks that read a key or section in `doubtful` (its value is not what was meant)."""
    return [
        Finding(key, message, reads)
        for reads, check in _CHECKS
        if not any(related(key, reads) for key in doubtful)
        for key, message in check(config)
    ]


def _runs_dir(config: RunConfig) -> Iterator[tuple[str, str]]:
    if (wrong := wrong_path(config.runs_dir)) is not None:
        yield "runs_dir", wrong


def _model(config: RunConfig) -> Iterator[tuple[str, str]]:
    size = config.model
    if size.width > MAX_WIDTH:
        yield "model.width", f"expected at most {MAX_WIDTH}, got {size.width}"
    elif size.base_width is not None and size.base_width > MAX_WIDTH:
        yield "model.base_width", f"expected at most {MAX_WIDTH}, got {size.base_width}"
    elif size.mlp_ratio * size.width > MAX_HIDDEN:
        yield "model.mlp_ratio", f"expected at most {MAX_HIDDEN} / width {size.width}, got {show(size.mlp_ratio)}"
    else:
        for key, message in model.config.problems(size):
            yield f"model.{key}", message


def _data(config: RunConfig) -> Iterator[tuple[str, str]]:
    for key, message in data.config.problems(config.data):
        yield f"data.{key}", message


def _causal(config: RunConfig) -> Iterator[tuple[str, str]]:
    kind = config.data.kind
    if config.model.attention == "full" and kind != "digits" and ":" not in kind:
        yield "model.attention", f"full would show each token the one it is to tell; data.kind {kind} needs causal"


def _task(config: RunConfig) -> Iterator[tuple[str, str]]:
    kind, known = config.data.kind, data.config.task_of(config.data.kind)
    if known and config.task.kind and config.task.kind not in data.config.SERVES[known]:
        yield "task.kind", f"data.kind {kind} is for {known}, got {config.task.kind}"
    squared = config.task.kind == "regression" or (config.task.kind is None and config.data.kind == "linear_regression")
    for key in ("label_smoothing", "z_loss"):
        if squared and getattr(config.task, key):
            yield f"task.{key}", f"regression has no classes, got {show(getattr(config.task, key))}"


def _range(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Numbers that are handed to the programs become 0 or infinite outside float32's normal range."""
    if config.train.dtype == "float64":
        return
    for section in ("model", "optimizer", "task"):
        for key, value in _numbers(getattr(config, section), section):
            if key != "model.mlp_ratio" and value and not FLOAT32_LEAST <= abs(value) < FLOAT32_BEYOND:
                yield key, f"expected 0 or a size from 1.2e-38 to 3.4e38 (float32's range), got {show(value)}"


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """The floats of a section, those of lists and mappings under the key that holds them."""
    if isinstance(value, BaseModel):
        for name, inner in value:
            yield from _numbers(inner, f"{key}.{name}")
    elif isinstance(value, float):
        yield key, value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(inner, key)


def _learning_rates(config: RunConfig) -> Iterator[tuple[str, str]]:
    low, high = config.optimizer.min_lr, config.optimizer.lr
    if low > high and config.optimizer.schedule != "constant":
        yield (
            "optimizer.min_lr",
            f"expected at most optimizer.lr {show(high)} unless schedule is constant, got {show(low)}"
            + ("" if "min_lr" in config.optimizer.model_fields_set else " (its default): set both"),
        )


def _wsd(config: RunConfig) -> Iterator[tuple[str, str]]:
    optimizer, steps = config.optimizer, config.train.steps
    most = 1 - optimizer.warmup / steps
    if optimizer.schedule == "wsd" and optimizer.decay_fraction > most:
        fits = f"expected at most {show(round(most, 6))}, " if most > 0 else ""
        yield (
            "optimizer.decay_fraction",
            f"{fits}got {show(optimizer.decay_fraction)}: wsd decays once the warm-up is over "
            f"(optimizer.warmup {optimizer.warmup} of train.steps {steps})",
        )


def _betas(config: RunConfig) -> Iterator[tuple[str, str]]:
    betas = config.optimizer.betas
    if not all(0 <= beta < 1 for beta in betas):
        yield "optimizer.betas", f"expected two numbers >= 0 and < 1, got {show(betas)}"


def _own_optimizer(config: RunConfig) -> Iterator[tuple[str, str]]:
    name, base = config.optimizer.name, config.model.base_width
    if base is not None and ":" in name:
        yield (
            "model.base_width",
            f"expected null with optimizer.name {name}, whose updates have no known factors (optimizer.lr_factors can "
            f"give them some), got {base}",
        )


def _accumulate(config: RunConfig) -> Iterator[tuple[str, str]]:
    batch, parts = config.data.batch, config.optimizer.accumulate
    if batch % parts:
        below = [n for n in range(min(parts, batch), max(parts - 10_000, 0), -1) if batch % n == 0]
        above = [n for n in range(parts + 1, min(batch, parts + 10_000) + 1) if batch % n == 0]
        near = [*below[:1], *above[:1]]
        nearest = f" (nearest: {', '.join(map(str, near))})" if near else ""
        yield "optimizer.accumulate", f"expected a divisor of data.batch {batch}{nearest}, got {parts}"


def _steps_per_call(config: RunConfig) -> Iterator[tuple[str, str]]:
    calls, every = config.train.steps_per_call, config.watch.every
    if calls == "auto":
        return
    most = _batches_at_once(config)
    if calls > most:
        yield "train.steps_per_call", f"expected at most {most} with batches of that size, got {calls}"
        return
    ends = window_ends(config)
    shared = math.gcd(*ends.values())
    if calls < 1:
        yield "train.steps_per_call", f"expected auto or a whole number >= 1, got {calls}"
    elif shared % calls:
        both = " and ".join(f"{key} {interval}" for key, interval in ends.items())
        yield "train.steps_per_call", f"expected a divisor of {both} (the largest is {shared}), got {calls}"
    elif every and calls % every and every % calls:
        yield "train.steps_per_call", f"expected a divisor or a multiple of watch.every {every}, got {calls}"


def window_ends(config: RunConfig) -> dict[str, int]:
    """The steps between what has to wait for the end of a dispatch, by key."""
    ends = {"train.eval_every": config.train.eval_every, "train.checkpoint_every": config.train.checkpoint_every}
    return ends | {f"watch.instruments.{name}": interval for name, interval in config.watch.intervals.items()}


def strides(config: RunConfig, most: int) -> list[int]:
    """The numbers up to `most` that may be train.steps_per_call, ascending: each divides `window_ends`, and divides
    watch.every or is a multiple of it."""
    shared, every = math.gcd(*window_ends(config).values()), config.watch.every
    up_to = range(1, min(shared, most) + 1)
    return [k for k in up_to if shared % k == 0 and (every == 0 or k % every == 0 or every % k == 0)]


def _curvature(config: RunConfig) -> Iterator[tuple[str, str]]:
    batches, most = config.watch.curvature_batches, _batches_at_once(config)
    if batches > most:
        yield "watch.curvature_batches", f"expected at most {most} with batches of that size, got {batches}"


def _batches_at_once(config: RunConfig) -> int:
    """How many batches may lie in memory together: as many tokens as one may have, and no more than an array holds."""
    return max(1, min(MOST_BATCHES, data.config.MOST_IN_BATCH // (config.data.batch * config.data.context)))


def _unroll(config: RunConfig) -> Iterator[tuple[str, str]]:
    if config.train.unroll != "auto" and config.train.unroll < 1:
        yield "train.unroll", f"expected auto or a whole number >= 1, got {config.train.unroll}"


def _dtype(config: RunConfig) -> Iterator[tuple[str, str]]:
    if config.train.dtype == "float64" and config.train.device not in ("auto", "cpu"):
        yield "train.dtype", f"float64 needs train.device auto or cpu, got {config.train.device}"


def mixed(first: RunConfig, other: RunConfig) -> Iterator[tuple[str, str]]:
    """What two variants of one experiment cannot differ in, as (dotted key, what is wrong)."""
    for key in OF_THE_PROCESS:
        name = key.partition(".")[2]
        one, two = getattr(first.train, name), getattr(other.train, name)
        if one != two:
            yield key, f"expected the same in all variants, got {show(one)} and {show(two)}"
    one, two = first.train.dtype, other.train.dtype
    if (one == "float64") != (two == "float64"):
        yield "train.dtype", f"expected float64 in all variants or in none, got {show(one)} and {show(two)}"


_CHECKS = (
    (("runs_dir",), _runs_dir),
    (("model",), _model),
    (("data",), _data),
    (("model.attention", "data.kind"), _causal),
    (("task", "data.kind"), _task),
    (("model", "optimizer", "task", "train.dtype"), _range),
    (("optimizer.min_lr", "optimizer.lr", "optimizer.schedule"), _learning_rates),
    (("optimizer.decay_fraction", "optimizer.warmup", "optimizer.schedule", "train.steps"), _wsd),
    (("optimizer.betas",), _betas),
    (("optimizer.name", "model.base_width"), _own_optimizer),
    (("optimizer.accumulate", "data.batch"), _accumulate),
    (
        ("train.steps_per_call", "watch", "train.eval_every", "train.checkpoint_every", "data.batch", "data.context"),
        _steps_per_call,
    ),
    (("watch.curvature_batches", "data.batch", "data.context"), _curvature),
    (("watch.instruments", "optimizer.name", "optimizer.freeze", "data.batch"), instruments.problems),
    (("train.unroll",), _unroll),
    (("train.dtype", "train.device"), _dtype),
)
