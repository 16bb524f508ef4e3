"""Learning rates as lr(t) = min_lr + (lr - min_lr) * shape(t): the shape is static, the two rates are traced.

(optax's warmup_cosine_decay_schedule fails with a traced peak.)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from train.config.schema import OptimizerConfig


def shape(config: OptimizerConfig, step: Int[Array, ""], steps: int, dtype) -> Float[Array, ""]:
    """The schedule's height in [0, 1] after warm-up: 1 at its end, 0 at the last of `steps` (cosine, linear)."""
    done = (step - config.warmup).astype(dtype) / jnp.asarray(max(steps - config.warmup, 1), dtype)
    done = jnp.clip(done, 0, 1)
    if config.schedule == "cosine":  # Loshchilov & Hutter 2017, 1608.03983, eq. 5, one period
        return (1 + jnp.cos(jnp.pi * done)) / 2
    return 1 - done if config.schedule == "linear" else jnp.ones_like(done)


def learning_rate(config: OptimizerConfig, lr: Array, min_lr: Array, step: Int[Array, ""], steps: int) -> Array:
    """The rate of the step that follows `step` finished ones. Warm-up is linear, lr * (step + 1) / (warmup + 1)."""
    dtype = lr.dtype
    after = min_lr + (lr - min_lr) * shape(config, step, steps, dtype)
    if config.schedule == "constant":
        after = lr
    during = lr * (step + 1).astype(dtype) / jnp.asarray(config.warmup + 1, dtype)
    return jnp.where(step < config.warmup, during, after)
