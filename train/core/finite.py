"""Checks that arrays and training states are finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..gradflow.norms import Norm


def all_finite(tree: Any) -> Bool[Array, ""]:
    """True if no entry of the floating-point leaves is infinite or nan; a tree without such leaves is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not leaves:
        return jnp.ones((), bool)

    def by_sums(*leaves: Array) -> Bool[Array, ""]:
        # x - x is 0 for a finite x and nan otherwise. (0 * x would not do: XLA rewrites (x * c) * 0 as x * (c * 0),
        # which hides an overflow of x * c.) XLA:CPU compiles a sum in half the time of a conjunction; a maximum would
        # be cheaper still, but drops nan there (jax 0.10 to 0.12).
        sums = [jnp.sum(jnp.subtract(leaf, leaf)).astype(jnp.float32) for leaf in leaves]
        return ~jnp.any(jnp.isnan(jnp.stack(sums)))

    def by_entries(*leaves: Array) -> Bool[Array, ""]:
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))

    return jax.lax.platform_dependent(*leaves, cpu=by_sums, default=by_entries)


def finite_by_norm(norm: Norm, entries: Callable[[], Any]) -> Bool[Array, ""]:
    """Returns `all_finite(entries())`, given the norm of the entries as an upper bound on each.

    On a CPU the entries are computed and checked only if the norm is near the end of their range or not finite.
    """
    leaves = jax.tree.leaves(jax.eval_shape(entries))
    safe = min(jnp.finfo(leaf.dtype).maxexp for leaf in leaves) - 1

    def check_entries() -> Array:
        return all_finite(entries())

    def check_norm_first() -> Array:
        in_range = jnp.log2(norm.mantissa) + norm.exponent.astype(norm.mantissa.dtype) < safe
        return jax.lax.cond(in_range, lambda: jnp.ones((), bool), check_entries)

    return jax.lax.platform_dependent(cpu=check_norm_first, default=check_entries)


def sound(state: Any) -> Bool[Array, ""]:
    """True if the parameters, their moving averages and the optimizer's arrays of a State are finite.

    Scalars of the optimizer are left out: infinity may be a valid value there, such as an initial "best loss so far".
    """
    arrays = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    return all_finite((state.params, state.ema, arrays))
