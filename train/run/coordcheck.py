"""Coordinate check: the sizes of activations and of their changes in models of growing width and depth.

Where one learning rate is right for all widths, or depths, the rms of the stream and the changes that steps make to
stream and logits depend on neither (Yang et al. 2022, 2203.03466, appendix D.1; for depth Dey et al. 2025, 2505.01618):
on logarithmic axes they are lines of slope 0.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data.source import Source
from model.layers import root_mean_square
from model.network import Network, Params

from ..config import checks
from ..config.load import Experiment, Variant
from ..config.schema import RunConfig
from ..core.batch import BatchInput, batch_of
from ..core.optimizer import HParams
from ..core.probe import finite
from ..core.state import State, initial_state
from ..core.step import train_step
from ..device.platform import Platform
from ..device.programs import compiled
from ..errors import UserError
from .experiment import build_group, data_key, device_of, open_all

KEYS = {"width": "width", "depth": "layers"}  # what grows, and its key of the model
QUANTITIES = ("stream", "logits", "stream_change", "logits_change")
# Slopes up to here are flat: a factor of 1.37 over three doublings.
FLAT = 0.15


def coordcheck(
    experiment: Experiment, sweeps: Mapping[str, Sequence[int]], steps: int, seeds: int
) -> Iterator[dict[str, Any]]:
    """Yields one JSON object for each variant and sweep (`width` or `depth` -> sizes), as soon as it is measured.

    The rate is the peak rate from the first step on; all else is as the config has it. Raises DataError, UserError.
    """
    sources = open_all(experiment.variants)
    grown = {
        (variant.name, over): [resized(variant, over, size) for size in sizes]
        for variant in experiment.variants
        for over, sizes in sweeps.items()
    }
    platform = device_of(experiment)
    for variant in experiment.variants:
        source = sources[data_key(variant.config)]
        for over, sizes in sweeps.items():
            models = grown[variant.name, over]
            rms = np.stack([mean_coordinates(model, source, platform, steps, seeds) for model in models])
            slope = slopes(sizes, rms)
            flat, why = flatness(over, slope[-1])
            yield {
                **{"variant": variant.name, "over": over, "sizes": list(sizes), "steps": steps, "seeds": seeds},
                "rms": {name: finite(rms[:, :, index]) for index, name in enumerate(QUANTITIES)},
                "slope": {name: finite(slope[:, index]) for index, name in enumerate(QUANTITIES)},
                **{"flat": flat, "why": why, "platform": platform.label},
            }


def resized(variant: Variant, over: str, size: int) -> Variant:
    """Returns the variant with a model of this width or depth, at a constant rate. Raises UserError."""
    config = variant.config
    model = config.model.model_copy(update={KEYS[over]: size})
    optimizer = config.optimizer.model_copy(update={"schedule": "constant", "warmup": 0})
    config = config.model_copy(update={"model": model, "optimizer": optimizer})
    for key, message in checks.problems(config):
        raise UserError(f"--{over}s {size}: {key}: {message} (variant {variant.name})", "command line")
    return dataclasses.replace(variant, config=config)


def mean_coordinates(
    variant: Variant, source: Source, platform: Platform, steps: int, seeds: int
) -> Float[np.ndarray, "steps+1 4"]:
    """Returns the `coordinates` of a variant on its first batch, geometric means over seeds from its own on."""
    group, data = build_group((variant,), source.spec, platform, one_device=True), variant.config.data
    # A change of a hundredth is lost in bfloat16's rounding.
    dtype = "float64" if group.network.dtype == "float64" else "float32"
    network = dataclasses.replace(group.network, unroll=1, dtype=dtype)
    corpus = None if source.resident is None else jnp.asarray(source.resident[0])
    batch_input = jax.tree.map(lambda leaf: leaf[0], source.train_batches(data.batch, variant.config.data_seed, 0, 1))
    batch, (hp,) = batch_of(batch_input, corpus, data.context), group.hparams
    program = compiled(partial(coordinates, network, group.config, steps), (hp, batch))
    rows = [program(hp._replace(seed=np.uint32(hp.seed + seed)), batch) for seed in range(seeds)]
    with np.errstate(divide="ignore"):
        return np.exp2(np.mean(np.log2(np.asarray(rows, np.float64)), axis=0))


def coordinates(
    network: Network, config: RunConfig, steps: int, hp: HParams, batch: BatchInput
) -> Float[Array, "steps+1 4"]:
    """Returns the rms of QUANTITIES after 0 to `steps` steps on one batch, over its tokens and without dropout.

    The stream is that after the last block; changes are those since the start. `network`, `config` and `steps` are
    static; run it under jit.
    """

    def ends(params: Params) -> tuple[Array, Array]:
        anatomy = network.anatomy(params, batch_of(batch).inputs, numbers=hp.model)
        blocks = (anatomy.blocks, jnp.arange(config.model.layers))
        carry, _ = jax.lax.scan(lambda carry, block: (anatomy.block(*block, carry), None), anatomy.carry, blocks)
        return anatomy.stream(carry), anatomy.logits(carry)

    start = initial_state(network, config, hp)
    first = ends(start.params)

    def sizes(params: Params) -> Float[Array, "4"]:
        now = ends(params)
        return jnp.stack([root_mean_square(x) for x in (*now, *(a - b for a, b in zip(now, first, strict=True)))])

    def step(state: State, _: None) -> tuple[State, Float[Array, "4"]]:
        after = train_step(network, config, state, hp, batch, False)[0]
        return after, sizes(after.params)

    _, rows = jax.lax.scan(step, start, None, length=steps)
    return jnp.concatenate([sizes(start.params)[None], rows])


def slopes(sizes: Sequence[int], rms: Float[np.ndarray, "S ..."]) -> Float[np.ndarray, "..."]:
    """Returns the least-squares slopes of log2 rms over log2 size; not finite where an rms is 0 or not finite.

    >>> slopes([1, 2, 4], np.array([[3.0, 1.0], [6.0, 1.0], [12.0, 1.0]])).tolist()
    [1.0, 0.0]
    """
    x = np.log2(sizes) - np.mean(np.log2(sizes))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.tensordot(x, np.log2(rms), 1) / (x @ x)


def flatness(over: str, slope: Float[np.ndarray, "4"]) -> tuple[bool, str]:
    """Returns true if the slopes after the last step are flat, and the evidence: the one farthest from it.

    What comes of the initial weights may fall up to the root: over the width that of the head in the logits, a sum of
    independent terms over m under muP; over the depth that of the blocks in the stream, one over L under CompleteP.
    """
    low = np.full(4, -FLAT)
    low[1 if over == "width" else 0 :: 2] -= 0.5
    excess = np.where(np.isfinite(slope), np.maximum(slope - FLAT, low - slope), np.inf)
    index = int(np.argmax(excess))
    what = f"the rms of {QUANTITIES[index].replace('_', ' ')}"
    if not np.isfinite(slope[index]):
        return False, f"{what} is 0 or not finite"
    power, allowed = f"{over}^{slope[index]:.2f}", f"from {low[index]:g} to {FLAT:g}"
    if excess[index] <= 0:
        return True, f"every slope is as it should be (closest to its limit: {what}, {power}, {allowed})"
    return False, f"{what} {'grows' if slope[index] > 0 else 'shrinks'} as {power}, and flat is {allowed}"
