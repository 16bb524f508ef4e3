"""Whether what a run carries is finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..gradflow.norms import Norm


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no entry of the floating leaves is infinite or nan; what has no such leaf is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not leaves:
        return jnp.ones((), bool)
    return jax.lax.platform_dependent(*leaves, cpu=_by_sums, default=_by_entries)


def finite_by_norm(norm: Norm, entries: Callable[[], Any]) -> Bool[Array, ""]:
    """`all_finite(entries())` of entries whose norm is `norm`, which none of them exceeds.

    On a CPU they are made and looked at only where that is near the end of their range, or not finite.
    """
    leaves = jax.tree.leaves(jax.eval_shape(entries))
    safe = min(jnp.finfo(leaf.dtype).maxexp for leaf in leaves) - 1

    def look() -> Array:
        return all_finite(entries())

    def at_first() -> Array:
        within = jnp.log2(norm.mantissa) + norm.exponent.astype(norm.mantissa.dtype) < safe
        return jax.lax.cond(within, lambda: jnp.ones((), bool), look)

    return jax.lax.platform_dependent(cpu=at_first, default=look)


def _by_sums(*leaves: Array) -> Bool[Array, ""]:
    """An entry less itself is 0, or nan where it is not finite. (0 times an entry does not tell: of (x c) 0 XLA makes
    x (c 0), and an overflow is gone.) XLA:CPU compiles a sum in half the time of a conjunction; a maximum would be
    cheaper still, but loses nan there (jax 0.10 to 0.12)."""
    sums = [jnp.sum(jnp.subtract(leaf, leaf)).astype(jnp.float32) for leaf in leaves]
    return ~jnp.any(jnp.isnan(jnp.stack(sums)))


def _by_entries(*leaves: Array) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def sound(state: Any) -> Bool[Array, ""]:
    """Whether a train.core.state.State can be trained on: its parameters, their averages, the optimizer's arrays.

    A scalar of the optimizer's may be infinite in earnest, such as the best loss so far of a rule that waits for one.
    """
    arrays = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    return all_finite((state.params, state.ema, arrays))
