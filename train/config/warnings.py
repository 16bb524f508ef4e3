"""What a config may say, and hardly anybody means."""

from collections.abc import Iterable

from .checks import strides, window_ends
from .load import Variant
from .schema import RunConfig


def warnings_for(variants: Iterable[Variant]) -> list[str]:
    """A line for each thing that is allowed and unlikely, with the variants it is true of."""
    said: dict[str, list[str]] = {}
    for variant in variants:
        for line in _doubts(variant.config):
            said.setdefault(line, []).append(variant.name)
    return [f"{', '.join(names)}: {line}" for line, names in said.items()]


def _doubts(config: RunConfig) -> list[str]:
    optimizer, steps = config.optimizer, config.train.steps
    lines = []
    if optimizer.lr == 0:  # min_lr is at most that, or is not used
        lines.append("optimizer.lr 0 leaves every parameter as it was drawn")
    elif optimizer.warmup >= steps:
        reached = f"{steps / (optimizer.warmup + 1):.3g}"
        lines.append(
            f"optimizer.warmup {optimizer.warmup} is not over within train.steps {steps}: the last step's learning "
            f"rate is {reached} of what the warm-up leads to"
        )
    alone = {**window_ends(config), "watch.every": config.watch.every}
    if config.train.steps_per_call == "auto" and strides(config, 100) == [1] and 1 not in alone.values():
        both = ", ".join(f"{key} {interval}" for key, interval in alone.items() if interval)
        lines.append(f"{both}: no number of steps above 1 goes into all, so each is a dispatch of its own (slower)")
    return lines
