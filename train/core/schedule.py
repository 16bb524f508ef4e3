"""Learning-rate schedules lr(t) = min_lr + (lr - min_lr) * shape(t) with a static shape and traced rates.

(optax's warmup_cosine_decay_schedule fails with a traced peak.)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..config.schema import OptimizerConfig


def shape(config: OptimizerConfig, step: Int[Array, ""], steps: int, dtype) -> Float[Array, ""]:
    """Returns the schedule's height in [0, 1] after the warm-up.

    All but one_cycle start at 1; cosine, linear, wsd and one_cycle reach 0 after the last of `steps`.
    """
    after, t = (jnp.asarray(steps - config.warmup, dtype), (step - config.warmup).astype(dtype))
    progress = jnp.clip(t / jnp.maximum(after, 1), 0, 1)
    last = jnp.asarray(config.decay_fraction, dtype)
    match config.schedule:
        case "cosine":  # Loshchilov & Hutter 2017, 1608.03983, eq. 5, one period
            return (1 + jnp.cos(jnp.pi * progress)) / 2
        case "linear":
            return 1 - progress
        case "wsd":  # warm-up, stable, decay: Hu et al. 2024, 2404.06395, section 4.2, with a linear decay
            remaining = (steps - step).astype(dtype)
            return jnp.clip(remaining / jnp.maximum(last * steps, 1), 0, 1)
        case "rsqrt":  # Vaswani et al. 2017, 1706.03762, section 5.3, relative to the rate at the end of the warm-up
            return jnp.sqrt((config.warmup + 1) / jnp.maximum(step + 1, config.warmup + 1).astype(dtype))
        case "step":
            return jnp.asarray(config.step_factor, dtype) ** jnp.floor(jnp.maximum(t, 0) / config.step_every)
        case "one_cycle":  # Smith & Topin 2018, 1708.07120, section 3: up, down, then annealed to 0
            low, half = 0.1, (1 - last) / 2
            corners = jnp.stack([0 * half, half, 2 * half, 0 * half + 1])
            return jnp.interp(progress, corners, jnp.asarray([low, 1, low, 0], dtype))
        case _:
            return jnp.ones_like(progress)


def learning_rate(config: OptimizerConfig, lr: Array, min_lr: Array, step: Int[Array, ""], steps: int) -> Array:
    """Returns the learning rate of the step that follows `step` finished ones.

    Warm-up is linear: (step + 1) / (warmup + 1) times the initial rate of the schedule.
    """
    dtype = lr.dtype
    height = shape(config, jnp.maximum(step, config.warmup), steps, dtype)
    after = lr if config.schedule == "constant" else min_lr + (lr - min_lr) * height
    warmup = jnp.minimum((step + 1).astype(dtype) / jnp.asarray(config.warmup + 1, dtype), 1)
    return warmup * after
