"""Rules between the keys of a config, and warnings for valid but suspicious ones."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import data.config
import model.config

from . import instruments
from .schema import RunConfig, leaves
from .variants import unsafe
from .yaml import show

if TYPE_CHECKING:
    from .load import Variant

MAX_WIDTH = 2**15  # the search for the nearest divisor walks up to here
MAX_HIDDEN = 10_000_000
MOST_BATCHES = 100_000  # handed to the device at a time
FLOAT32_LEAST, FLOAT32_BEYOND = 2.0**-126, 2.0**128  # normal sizes are from the first to below the second

Fault = tuple[str, str]  # (dotted key, message); a message names the other keys that the rule is about


def problems(config: RunConfig) -> list[Fault]:
    """All broken rules; empty for a config that can run."""
    rules = (_paths, _model, _task, _precision, _optimizer, _dispatches, _mesh, instruments.problems)
    broken = [fault for rule in rules for fault in rule(config)]
    return [*broken, *((f"data.{key}", message) for key, message in data.config.problems(config.data))]


def _paths(config: RunConfig) -> Iterator[Fault]:
    if reason := unsafe(config.name):
        yield "name", reason
    path = os.fsencode(config.runs_dir)
    longest = max(path.split(b"/"), key=len)
    if len(longest) > 255:
        yield "runs_dir", f"expected names of at most 255 bytes, got {len(longest)}: {show(os.fsdecode(longest))}"
    elif len(path) > 3000:
        yield "runs_dir", f"expected a path of at most 3000 bytes, got {len(path)}"


def _model(config: RunConfig) -> Iterator[Fault]:
    size, kind = config.model, config.data.kind
    if size.width > MAX_WIDTH:
        yield "model.width", f"expected at most {MAX_WIDTH}, got {size.width}"
    elif size.base_width is not None and size.base_width > MAX_WIDTH:
        yield "model.base_width", f"expected at most {MAX_WIDTH}, got {size.base_width}"
    elif size.mlp_ratio * size.width > MAX_HIDDEN:
        yield "model.mlp_ratio", f"expected at most {MAX_HIDDEN} / width {size.width}, got {show(size.mlp_ratio)}"
    else:
        yield from ((f"model.{key}", message) for key, message in model.config.problems(size))
    if size.attention == "full" and kind != "digits" and ":" not in kind:
        yield "model.attention", f"full would show each token the one to predict; data.kind {kind} needs causal"


def _task(config: RunConfig) -> Iterator[Fault]:
    kind, task = config.data.kind, config.task
    purpose = data.config.declaration_of(config.data).task
    if purpose and task.kind and task.kind not in data.config.SERVES[purpose]:
        yield "task.kind", f"data.kind {kind} is for {purpose}, got {task.kind}"
    if (task.kind or purpose) == "regression":
        for key in ("label_smoothing", "z_loss"):
            if value := getattr(task, key):
                yield f"task.{key}", f"regression has no classes, got {show(value)}"


def _precision(config: RunConfig) -> Iterator[Fault]:
    """Numbers that are inputs of a program would become 0 or infinite outside float32's normal range."""
    if config.train.dtype == "float64":
        if config.train.device not in ("auto", "cpu"):
            yield "train.dtype", f"float64 needs train.device auto or cpu, got {config.train.device}"
        return
    size = f"a size from 1.2e-38 to 3.4e38 with train.dtype {config.train.dtype}"
    for key, value in leaves(config):
        if key == "model.mlp_ratio" or not key.startswith(("model.", "optimizer.", "task.")):
            continue
        for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,):
            if isinstance(each, float) and each and not FLOAT32_LEAST <= abs(each) < FLOAT32_BEYOND:
                yield key, f"expected 0 or {size}, got {show(each)}"


def _optimizer(config: RunConfig) -> Iterator[Fault]:
    optimizer, steps, batch = config.optimizer, config.train.steps, config.data.batch
    if optimizer.min_lr > optimizer.lr and optimizer.schedule != "constant":
        default = "" if "min_lr" in optimizer.model_fields_set else " (its default): set both"
        most = f"at most optimizer.lr {show(optimizer.lr)} unless optimizer.schedule is constant"
        yield "optimizer.min_lr", f"expected {most}, got {show(optimizer.min_lr)}{default}"
    most = 1 - optimizer.warmup / steps
    if optimizer.schedule == "wsd" and optimizer.decay_fraction > most:
        if most > 0:
            least = f"expected at most {show(round(most, 6))}, got {show(optimizer.decay_fraction)}"
            reason = f"wsd decays after the warm-up (optimizer.warmup {optimizer.warmup} of train.steps {steps})"
            yield "optimizer.decay_fraction", f"{least}: {reason}"
        else:
            limit = f"expected less than train.steps {steps} with schedule wsd"
            yield "optimizer.warmup", f"{limit}, got {optimizer.warmup}"
    if config.model.base_width is not None and ":" in optimizer.name:
        yield (
            "model.base_width",
            f"expected null with optimizer.name {optimizer.name}, whose updates have no known factors "
            f"(optimizer.lr_factors can give them some), got {config.model.base_width}",
        )
    if batch % optimizer.accumulate:
        nearest = model.config.divisors(batch, optimizer.accumulate)
        yield "optimizer.accumulate", f"expected a divisor of data.batch {batch} {nearest}"


