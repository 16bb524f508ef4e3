"""Formulas and their derivatives in numpy, from which the claims predict: without JAX, so that they are independent.

Axes as in model/__init__.py, one sequence: x [T, D]. A Jacobian of y [T, D] is [T, D, T, D], outputs first.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray
Parameters = Mapping[str, Any]  # nested, as model/network.py has them


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    """The tanh form (Hendrycks & Gimpel 2016, 1606.08415)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: Array) -> Array:
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)


def softmax(x: Float[Array, "... V"]) -> Float[Array, "... V"]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_jacobian(p: Float[Array, "V"]) -> Float[Array, "V V"]:
    """diag(p) - p p^T, of p = softmax(z) by z."""
    return np.diag(p) - np.outer(p, p)


def one_hot(targets: Int[Array, "N"], classes: int) -> Float[Array, "N V"]:
    return np.eye(classes)[targets]


class Map(NamedTuple):
    """A function's value at a point, and its Jacobian there."""

    value: Float[Array, "T D"]
    jacobian: Float[Array, "T D T D"]

    @property
    def matrix(self) -> Float[Array, "outputs inputs"]:
        return self.jacobian.reshape(self.value.size, -1)

    def after(self, inner: "Map") -> "Map":
        """Returns the composition of this map with `inner` by the chain rule."""
        product = self.matrix @ inner.matrix
        return Map(self.value, product.reshape(*self.value.shape, *inner.jacobian.shape[2:]))

    def plus_input(self, x: Float[Array, "T D"]) -> "Map":
        """x + f(x), whose Jacobian is I + J."""
        return Map(x + self.value, self.jacobian + np.eye(x.size).reshape(self.jacobian.shape))


def _by_token(value: Float[Array, "T E"], jacobians: Float[Array, "T E D"]) -> Map:
    """Returns the map that applies to each token by itself."""
    T, E, D = jacobians.shape
    whole = np.zeros((T, E, T, D))
    for t in range(T):
        whole[t, :, t, :] = jacobians[t]
    return Map(value, whole)


def rms_norm(x: Float[Array, "T D"], gain: Float[Array, "D"], eps: float) -> Map:
    """g x / r with r = sqrt(mean(x^2) + eps); its Jacobian is diag(g) (I - x x^T / (D r^2)) / r."""
    D = x.shape[1]
    r = np.sqrt((x**2).mean(axis=1) + eps)
    jacobians = [np.diag(gain) @ (np.eye(D) - np.outer(row, row) / (D * s**2)) / s for row, s in zip(x, r, strict=True)]
    return _by_token(gain * x / r[:, None], np.stack(jacobians))


def linear(x: Float[Array, "T D"], kernel: Float[Array, "D E"]) -> Map:
    """x W, whose Jacobian is W^T for each token."""
    return _by_token(x @ kernel, np.stack([kernel.T] * len(x)))


def mlp(h: Float[Array, "T D"], p: Parameters) -> Map:
    """gelu(h W_in) W_out."""
    inner = linear(h, p["in_"]["kernel"])
    slopes = np.stack([np.diag(row) for row in gelu_slope(inner.value)])
    active = _by_token(gelu(inner.value), slopes).after(inner)
    return linear(active.value, p["out"]["kernel"]).after(active)


def attention(h: Float[Array, "T D"], p: Parameters, heads: int) -> Map:
    """Causal softmax(q k^T / sqrt(K)) v of each head, side by side, and the output matrix.

    A weight a_ts depends on the scores s_tr through the softmax's Jacobian, a score on q_t and on k_s.
    """
    T, D = h.shape
    K, eye = D // heads, np.eye(T)
    value, jacobian = np.zeros((T, D)), np.zeros((T, D, T, D))
    for head in range(heads):
        columns = slice(head * K, (head + 1) * K)
        w_q, w_k, w_v = (p[name]["kernel"][:, columns] for name in "qkv")
        q, k, v = h @ w_q, h @ w_k, h @ w_v
        scores = np.where(np.tril(np.ones((T, T))) > 0, q @ k.T / np.sqrt(K), -np.inf)
        a = softmax(scores)
        by_q = np.einsum("tu,jk,sk->tsuj", eye, w_q, k)
        by_k = np.einsum("su,jk,tk->tsuj", eye, w_k, q)
        softmaxes = np.stack([softmax_jacobian(row) for row in a])
        weights = np.einsum("tsr,truj->tsuj", softmaxes, (by_q + by_k) / np.sqrt(K))
        value[:, columns] = a @ v
        jacobian[:, columns] = np.einsum("tsuj,sk->tkuj", weights, v) + np.einsum("tu,jk->tkuj", a, w_v)
    return linear(value, p["o"]["kernel"]).after(Map(value, jacobian))


