"""Before a group trains: whether it is over, where it goes on, and whether it may, by what its directories hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.source import Source
from train.core.state import parameter_count
from train.run.checkpoint import Checkpoints, newest_common
from train.run.console import Console
from train.run.programs import Group, model_flops
from train.run.resume import finished_run, same_origin
from train.run.rundir import claim, remember_data


def opened(
    group: Group, source: Source, directories: Sequence[Path], console: Console, allow_data_change: bool
) -> tuple[int, list[dict[str, Any]] | None]:
    """(the step to go on from, the summaries of a group that is over). Their locks are held.

    Raises RunError when a directory holds another run, other data, or no checkpoint that is whole.
    """
    done = [summary for directory in directories if (summary := finished_run(directory))]
    over = len(done) == len(directories)
    checkpoints = [Checkpoints(directory) for directory in directories]
    first = group.config.train.steps if over else newest_common(checkpoints, console.warn) or 0
    for variant, directory in zip(group.variants, directories, strict=True):
        claim(variant)
        kept = None if source.tokenizer is None else source.tokenizer.to_json()
        if over and allow_data_change:
            continue  # it reads no more data
        if said := remember_data(directory, source.sha256, source.source, kept, first, allow_data_change):
            console.warn(said)
    if over:
        console.note(f"{', '.join(v.name for v in group.variants)}: finished before; nothing to do")
        return first, done
    if first:
        for said in dict.fromkeys(same_origin(variant, first) for variant in group.variants):
            if said:
                console.warn(said)
    return first, None


def described(group: Group, steps: str, compile_s: float, memory: str, folder: Path) -> tuple[str, list[Any]]:
    """Title and rows of the block that the console shows before the first step."""
    config, several = group.config, len(group.variants) > 1
    mode = " (vmapped in one call)" if group.vmapped else " (called in turn)"
    count = parameter_count(group.network.shapes())
    flops = model_flops(group.network, config.data.batch)
    return f"group of {len(group.variants)}" if several else "variant", [
        ("variants", ", ".join(v.name for v in group.variants) + (mode if several else "")),
        ("parameters", f"{count:,} ({group.network.param_dtype}), compute in {group.network.dtype}"),
        ("work a step", f"{flops / 1e9:.3g} GFLOP, {config.data.batch * config.data.context:,} tokens"),
        ("steps", steps),
        ("compiled in", f"{compile_s:.1f} s"),
        ("memory", memory),
        ("run directory", str(folder)),
    ]