def _mesh(config: RunConfig) -> Iterator[Fault]:
    mesh, size, batch = config.mesh, config.model, config.data.batch
    rows = batch // config.optimizer.accumulate
    of = f"data.batch {batch}" + (f" / optimizer.accumulate {config.optimizer.accumulate}" if rows < batch else "")
    divided = [("fsdp", mesh.fsdp, rows, of), ("fsdp", mesh.fsdp, size.width, f"model.width {size.width}")]
    if mesh.data > 1 and rows % mesh.fsdp == 0:
        divided.append(("data", mesh.data, rows // mesh.fsdp, of + (f" / fsdp {mesh.fsdp}" if mesh.fsdp > 1 else "")))
    divided.append(("tensor", mesh.tensor, size.value_heads, f"the model's {size.value_heads} key and value heads"))
    if size.mlp_ratio * size.width <= MAX_HIDDEN:
        divided.append(("tensor", mesh.tensor, size.hidden, f"the MLP's {size.hidden} hidden units"))
    for key, parts, whole, name in divided:
        if whole % parts:
            yield f"mesh.{key}", f"expected a divisor of {name} {model.config.divisors(whole, parts)}"
            return


def _dispatches(config: RunConfig) -> Iterator[Fault]:
    calls, every, batches = config.train.steps_per_call, config.watch.every, config.watch.curvature_batches
    tokens = config.data.batch * config.data.context
    most = max(1, min(MOST_BATCHES, data.config.MOST_IN_BATCH // tokens))  # in memory together
    limit = f"expected at most {most} with data.batch {config.data.batch} and data.context {config.data.context}"
    if batches > most:
        yield "watch.curvature_batches", f"{limit}, got {batches}"
    if calls == "auto":
        return
    ends = dispatch_ends(config)
    shared = math.gcd(*ends.values())
    if calls > most:
        yield "train.steps_per_call", f"{limit}, got {calls}"
    elif shared % calls:
        both = " and ".join(f"{key} {interval}" for key, interval in ends.items())
        yield "train.steps_per_call", f"expected a divisor of {both} (the largest is {shared}), got {calls}"
    elif every and calls % every and every % calls:
        yield "train.steps_per_call", f"expected a divisor or a multiple of watch.every {every}, got {calls}"


def dispatch_ends(config: RunConfig) -> dict[str, int]:
    """The intervals, in steps, of all that has to wait for the end of a dispatch, by key."""
    ends = {"train.eval_every": config.train.eval_every, "train.checkpoint_every": config.train.checkpoint_every}
    return ends | {f"watch.instruments.{name}": interval for name, interval in config.watch.intervals.items()}


def strides(config: RunConfig, most: int) -> list[int]:
    """The numbers up to `most` that may be train.steps_per_call, ascending: each divides `dispatch_ends`, and divides
    watch.every or is a multiple of it."""
    shared, every = math.gcd(*dispatch_ends(config).values()), config.watch.every
    up_to = range(1, min(shared, most) + 1)
    return [k for k in up_to if shared % k == 0 and (every == 0 or k % every == 0 or every % k == 0)]


def mixed(first: RunConfig, other: RunConfig) -> Iterator[Fault]:
    """Differences that one process cannot have between its variants."""
    for key in ("device", "matmul_precision"):
        one, two = getattr(first.train, key), getattr(other.train, key)
        if one != two:
            yield f"train.{key}", f"expected the same in all variants, got {show(one)} and {show(two)}"
    one, two = first.train.dtype, other.train.dtype
    if (one == "float64") != (two == "float64"):
        yield "train.dtype", f"expected float64 in all variants or in none, got {show(one)} and {show(two)}"


def warnings_for(variants: "Iterable[Variant]") -> list[str]:
    """A line for each suspicious setting, with the names of the variants that have it."""
    lines: dict[str, list[str]] = {}
    for variant in variants:
        for line in _suspicious(variant.config):
            lines.setdefault(line, []).append(variant.name)
    return [f"{', '.join(names)}: {line}" for line, names in lines.items()]


def _suspicious(config: RunConfig) -> Iterator[str]:
    optimizer, steps = config.optimizer, config.train.steps
    if optimizer.lr == 0:  # min_lr is at most that, or is not used
        yield "optimizer.lr 0 leaves every parameter at its initial value"
    elif optimizer.warmup >= steps:
        reached = f"{steps / (optimizer.warmup + 1):.3g}"
        yield (
            f"optimizer.warmup {optimizer.warmup} is not over within train.steps {steps}: the last step's learning "
            f"rate is {reached} of what the warm-up leads to"
        )
    ends = {**dispatch_ends(config), "watch.every": config.watch.every}
    if config.train.steps_per_call == "auto" and strides(config, 100) == [1] and 1 not in ends.values():
        each = ", ".join(f"{key} {interval}" for key, interval in ends.items() if interval)
        yield f"{each}: no number of steps above 1 divides all of them, so each step is a dispatch of its own (slower)"
