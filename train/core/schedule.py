"""Learning rates as lr(t) = min_lr + (lr - min_lr) * shape(t): the shape is static, the two rates are traced.

(optax's warmup_cosine_decay_schedule fails with a traced peak.)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..config.schema import OptimizerConfig


def shape(config: OptimizerConfig, step: Int[Array, ""], steps: int, dtype) -> Float[Array, ""]:
    """The schedule's height in [0, 1] once the warm-up is over. All but one_cycle start at 1, and cosine, linear, wsd
    and one_cycle end at 0 after the last of `steps`."""
    after, t = (jnp.asarray(steps - config.warmup, dtype), (step - config.warmup).astype(dtype))
    done = jnp.clip(t / jnp.maximum(after, 1), 0, 1)
    last = jnp.asarray(config.decay_fraction, dtype)
    match config.schedule:
        case "cosine":  # Loshchilov & Hutter 2017, 1608.03983, eq. 5, one period
            return (1 + jnp.cos(jnp.pi * done)) / 2
        case "linear":
            return 1 - done
        case "wsd":  # warm-up, stable, decay: Hu et al. 2024, 2404.06395, section 4.2, with a linear decay
            left = (steps - step).astype(dtype)
            return jnp.clip(left / jnp.maximum(last * steps, 1), 0, 1)
        case "rsqrt":  # Vaswani et al. 2017, 1706.03762, section 5.3: the warm-up's w steps end at 1/sqrt(w) of theirs
            return jnp.sqrt((config.warmup + 1) / jnp.maximum(step + 1, config.warmup + 1).astype(dtype))
        case "step":
            return jnp.asarray(config.step_factor, dtype) ** jnp.floor(jnp.maximum(t, 0) / config.step_every)
        case "one_cycle":  # Smith & Topin 2018, 1708.07120, section 3: up, down, and lower still
            low, half = 0.1, (1 - last) / 2
            corners = jnp.stack([0 * half, half, 2 * half, 0 * half + 1])
            return jnp.interp(done, corners, jnp.asarray([low, 1, low, 0], dtype))
        case _:
            return jnp.ones_like(done)


def learning_rate(config: OptimizerConfig, lr: Array, min_lr: Array, step: Int[Array, ""], steps: int) -> Array:
    """The rate of the step that follows `step` finished ones.

    Warm-up is linear: (step + 1) / (warmup + 1) of the rate that the schedule starts with.
    """
    dtype = lr.dtype
    height = shape(config, jnp.maximum(step, config.warmup), steps, dtype)
    after = lr if config.schedule == "constant" else min_lr + (lr - min_lr) * height
    risen = jnp.minimum((step + 1).astype(dtype) / jnp.asarray(config.warmup + 1, dtype), 1)
    return risen * after
