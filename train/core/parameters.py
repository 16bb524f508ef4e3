"""Parameter paths such as `blocks/attn/q/kernel`: their kinds and the patterns that match them.

Kinds follow from the path and never from ndim: blocks are stacked, so a gain has two axes and a matrix three.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax

TABLES = ("embed", "positions", "head")


def path_of(keys: tuple) -> str:
    """Joins a leaf's keys to a path, `blocks/mlp/in/kernel`, dropping the underscore of attributes such as `in_`."""
    return "/".join(str(entry.key).strip("_") for entry in keys)


def by_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Maps `function(path, leaf)` over the leaves of a tree."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function(path_of(keys), leaf), tree)


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
