"""Parameter groups by path pattern: weight decay, learning-rate factors and freezing."""

import difflib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from model.network import path_of

from ..config.schema import OptimizerConfig
from .parameters import by_path, is_matrix, matches
from .update_rules import Numbers


def decayed(config: OptimizerConfig, params: Any) -> Any:
    """Returns a mask of the parameters that weight decay applies to, a tree of bools."""
    patterns = config.decay_mask

    def decays(path: str, _: Any) -> bool:
        return is_matrix(path) if patterns is None else any(matches(path, pattern) for pattern in patterns)

    return by_path(decays, params)


def factors(config: OptimizerConfig, hp: Numbers) -> optax.GradientTransformation:
    """Scales each update, weight decay included, by the factor of the first pattern that matches its path."""

    def scaled(path: str, update: Any) -> Any:
        pattern = next((pattern for pattern in config.lr_factors if matches(path, pattern)), None)
        return update if pattern is None else update * jnp.asarray(hp["lr_factors"][pattern], update.dtype)

    return optax.stateless(lambda updates, _: by_path(scaled, updates))


def unfrozen(config: OptimizerConfig, tree: Any) -> Any:
    """Returns gradients or updates with those of frozen parameters set to exactly 0."""

    def zero_if_frozen(path: str, leaf: Any) -> Any:
        return jnp.zeros_like(leaf) if any(matches(path, pattern) for pattern in config.freeze) else leaf

    return by_path(zero_if_frozen, tree) if config.freeze else tree


def unmatched(config: OptimizerConfig, params: Any) -> Iterator[tuple[str, str]]:
    """Yields (config key, message) for every pattern that matches no parameter."""
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    folders = {path.rsplit("/", depth)[0] for path in paths for depth in range(path.count("/") + 1)}
    for key in ("decay_mask", "lr_factors", "freeze"):
        for pattern in getattr(config, key) or ():
            if not any(matches(path, pattern) for path in paths):
                near = difflib.get_close_matches(pattern, sorted(folders), 3, 0.5) or sorted(folders)[:3]
                yield key, f"no parameter matches {pattern!r}; nearest: {', '.join(near)}"
