"""Parameters by their path, such as `blocks/attn/q/kernel`: which are matrices, which a pattern means.

By path and never by ndim: the blocks are stacked, so a layer's gain has two axes and a layer's matrix three.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax

TABLES = ("embed", "positions", "head")


def path_of(keys: tuple) -> str:
    """`blocks/mlp/in/kernel`: the names that the tags use, without the underscore that Python's keywords need."""
    return "/".join(str(entry.key).strip("_") for entry in keys)


def by_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """`function(path, leaf)` of every leaf."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function(path_of(keys), leaf), tree)


def is_matrix(path: str) -> bool:
    """Matrices and tables; no gains, biases or scalars of a residual rule.

    >>> [is_matrix(path) for path in ("blocks/attn/q/kernel", "embed", "norm_f/gain", "blocks/attn/q/bias")]
    [True, True, False, False]
    """
    return path.rpartition("/")[2] in ("kernel", *TABLES)


def is_branch_matrix(path: str) -> bool:
    """A matrix of attention or of the MLP, stacked [L, rows, columns]; none of a residual rule's own.

    >>> [is_branch_matrix(f"blocks/{path}") for path in ("mlp/in/kernel", "mlp/in/bias", "residual/gate_1/kernel")]
    [True, False, False]
    """
    return path.startswith(("blocks/attn/", "blocks/mlp/")) and is_matrix(path)


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern means this parameter: the shell's, where * also takes slashes, of its path or a folder above.

    >>> [matches("blocks/attn/q/kernel", p) for p in ("blocks", "blocks/attn/*", "*/kernel", "blocks/*/bias", "attn")]
    [True, True, True, False, False]
    """
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")
