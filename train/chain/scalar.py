"""Claims about scalars and chains: products of local derivatives, the skip's 1 + f', tables and rules."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from model.rules import ACTIVATIONS
from model.taps import tap

from ..device.programs import called_once
from ..gradflow.delta import delta_of
from ..gradflow.norms import log10
from .claim import Evidence, Pair, Tolerance, belief, claim
from .reference import gelu_slope, sigmoid

LAYERS, SLOPE = 100, 0.9
DEEP = 10_000  # layers; 0.9^10000 is below the smallest float64
RULES = "Rumelhart, Hinton & Williams 1986, Nature 323"
SKIP = "He et al. 2016, 1603.05027, eq. 5"
DRAW = np.random.default_rng(2).normal
ROOT, X, DELTA = DRAW(size=(6, 6)), DRAW(size=6), DRAW(size=6)  # A, x and δ of a layer x + W tanh(x)


def composed(layer: Callable[[Any, Any], Any], x: Any, inputs: Any) -> Any:
    """Returns layer(... layer(layer(x, inputs[0]), inputs[1]) ..., inputs[-1])."""
    return jax.lax.scan(lambda x, each: (layer(x, each), None), x, inputs)[0]


@claim(
    RULES,
    "powers of 0.9; jax.grad by the input of every layer of a scan",
    each=True,
    axes=("layer l", "δ_l, slope of the output by the input of layer l"),
)
def slope() -> Pair:
    """100 layers of slope 0.9: δ_l = 0.9^(100 - l), so 0.0000266 of it reaches the first"""
    end = jax.grad(lambda offsets: composed(lambda x, each: SLOPE * (x + each), 1.0, offsets[:-1]) + offsets[-1])
    return Pair(SLOPE ** (LAYERS - np.arange(LAYERS + 1.0)), called_once(end, np.zeros(LAYERS + 1)))


@claim(
    "model/taps.py",
    "10,000 log10 0.9; the project's taps, powers of two taken out on the way back",
    Tolerance(1e-10, "10,000 roundings of 1.1e-16 in a row, and of the logarithm"),
)
def underflow() -> Pair:
    """10,000 layers of slope 0.9: log10 |δ_0| = -457.6, which no float64 can hold and the taps still measure"""

    def layer(state: tuple[Array, Array], slot: Array) -> tuple[Array, Array]:
        x, exponent = tap(*state, slot)
        return SLOPE * x, exponent

    def end(slots: Float[Array, "L+1 2"]) -> Array:
        x, exponent = composed(layer, (jnp.ones(1), jnp.zeros((), jnp.float32)), slots[:-1])
        return jnp.sum(tap(x, exponent, slots[-1])[0])

    delta = called_once(lambda: delta_of(end, DEEP, "float64"))
    return Pair((DEEP - np.arange(DEEP + 1.0)) * np.log10(SLOPE), log10(delta))


@claim(RULES, "the product, with cos by hand at each x_l; jax.grad of the whole")
def product() -> Pair:
    """The slope of a composition is the product of the local slopes: ∏ f_l'(x_l), 100 layers sin(a x) + x/2"""
    rates = np.random.default_rng(1).uniform(0.5, 1.5, LAYERS)
    x, slopes = 0.3, 1.0
    for rate in rates:
        slopes *= rate * np.cos(rate * x) + 0.5
        x = np.sin(rate * x) + 0.5 * x
    end = jax.grad(lambda x: composed(lambda x, rate: jnp.sin(rate * x) + 0.5 * x, x, rates))
    return Pair(slopes, called_once(end, 0.3))


@cache
@claim(SKIP, "1 + f'; jax.grad of x + a tanh(x - 0.2)", each=True)
def skip() -> Pair:
    """x + f(x) has the slope 1 + f', for f' = -2.5, -1.5, -0.5, 0.5, 1.5"""
    slopes = np.array([-2.5, -1.5, -0.5, 0.5, 1.5])  # at x = 0.2 the slope of a tanh is a
    measured = jax.vmap(jax.grad(lambda x, a: x + a * jnp.tanh(x - 0.2)), in_axes=(None, 0))
    return Pair(1 + slopes, np.asarray(called_once(measured, 0.2, slopes)))


@belief("widely told; false for every f' < 0: it shrinks between -2 and 0", "1; jax.grad at f' = -0.5", relation=">=")
def skip_is_at_least_1() -> Pair:
    """“1 + f' is always at least 1, so a skip never shrinks the gradient”"""
    return Pair(1.0, skip().measured[2])


@cache
@claim(SKIP, "powers of 1 + f'; jax.grad through a scan", each=True)
def skips_vanish() -> Pair:
    """100 layers x + f(x) with f' = -0.5 leave 0.5^100 of δ; with f' = +0.5 they make it 1.5^100 times as large"""
    end = jax.grad(lambda x, slope: composed(lambda x, _: x + slope * x, x, np.zeros(LAYERS)))
    return Pair([0.5**LAYERS, 1.5**LAYERS], [called_once(end, 1.0, slope) for slope in (-0.5, 0.5)])


@belief(
    "widely told; the branch's part can point the other way",
    "at least 1; jax.grad through 100 layers with f' = -0.5",
    relation=">=",
)
def skips_never_vanish() -> Pair:
    """“The skip passes the gradient on whole and the branch only adds to it, so nothing vanishes”"""
    return Pair(1.0, skips_vanish().measured[0])


