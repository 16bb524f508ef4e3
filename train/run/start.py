"""Before a group trains: whether it is over, where it goes on, and whether it may, by what its directories hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.source import Source

from ..core.state import parameter_count
from ..device.programs import Group, model_flops
from ..log.console import Console
from ..store.checkpoint import Checkpoints, newest_common
from ..store.rundir import claim, remember_data
from .resume import finished_run, same_origin, saved_alike


def stands(group: Group, directories: Sequence[Path], console: Console) -> tuple[int, list[dict[str, Any]] | None]:
    """(the step to go on from, the summaries of a group that is over). Changes nothing.

    Raises UserError when there are checkpoints and none is whole.
    """
    done = [summary for directory in directories if (summary := finished_run(directory))]
    if len(done) == len(directories):
        return group.config.train.steps, done
    return newest_common([Checkpoints(directory) for directory in directories], console.warn) or 0, None


def admit(
    group: Group, source: Source, directories: Sequence[Path], console: Console, first: int, over: bool, allow: bool
) -> None:
    """Makes the directories this group's, which goes on from step `first` or is `over`; their locks are held.

    Raises UserError when one holds another run, or one of other data and `allow` does not let it go on with these.
    """
    for variant, directory in zip(group.variants, directories, strict=True):
        if not (directory / "config.yaml").exists():
            saved_alike(variant)
        claim(variant)
        kept = None if source.tokenizer is None else source.tokenizer.to_json()
        if over and allow:
            continue  # it reads no more data
        if said := remember_data(directory, source.sha256, source.source, kept, first, allow):
            console.warn(said)
    if first and not over:
        for said in dict.fromkeys(same_origin(variant, first) for variant in group.variants):
            if said:
                console.warn(said)


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
