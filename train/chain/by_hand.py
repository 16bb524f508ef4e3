"""Formulas in numpy from which the claims predict, with their derivatives: without JAX, and so independent of it.

Axes as in model/__init__.py, one sequence: x [T, D]. Every function of x takes complex values too, for `jacobian`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray
Parameters = Mapping[str, Any]  # nested, as model/network.py has them; blocks in a list
STEP = 1e-100  # of `jacobian`: its square is negligible next to 1, and no product of a few entries with it underflows


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    """The tanh form (Hendrycks & Gimpel 2016, 1606.08415)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: Array) -> Array:
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)


def softmax(x: Float[Array, "... V"]) -> Float[Array, "... V"]:
    e = np.exp(x - np.real(x).max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def jacobian(function: Callable[[Array], Array], x: Float[Array, "..."]) -> Float[Array, "outputs inputs"]:
    """Returns the derivatives of every entry of f(x) by every entry of x, exact but for rounding.

    Im f(x + ih) / h is not a difference of two values, so h may be as small as the range permits (Squire & Trapp
    1998, SIAM Review 40:110).

    >>> jacobian(np.exp, np.array([0.0, 1.0])).tolist() == np.diag(np.exp([0.0, 1.0])).tolist()
    True
    """
    steps = 1j * STEP * np.eye(x.size).reshape(-1, *x.shape)
    return np.stack([np.imag(function(x + step)).ravel() / STEP for step in steps], axis=1)


def attention(p: Parameters, heads: int, h: Float[Array, "T D"]) -> Float[Array, "T D"]:
    """Causal softmax(q k^T / sqrt(K)) v of each head, side by side, and the output matrix."""
    q, k, v = (np.split(h @ p[name]["kernel"], heads, axis=1) for name in "qkv")
    hidden = np.where(np.tril(np.ones((len(h), len(h)))) > 0, 0, -np.inf)
    mixed = [softmax(q @ k.T / np.sqrt(k.shape[1]) + hidden) @ v for q, k, v in zip(q, k, v, strict=True)]
    return np.concatenate(mixed, axis=1) @ p["o"]["kernel"]


def mlp(p: Parameters, h: Float[Array, "T D"]) -> Float[Array, "T D"]:
    return gelu(h @ p["in_"]["kernel"]) @ p["out"]["kernel"]


class Pass(NamedTuple):
    """A transformer's forward pass, the Jacobian of each block, and delta on the way back."""

    loss: float  # mean cross-entropy, in nats
    stream: list[Float[Array, "T D"]]  # x_l, l = 0 to L
    blocks: list[Float[Array, "T*D T*D"]]  # dx_(l+1)/dx_l
    delta: list[Float[Array, "T D"]]  # dL/dx_l
    embed: Float[Array, "V D"]  # dL/d embedding table, as a lookup
    head: Float[Array, "V D"]  # dL/d head's table


def transformer(params: Parameters, tokens: Int[Array, "T"], targets: Int[Array, "T"], heads: int, eps: float) -> Pass:
    """Learned positions, pre-LN blocks (Xiong et al. 2020, 2002.04745), a final RMS norm, a head, no biases.

    A block is x + attention(N(x)), then x + mlp(N(x)), so its Jacobian is (I + J_mlp J_N)(I + J_attn J_N), and
    dL/dE = S^T J_0^T J_1^T ... J_(L-1)^T J_N^T H^T (p - y) / T, with S the one-hot matrix of the tokens.
    """

    def norm(gain: Float[Array, "D"], x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        return gain * rms_norm(x, eps)

    x = params["embed"][tokens] + params["positions"][: len(tokens)]
    stream, blocks = [x], []
    for p in params["blocks"]:
        product = np.eye(x.size)
        for name, branch in (("norm_1", partial(attention, p["attn"], heads)), ("norm_2", partial(mlp, p["mlp"]))):
            normed = partial(norm, p[name]["gain"])
            product += jacobian(branch, normed(x)) @ jacobian(normed, x) @ product
            x = x + branch(normed(x))
        stream.append(x)
        blocks.append(product)
    normed = partial(norm, params["norm_f"]["gain"])
    p = softmax(normed(x) @ params["head"].T)
    error = (p - np.eye(p.shape[1])[targets]) / len(tokens)
    delta = [jacobian(normed, x).T @ (error @ params["head"]).ravel()]
    for block in reversed(blocks):
        delta.insert(0, block.T @ delta[0])
    delta = [each.reshape(x.shape) for each in delta]
    embed, head = np.eye(len(params["embed"]))[tokens].T @ delta[0], error.T @ normed(x)
    return Pass(float(-np.mean(np.log(p[np.arange(len(targets)), targets]))), stream, blocks, delta, embed, head)