@cache
@claim(SKIP, "J = W diag(1 - tanh²) in numpy; jax.vjp of x + W tanh(x)")
def matrix_skip() -> Pair:
    """x + f(x) hands down (I + J)ᵀδ, J the branch's Jacobian"""
    w = -0.5 * ROOT @ ROOT.T / np.linalg.norm(ROOT, 2) ** 2  # -A Aᵀ makes J point backwards
    by_hand = (np.eye(6) + w @ np.diag(1 - np.tanh(X) ** 2)).T @ DELTA
    return Pair(by_hand, called_once(lambda x: jax.vjp(lambda x: x + w @ jnp.tanh(x), x)[1](DELTA)[0], X))


@belief(
    "widely told; false where the eigenvalues of J + Jᵀ are negative enough",
    "|δ|; the norm of jax.vjp of x + W tanh(x) with W = -A Aᵀ / 2|A|²",
    relation=">=",
)
def matrix_skip_is_at_least_1() -> Pair:
    """“|(I + J)ᵀδ| is at least |δ|, because of the I”"""
    return Pair(np.linalg.norm(DELTA), np.linalg.norm(matrix_skip().measured))


@claim("Veit et al. 2016, 1605.06431, section 3", "all 1024 products added up; jax.grad through 10 layers x + sin(a x)")
def paths() -> Pair:
    """∏ (1 + f_l') is a sum over the 2^L paths through L skips: 1024 of them for L = 10"""
    slopes = np.random.default_rng(3).normal(size=10)
    chosen = (np.arange(2**10)[:, None] >> np.arange(10)) & 1  # the branches that a path takes
    end = jax.grad(lambda x: composed(lambda x, a: x + jnp.sin(a * x), x, slopes))
    return Pair(np.where(chosen > 0, slopes, 1.0).prod(axis=1).sum(), called_once(end, 0.0))


Rule = tuple[Callable[[Any], Any], Callable[[Any], Any]]
# A function for JAX and its derivative for numpy, at positive points, where all of them are defined.
TABLE: dict[str, Rule] = {
    "x^5": (lambda x: x**5, lambda x: 5 * x**4),
    "1/x": (lambda x: 1 / x, lambda x: -1 / x**2),
    "sqrt x": (jnp.sqrt, lambda x: 0.5 / np.sqrt(x)),
    "exp x": (jnp.exp, np.exp),
    "2^x": (lambda x: 2.0**x, lambda x: np.log(2) * 2.0**x),
    "ln x": (jnp.log, lambda x: 1 / x),
    "sin x": (jnp.sin, np.cos),
    "cos x": (jnp.cos, lambda x: -np.sin(x)),
    "tan x": (jnp.tan, lambda x: 1 / np.cos(x) ** 2),
    "arctan x": (jnp.arctan, lambda x: 1 / (1 + x**2)),
    "tanh x": (jnp.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid x": (jax.nn.sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
    "softplus x": (jax.nn.softplus, sigmoid),
}
# The model's own, on both sides of zero.
ACTIVE: dict[str, Callable[[Any], Any]] = {
    "gelu": gelu_slope,
    "relu": lambda x: (x > 0) * 1.0,
    "relu2": lambda x: 2 * np.maximum(x, 0),
    "silu": lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    "linear": np.ones_like,
}


def differentiated(rules: Mapping[str, Rule], *points: float) -> Evidence:
    x = np.array(points)
    measured = called_once(lambda x: [jax.vmap(jax.grad(function))(x) for function, _ in rules.values()], x)
    pairs = zip(rules.items(), measured, strict=True)
    return Evidence([Pair(slope(x), m, name) for (name, (_, slope)), m in pairs])


@claim("calculus", "each derivative by hand in numpy; jax.grad at four points", each=True)
def table() -> Evidence:
    """The table of derivatives: x^5, 1/x, sqrt x, exp x, 2^x, ln x, sin x, cos x, tan x, arctan x, tanh x, sigmoid x,
    softplus x"""
    return differentiated(TABLE, 0.3, 0.9, 1.4, 2.6)


@claim("model/mlp.py", "by hand in numpy; jax.grad of the project's functions on both sides of 0", each=True)
def activations() -> Evidence:
    """The slopes of the model's activations: gelu, relu, relu2, silu, linear"""
    rules = {name: (ACTIVATIONS[name].function(), slope) for name, slope in ACTIVE.items()}
    return differentiated(rules, 0.7, 2.0, -0.4, -1.3)


@claim("calculus", "by hand in numpy; jax.grad at three points", each=True)
def rules() -> Evidence:
    """(uv)' = u'v + uv', (u/v)' = (u'v - uv')/v², u(v)' = u'(v) v', and what is used twice (x^x) gets both parts"""
    x = np.array([0.4, 1.1, 1.9])
    u, du, v, dv = np.sin(x), np.cos(x), np.exp(x**2), 2 * x * np.exp(x**2)
    functions: dict[str, Rule] = {
        "product": (lambda x: jnp.sin(x) * jnp.exp(x**2), lambda _: du * v + u * dv),
        "quotient": (lambda x: jnp.sin(x) / jnp.exp(x**2), lambda _: (du * v - u * dv) / v**2),
        "composition": (lambda x: jnp.sin(jnp.exp(x**2)), lambda _: np.cos(v) * dv),
        "used twice": (lambda x: x**x, lambda x: (1 + np.log(x)) * x**x),
    }
    return differentiated(functions, *x)
