"""A training on chips that need not be here: mesh, memory, work, and bounds on a step, from the compiled programs."""

import dataclasses
import math
from typing import NamedTuple

import jax

from data.source import Source
from model.network import path_of

from ..config.load import Experiment
from ..core.batch import BatchInput
from ..core.parameters import is_matrix
from ..core.state import parameter_count
from ..device.chips import sent
from ..device.platform import Platform
from ..device.programs import Programs, VariantGroup, grouped, model_flops, with_steps
from ..device.signals import Stop
from ..log.console import Console
from ..text import size
from .dispatches import assumed_step_seconds, steps_per_call
from .experiment import build_group, data_key, device_of, open_all, show_start
from .setup import GroupSetup
from .start import Start

_TILE = 128  # rows and columns of a TPU's matrix unit


class Work(NamedTuple):
    """A plain training step on one chip, by the compiler's own count."""

    flops: float
    traffic: float  # bytes of all operands and results of kernels
    sent: float  # bytes to other chips


def plan(experiment: Experiment, console: Console, stop: Stop, topology: str | None = None) -> None:
    """Prints a block a group, for `topology` or the devices here. Writes nothing and runs nothing.

    Run directories are not looked at. Raises UserError, ConfigError, DataError, also where memory does not suffice.
    """
    stop.doing = "the reading of data"
    sources = open_all(experiment.variants)
    stop.doing = "the start of JAX"
    platform = device_of(experiment, topology)
    show_start(experiment, sources, platform, console)
    stop.doing = "compilation"
    for members in grouped(experiment.variants):
        source = sources[data_key(members[0].config)]
        group = build_group(members, source.spec, platform)
        console.block(f"group of {len(members)}" if len(members) > 1 else "variant", planned(group, source, platform))
    if platform.chip is None:
        console.note("no bounds on the step: they are known for the chips that --devices names")
    else:
        console.note(
            f"time: each part alone at its peak ({platform.chip.source}); memory is the operands and results of all "
            "kernels, of which small ones may stay in a cache"
        )


def planned(group: VariantGroup, source: Source, platform: Platform) -> list[tuple[str, str]]:
    """Returns the rows of a group, or of its first wave, once all programs are compiled."""
    config, mesh, chip = group.config, group.mesh, platform.chip
    setup = GroupSetup(group, source, platform, Console())
    K = steps_per_call(config, assumed_step_seconds(group, config.data.batch, platform.kind))
    setup.start = Start(0, K, None, None, {})
    with setup.compiling() as budget:
        counted = None if setup.waves or setup.divided(budget) else work(setup.programs, setup.batches(0, 1)[0])
    if counted is None:
        return planned(setup.waves[0][1], source, platform)
    assert budget.need is not None
    axes = ", ".join(f"{axis} {count}" for axis, count in mesh.shape.items() if count > 1)
    flops = model_flops(group.network, config.data.batch)
    # The compiler counts a loop over parts of the logits (model/transformer.py) as one of them.
    counted = counted._replace(flops=max(counted.flops, len(group.variants) * flops / mesh.size))
    step = [f"{counted.flops:.3g} FLOP", f"{size(counted.traffic)} of memory", f"{size(counted.sent)} sent"]
    held, passing = size(budget.need.held), size(budget.need.passing)
    rows = [
        ("variants", ", ".join(v.name for v in group.variants)),
        ("parameters", f"{parameter_count(group.network.shapes()):,}, compute in {group.network.dtype}"),
        ("mesh", f"{axes or 'one chip'}, {config.data.batch * config.data.context:,} tokens a step"),
        ("memory a chip", f"{held} held, {passing} more in a step" + (f", of {size(chip.memory)}" if chip else "")),
        ("work a step", f"{flops:.3g} FLOP of matmuls a variant; a chip: {', '.join(step)}"),
    ]
    if chip is not None:
        costs = {"FLOPs": counted.flops / chip.flops, "memory": counted.traffic / chip.bandwidth}
        costs["links"] = counted.sent / chip.link
        limit = max(costs, key=lambda name: costs[name])
        parts = ", ".join(f"{1e3 * seconds:.3g} ms of {name}" for name, seconds in costs.items())
        rough = "" if mesh.devices.flat[0].platform == chip.kind else ", by the kernels of XLA for CPUs"
        rows.append(("time of a step", f"{parts}: limited by {limit}{rough}"))
        if chip.kind == "tpu" and (ratio := padding(setup.programs)) > 1.1:
            rows.append(
                ("padding", f"{ratio:.2f} times the matmuls' FLOPs: heads or matrices do not fill tiles of {_TILE}")
            )
    return rows


def work(programs: Programs, batch: BatchInput, most: int = 4) -> Work:
    """Returns the work of a step of the whole group; a compiler counts the body of a loop once, so without loops.

    Blocks are unrolled, and beyond `most` of them the count is linear in depth. Micro-batches are taken as one.
    """

    def of(layers: int) -> Work:
        def shallow(config):
            model = config.model.model_copy(update={"layers": layers})
            optimizer = config.optimizer.model_copy(update={"accumulate": 1})
            return config.model_copy(update={"model": model, "optimizer": optimizer})

        group = programs.group
        variants = tuple(dataclasses.replace(v, config=shallow(v.config)) for v in group.variants)
        network = dataclasses.replace(group.network, config=variants[0].config.model, unroll=layers)
        alone = Programs(dataclasses.replace(group, variants=variants, network=network), programs.corpus)
        compiled = alone.prepare_dispatch(with_steps(batch, 1), watched=False).result()
        costs = compiled.cost_analysis()
        costs = costs[0] if isinstance(costs, list) else costs
        each = costs["flops"], costs["bytes accessed"], sent(compiled.as_text())
        return Work(*(alone.calls * cost for cost in each))

    depth = programs.group.config.model.layers
    if depth <= most:
        return of(depth)
    low, high = of(2), of(most)
    return Work(*(b + (b - a) / (most - 2) * (depth - most) for a, b in zip(low, high, strict=True)))


def padding(programs: Programs) -> float:
    """Returns the FLOPs of a step's matmuls with every axis filled up to tiles of a TPU, over those without."""
    group, state = programs.group, programs.abstract_state
    model, context, parts = group.network.config, group.network.context, group.mesh.shape["tensor"]

    def filled(*axes: int) -> int:
        return math.prod(-(-axis // _TILE) * _TILE for axis in axes)

    heads = model.heads // parts * model.layers * (len(group.variants) if group.vmapped else 1)
    useful = 2 * heads * context * model.head_width  # a token's share of attention's two products
    full = 2 * heads * filled(context, model.head_width)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if is_matrix(path := path_of(keys)) and path != "positions":
            axes = (*leaf.sharding.spec, *[None] * leaf.ndim)
            sizes = [n // parts if axis == "tensor" else n for n, axis in zip(leaf.shape, axes, strict=False)]
            useful += math.prod(sizes)
            full += math.prod(sizes[:-2]) * filled(*sizes[-2:])
    return full / useful
