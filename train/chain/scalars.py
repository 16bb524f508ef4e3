"""Claims about scalars and chains: products of local derivatives, the skip's 1 + f', tables and rules."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from model.mlp import ACTIVATIONS
from model.taps import tap

from ..core.compile import called_once
from ..gradflow.norms import Norm, log10
from . import by_hand
from .claim import COUNTEREXAMPLE, ROUNDING, Claim, Evidence, Pair, Tolerance, evidence

LAYERS, SLOPE = 100, 0.9
DEEP = 10_000  # layers; 0.9^10000 is below the smallest float64
RULES = "Rumelhart, Hinton & Williams 1986, Nature 323"
SKIP = "He et al. 2016, 1603.05027, eq. 5"


def _along_a_chain() -> Evidence:
    def end(offsets: Float[Array, "L+1"]) -> Array:
        def layer(x: Array, offset: Array) -> tuple[Array, None]:
            return SLOPE * (x + offset), None

        return jax.lax.scan(layer, jnp.ones(()), offsets[:-1])[0] + offsets[-1]

    delta = called_once(jax.grad(end), jnp.zeros(LAYERS + 1))
    return evidence(SLOPE ** (LAYERS - np.arange(LAYERS + 1.0)), delta)


def _below_the_smallest_number() -> Evidence:
    def end(slots: Float[Array, "L+1 2"]) -> Array:
        def layer(state: tuple[Array, Array], slot: Array) -> tuple[tuple[Array, Array], None]:
            x, exponent = tap(*state, slot)
            return (SLOPE * x, exponent), None

        start = (jnp.ones(1), jnp.zeros((), jnp.float32))
        (x, exponent), _ = jax.lax.scan(layer, start, slots[:-1])
        return jnp.sum(tap(x, exponent, slots[-1])[0])

    slots = called_once(jax.grad(end), jnp.zeros((DEEP + 1, 2)))
    measured = log10(Norm(slots[:, 0], slots[:, 1]))
    return evidence((DEEP - np.arange(DEEP + 1.0)) * np.log10(SLOPE), measured)


def _local_derivatives() -> Evidence:
    rates = np.random.default_rng(1).uniform(0.5, 1.5, LAYERS)
    x, product = 0.3, 1.0
    for rate in rates:
        product *= rate * np.cos(rate * x) + 0.5
        x = np.sin(rate * x) + 0.5 * x

    def end(x: Array, rates: Array) -> Array:
        return jax.lax.scan(lambda x, rate: (jnp.sin(rate * x) + 0.5 * x, None), x, rates)[0]

    return evidence(product, called_once(jax.grad(end), jnp.asarray(0.3), jnp.asarray(rates)))


SLOPES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5])


def _one_plus_slope(slopes: np.ndarray) -> np.ndarray:
    """d/dx of x + a tanh(x - 0.2) at x = 0.2, where f' = a."""

    def slope(a: Array) -> Array:
        return jax.grad(lambda x: x + a * jnp.tanh(x - 0.2))(jnp.asarray(0.2))

    return np.asarray(called_once(jax.vmap(slope), jnp.asarray(slopes)))