def block(x: Float[Array, "T D"], p: Parameters, heads: int, eps: float) -> Map:
    """x + attention(N(x)), then x + mlp(N(x)): pre-LN with an RMS norm (Xiong et al. 2020, 2002.04745)."""
    normed = rms_norm(x, p["norm_1"]["gain"], eps)
    first = attention(normed.value, p["attn"], heads).after(normed).plus_input(x)
    normed = rms_norm(first.value, p["norm_2"]["gain"], eps)
    second = mlp(normed.value, p["mlp"]).after(normed).plus_input(first.value)
    return second.after(first)


class Pass(NamedTuple):
    """A transformer's forward pass with all its Jacobians, and delta on the way back."""

    loss: float  # mean cross-entropy, in nats
    blocks: list[Map]
    delta: list[Float[Array, "T D"]]  # dL/dx_l, l = 0 to L
    embed: Float[Array, "V D"]  # dL/d embedding table, as a lookup
    head: Float[Array, "V D"]  # dL/d head's table


def transformer(params: Parameters, tokens: Int[Array, "T"], targets: Int[Array, "T"], heads: int, eps: float) -> Pass:
    """Learned positions, pre-LN blocks, a final RMS norm, a head of its own; no biases.

    dL/dE = S^T J_0^T J_1^T ... J_(L-1)^T J_N^T H^T (p - y) / T, with S the one-hot matrix of the tokens.
    """
    x, blocks = params["embed"][tokens] + params["positions"][: len(tokens)], []
    layers = len(params["blocks"]["norm_1"]["gain"])
    for layer in range(layers):
        blocks.append(block(x, _layer(params["blocks"], layer), heads, eps))
        x = blocks[-1].value
    normed = rms_norm(x, params["norm_f"]["gain"], eps)
    logits = linear(normed.value, params["head"].T)
    p = softmax(logits.value)
    error = (p - one_hot(targets, p.shape[1])) / len(tokens)
    delta = [(logits.after(normed).matrix.T @ error.reshape(-1)).reshape(x.shape)]
    for each in reversed(blocks):
        delta.insert(0, (each.matrix.T @ delta[0].reshape(-1)).reshape(x.shape))
    embed, head = one_hot(tokens, len(params["embed"])).T @ delta[0], error.T @ normed.value
    return Pass(float(-np.mean(np.log(p[np.arange(len(targets)), targets]))), blocks, delta, embed, head)


def _layer(blocks: Parameters, layer: int) -> dict[str, Any]:
    return {name: _layer(leaf, layer) if isinstance(leaf, Mapping) else leaf[layer] for name, leaf in blocks.items()}


# Finite differences. Steps relative to what is varied: long ones are truncated, short ones stay on one side of a kink.
STEPS: Float[Array, "K"] = 4.0 ** -np.arange(2, 11)


class Slopes(NamedTuple):
    """Derivatives, and an estimate of their errors."""

    value: Float[Array, "n"]
    doubt: Float[Array, "n"]


def slopes(up: Float[Array, "n K"], down: Float[Array, "n K"], sizes: Float[Array, "n"]) -> Slopes:
    """Returns the derivatives of n functions from their values at +size * STEPS and -size * STEPS.

    Each two neighbouring steps are extrapolated to zero (Richardson 1911), which leaves an error of h^4. The result is
    the extrapolation that differs least from its neighbour, with the rounding of the values added to that difference
    (Ridders 1982, "Accurate computation of F'(x) and F'(x)F''(x)").

    >>> h = STEPS[None, :]
    >>> bool(abs(slopes(np.exp(h), np.exp(-h), np.ones(1)).value[0] - 1) < 1e-11)
    True
    """
    steps = sizes[:, None] * STEPS[None, :]
    central = (up - down) / (2 * steps)
    better = (16 * central[:, 1:] - central[:, :-1]) / 15
    rounding = 4 * np.finfo(np.float64).eps * np.maximum(np.abs(up), np.abs(down)) / steps
    doubt = np.abs(np.diff(better, axis=1)) + rounding[:, 2:]
    best = doubt.argmin(axis=1)[:, None]
    return Slopes(np.take_along_axis(better[:, 1:], best, 1)[:, 0], np.take_along_axis(doubt, best, 1)[:, 0])
