"""Parameter paths such as `blocks/attn/q/kernel`: their kinds and the patterns that match them.

Kinds follow from the path and never from ndim: blocks are stacked, so a gain has two axes and a matrix three.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax

from model.network import path_of

TABLES = ("embed", "positions", "head")


def by_path(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Maps `function(path, leaf, ...)` over the leaves of trees of one structure."""
    return jax.tree_util.tree_map_with_path(lambda keys, *leaves: function(path_of(keys), *leaves), tree, *others)


def is_matrix(path: str) -> bool:
    """True for matrices and tables; False for gains, biases and a residual rule's vectors and scalars.

    >>> [is_matrix(path) for path in ("blocks/attn/q/kernel", "embed", "norm_f/gain", "blocks/attn/q/bias")]
    [True, True, False, False]
    """
    return path.rpartition("/")[2] in ("kernel", *TABLES)


def is_branch_matrix(path: str) -> bool:
    """True for the stacked matrices [L, rows, columns] of attention and the MLP; False for those of a residual rule.

    >>> [is_branch_matrix(f"blocks/{path}") for path in ("mlp/in/kernel", "mlp/in/bias", "residual/gate_1/kernel")]
    [True, False, False]
    """
    return path.startswith(("blocks/attn/", "blocks/mlp/")) and is_matrix(path)


def matches(path: str, pattern: str) -> bool:
    """True if a shell-style pattern, where * also matches slashes, matches the path or one of its parents.

    >>> [matches("blocks/attn/q/kernel", p) for p in ("blocks", "blocks/attn/*", "*/kernel", "blocks/*/bias", "attn")]
    [True, True, True, False, False]
    """
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")