@cache
def _stack_of_skips(slope: float) -> float:
    """dL/dx_0 over dL/dx_L of 100 layers x + slope * x."""

    def end(x: Array) -> Array:
        return jax.lax.scan(lambda x, _: (x + slope * x, None), x, None, length=LAYERS)[0]

    return float(called_once(jax.grad(end), jnp.ones(())))


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W, x and delta of the layer x + W tanh(x); -W W^T makes J a map that points backwards."""
    draw = np.random.default_rng(2).normal
    root, x, delta = draw(size=(6, 6)), draw(size=6), draw(size=6)
    return -0.5 * root @ root.T / np.linalg.norm(root, 2) ** 2, x, delta


@cache
def _pulled_back() -> np.ndarray:
    """(I + J)^T delta as JAX has it."""
    w, x, delta = _matrices()

    def pulled(x: Array, delta: Array) -> Array:
        return jax.vjp(lambda x: x + jnp.asarray(w) @ jnp.tanh(x), x)[1](delta)[0]

    return np.asarray(called_once(pulled, x, delta))


def _matrix_skip() -> Evidence:
    w, x, delta = _matrices()
    jacobian = w @ np.diag(1 - np.tanh(x) ** 2)
    return evidence((np.eye(6) + jacobian).T @ delta, _pulled_back())


def _matrix_belief() -> Evidence:
    return evidence(np.linalg.norm(_matrices()[2]), np.linalg.norm(_pulled_back()))


def _paths() -> Evidence:
    slopes = np.random.default_rng(3).normal(size=10)
    chosen = (np.arange(2**10)[:, None] >> np.arange(10)) & 1  # which branches a path takes
    total = np.where(chosen > 0, slopes, 1.0).prod(axis=1).sum()

    def end(x: Array) -> Array:
        return jax.lax.scan(lambda x, a: (x + jnp.sin(a * x), None), x, jnp.asarray(slopes))[0]

    return evidence(total, called_once(jax.grad(end), jnp.zeros(())))


Rule = tuple[Callable[[Any], Any], Callable[[Any], Any]]
# A function for JAX, its derivative for numpy. Taken at positive points, which all of them have.
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
    "sigmoid x": (jax.nn.sigmoid, lambda x: by_hand.sigmoid(x) * (1 - by_hand.sigmoid(x))),
    "softplus x": (jax.nn.softplus, by_hand.sigmoid),
}
# The model's own, on both sides of zero.
ACTIVE: dict[str, Callable[[Any], Any]] = {
    "gelu": by_hand.gelu_slope,
    "relu": lambda x: (x > 0) * 1.0,
    "relu2": lambda x: 2 * np.maximum(x, 0),
    "silu": lambda x: by_hand.sigmoid(x) * (1 + x * (1 - by_hand.sigmoid(x))),
    "linear": np.ones_like,
}


def _compared(rules: Mapping[str, Rule], points: np.ndarray) -> Evidence:
    def measured(points: Array) -> list[Array]:
        return [jax.vmap(jax.grad(function))(points) for function, _ in rules.values()]

    pairs = zip(rules.items(), called_once(measured, points), strict=True)
    return Evidence(tuple(Pair(slope(points), found, name) for (name, (_, slope)), found in pairs))


def _table() -> Evidence:
    return _compared(TABLE, np.array([0.3, 0.9, 1.4, 2.6]))


def _activations() -> Evidence:
    rules = {name: (ACTIVATIONS[name], slope) for name, slope in ACTIVE.items()}
    return _compared(rules, np.array([0.7, 2.0, -0.4, -1.3]))


def _rules() -> Evidence:
    x = np.array([0.4, 1.1, 1.9])
    u, du, v, dv = np.sin(x), np.cos(x), np.exp(x**2), 2 * x * np.exp(x**2)
    rules: dict[str, Rule] = {
        "product": (lambda x: jnp.sin(x) * jnp.exp(x**2), lambda _: du * v + u * dv),
        "quotient": (lambda x: jnp.sin(x) / jnp.exp(x**2), lambda _: (du * v - u * dv) / v**2),
        "composition": (lambda x: jnp.sin(jnp.exp(x**2)), lambda _: np.cos(v) * dv),
        "used twice": (lambda x: x**x, lambda x: (1 + np.log(x)) * x**x),
    }
    return _compared(rules, x)


CLAIMS = (
    Claim(
        "scalar/slope",
        "100 layers of slope 0.9: δ_l = 0.9^(100 - l), so 0.0000266 of it reaches the first",
        RULES,
        "powers of 0.9; jax.grad by the input of every layer of a scan",
        _along_a_chain,
        each=True,
        axes=("layer l", "δ_l, slope of the output by the input of layer l"),
    ),
    Claim(
        "scalar/underflow",
        "10,000 layers of slope 0.9: log10 |δ_0| = -457.6, which no float64 can hold and the taps still measure",
        "model/taps.py",
        "10,000 log10 0.9; the project's taps, powers of two taken out on the way back",
        _below_the_smallest_number,
        Tolerance(1e-10, "10,000 roundings of 1.1e-16 in a row, and of the logarithm"),
    ),
    Claim(
        "scalar/product",
        "The slope of a composition is the product of the local slopes: ∏ f_l'(x_l), 100 layers sin(a x) + x/2",
        RULES,
        "the product, with cos by hand at each x_l; jax.grad of the whole",
        _local_derivatives,
    ),
    Claim(
        "scalar/skip",
        "x + f(x) has the slope 1 + f', for f' = -2.5, -1.5, -0.5, 0.5, 1.5",
        SKIP,
        "1 + f'; jax.grad of x + a tanh(x - 0.2)",
        lambda: evidence(1 + SLOPES, _one_plus_slope(SLOPES)),
        each=True,
    ),
    Claim(
        "scalar/skip_is_at_least_1",
        "“1 + f' is always at least 1, so a skip never shrinks the gradient”",
        "widely told; false for every f' < 0: it shrinks between -2 and 0",
        "1; jax.grad at f' = -0.5",
        lambda: evidence(1.0, _one_plus_slope(np.array([-0.5]))[0]),
        COUNTEREXAMPLE,
        ">=",
        belief=True,
    ),
    Claim(
        "scalar/skips_vanish",
        "100 layers x + f(x) with f' = -0.5 leave 0.5^100 of δ; with f' = +0.5 they make it 1.5^100 times as large",
        SKIP,
        "powers of 1 + f'; jax.grad through a scan",
        lambda: evidence(np.array([0.5**LAYERS, 1.5**LAYERS]), np.array([_stack_of_skips(-0.5), _stack_of_skips(0.5)])),
        each=True,
    ),
    Claim(
        "scalar/skips_never_vanish",
        "“The skip passes the gradient on whole and the branch only adds to it, so nothing vanishes”",
        "widely told; the branch's part can point the other way",
        "at least 1; jax.grad through 100 layers with f' = -0.5",
        lambda: evidence(1.0, _stack_of_skips(-0.5)),
        COUNTEREXAMPLE,
        ">=",
        belief=True,
    ),
    Claim(
        "scalar/matrix_skip",
        "x + f(x) hands down (I + J)ᵀδ, J the branch's Jacobian",
        SKIP,
        "J = W diag(1 - tanh²) in numpy; jax.vjp of x + W tanh(x)",
        _matrix_skip,
    ),
    Claim(
        "scalar/matrix_skip_is_at_least_1",
        "“|(I + J)ᵀδ| is at least |δ|, because of the I”",
        "widely told; false where the eigenvalues of J + Jᵀ are negative enough",
        "|δ|; the norm of jax.vjp of x + W tanh(x) with W = -A Aᵀ / 2|A|²",
        _matrix_belief,
        COUNTEREXAMPLE,
        ">=",
        belief=True,
    ),
    Claim(
        "scalar/paths",
        "∏ (1 + f_l') is a sum over the 2^L paths through L skips: 1024 of them for L = 10",
        "Veit et al. 2016, 1605.06431, section 3",
        "all 1024 products added up; jax.grad through 10 layers x + sin(a x)",
        _paths,
        ROUNDING,
    ),
    Claim(
        "scalar/table",
        f"The table of derivatives: {', '.join(TABLE)}",
        "calculus",
        "each derivative by hand in numpy; jax.grad at four points",
        _table,
        each=True,
    ),
    Claim(
        "scalar/activations",
        f"The slopes of the model's activations: {', '.join(ACTIVE)}",
        "model/mlp.py",
        "by hand in numpy; jax.grad of the project's functions on both sides of 0",
        _activations,
        each=True,
    ),
    Claim(
        "scalar/rules",
        "(uv)' = u'v + uv', (u/v)' = (u'v - uv')/v², u(v)' = u'(v) v', and what is used twice (x^x) gets both parts",
        "calculus",
        "by hand in numpy; jax.grad at three points",
        _rules,
        each=True,
    ),
)
