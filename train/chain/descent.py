"""Claims about the geometry of descent: the gradient's direction, the end of following it, and clipping."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..config.schema import OptimizerConfig
from ..core.clipping import clipped
from ..device.programs import called_once, compiled
from ..gradflow.norms import flat, frobenius
from .claim import Evidence, Pair, Tolerance, belief, claim
from .optimizer import trajectory

BOOK = "Nocedal & Wright 2006, Numerical Optimization"
CONVEX = "Nesterov 2004, Introductory Lectures on Convex Optimization, theorem 2.1.15"
SADDLE = "Lee et al. 2016, 1602.04915"
PASCANU = "Pascanu et al. 2013, 1211.5063, algorithm 1"
ANGLES, STRIDE = 36_000, 1e-4
NUDGE, SADDLE_RATE = 1e-8, 0.1
STEPS, LAMBDA = 200, 3.0


def descent(
    loss: Callable[[Array], Array], start: Float[np.ndarray, "n"], steps: int, rate: Array | float
) -> Float[Array, "steps+1 n"]:
    """Returns the path of gradient descent with the project's own SGD, its start first."""
    config = OptimizerConfig(name="sgd", schedule="constant", warmup=0, weight_decay=0.0)
    hp = {"lr": rate, "min_lr": rate, "weight_decay": 0.0}
    gradient = jax.grad(lambda params: loss(params["embed"]))
    after = trajectory(config, hp, {"embed": start}, lambda params, _: gradient(params), steps)["embed"]
    return jnp.concatenate([start[None, :], after])


@claim(
    f"{BOOK}, section 2.2",
    f"the best of {ANGLES:,} directions, by the function's values alone; the angle and norm of jax.grad",
    Tolerance(5e-4, "directions are 1.7e-4 radians apart: the error is up to half of that, at an angle of 0.3"),
)
def steepest() -> Evidence:
    """The gradient points where the function rises fastest, and -∇f where it falls fastest"""

    def hill(x: Float[Array, "2 ..."]) -> Array:
        return jnp.sin(x[0]) * jnp.exp(0.3 * x[1]) + 0.5 * x[0] * x[1] ** 2

    at, angles = np.array([0.4, 0.7]), 2 * np.pi * np.arange(ANGLES) / ANGLES
    ring = STRIDE * np.stack([np.cos(angles), np.sin(angles)])
    ahead, behind = np.asarray(called_once(hill, np.stack([at[:, None] + ring, at[:, None] - ring], axis=1)))
    rise, gradient = (ahead - behind) / (2 * STRIDE), np.asarray(called_once(jax.grad(hill), at))
    angle = np.arctan2(gradient[1], gradient[0]) % (2 * np.pi)
    pairs = [
        Pair(angles[rise.argmax()], angle, "direction, radians"),
        Pair(angles[rise.argmin()], (angle + np.pi) % (2 * np.pi), "steepest descent, radians"),
        Pair(rise.max(), np.linalg.norm(gradient), "slope there"),
    ]
    return Evidence(pairs, f"{ANGLES:,} directions tried")


@claim(f"{BOOK}, section 2.2", "∇f of logsumexp(A x) by hand; jax.jvp along u")
def directional() -> Evidence:
    """The slope in a direction u is ∇f · u, so none of 1000 is steeper than |∇f|"""
    rng = np.random.default_rng(8)
    a, x = rng.normal(size=(9, 6)), rng.normal(size=6)
    gradient = a.T @ (np.exp(a @ x) / np.exp(a @ x).sum())
    directions = rng.normal(size=(1000, 6))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    slope = jax.vmap(lambda u: jax.jvp(lambda x: jax.nn.logsumexp(a @ x), (x,), (u,))[1])
    measured, size = np.asarray(called_once(slope, directions)), float(np.linalg.norm(gradient))
    above = max(0.0, float(np.abs(measured).max()) - size)  # nothing, by Cauchy and Schwarz
    return Evidence([Pair(directions @ gradient, measured, "∇f · u"), Pair(0.0, above, "above |∇f|", size)])


@claim(
    "calculus: f is constant along the curve",
    "0, against the terms that cancel; jax.grad times the tangents of x²/4 + y² = 1 and x² y = 2 by hand",
)
def level_curve() -> Evidence:
    """The gradient is perpendicular to the level curve: ∇f · tangent = 0"""
    t = np.linspace(0.2, 1.4, 7)
    curves = {
        "x²/4 + y²": (lambda x: x[0] ** 2 / 4 + x[1] ** 2, (2 * np.cos(t), np.sin(t)), (-2 * np.sin(t), np.cos(t))),
        "x² y": (lambda x: x[0] ** 2 * x[1], (t, 2 / t**2), (np.ones(7), -4 / t**3)),
    }
    pairs = []
    for name, (f, point, tangent) in curves.items():
        terms = called_once(jax.vmap(jax.grad(f)), np.stack(point, axis=1)) * np.stack(tangent, axis=1)
        pairs.append(Pair(np.zeros(len(t)), terms.sum(axis=1), name, float(np.abs(terms).max())))
    return Evidence(pairs)


@cache
def least_squares() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns 400 steps of descent at 1/λ_max on |A w - b|² / 2, numpy's solution, and the eigenvalues λ of AᵀA."""
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=(30, 4)), rng.normal(size=30)
    eigenvalues = np.linalg.eigvalsh(a.T @ a)
    walk = partial(descent, lambda w: jnp.sum(jnp.square(a @ w - b)) / 2, np.ones(4), 400)
    return np.asarray(called_once(walk, 1 / eigenvalues[-1])), np.linalg.lstsq(a, b)[0], eigenvalues


@claim(
    CONVEX,
    "numpy's least squares; the project's sgd after 400 steps",
    Tolerance(1e-10, "the minimum is known to rounding times the problem's condition"),
)
def convex() -> Pair:
    """On a convex function gradient descent at 1/λ reaches the minimum (λ: the largest eigenvalue)"""
    path, solution, _ = least_squares()
    return Pair(solution, path[-1])


@claim(
    "each eigendirection shrinks by 1 - λ_i/λ_max in a step",
    "the bound; the distance after each of 20 steps of the project's sgd",
    relation="<=",
    each=True,
)
def convex_rate() -> Pair:
    """Its distance from there after t steps is at most (1 - λ_min/λ_max)^t of the first"""
    path, solution, eigenvalues = least_squares()
    distance = np.linalg.norm(path[:21] - solution, axis=1)
    return Pair((1 - eigenvalues[0] / eigenvalues[-1]) ** np.arange(1, 21) * distance[0], distance[1:])


def bowl(x: Float[Array, "2"]) -> Array:
    """A saddle at 0, between two minima (0, ±1) of value -1/4."""
    return x[0] ** 2 / 2 - x[1] ** 2 / 2 + x[1] ** 4 / 4


@cache
def from_the_saddle() -> np.ndarray:
    return np.asarray(called_once(partial(descent, bowl, np.array([1.0, NUDGE]), 600), SADDLE_RATE))


@claim(SADDLE, "-1 and 1, and 0; jax.hessian and jax.grad of x²/2 - y²/2 + y⁴/4 at the origin")
def saddle() -> Evidence:
    """A saddle: ∇f is 0 and the Hessian has eigenvalues of both signs"""
    gradient, hessian = called_once(lambda x: (jax.grad(bowl)(x), jax.hessian(bowl)(x)), jnp.zeros(2))
    eigenvalues = np.linalg.eigvalsh(np.asarray(hessian))
    return Evidence([Pair([-1.0, 1.0], eigenvalues, "Hessian"), Pair(np.zeros(2), gradient, "∇f", 1.0)])


@claim(
    SADDLE,
    "1e-8 · 1.1^t; y after each of 100 steps of the project's sgd",
    Tolerance(1e-6, "y⁴/4 bends the slope by y², 2e-8 in the end"),
    each=True,
)
def saddle_is_left() -> Pair:
    """Gradient descent leaves a saddle: from 1e-8 next to it, y grows by 1 + η a step"""
    steps = np.arange(100, 0, -1)
    return Pair(NUDGE * (1 + SADDLE_RATE) ** steps, from_the_saddle()[steps, 1])


@claim(SADDLE, "by hand; the project's sgd after 600 steps")
def saddle_ends() -> Evidence:
    """It ends in the minimum at (0, 1), where the function is -1/4"""
    end = from_the_saddle()[-1]
    return Evidence([Pair(-0.25, bowl(end), "value"), Pair([0.0, 1.0], end, "where")])


@belief(
    "widely told; only from a start that is exactly on the way in, else it takes ln(1/distance)/ln(1+η) steps",
    "0, the saddle's value; where the project's sgd is after 600 steps",
)
def saddle_traps() -> Pair:
    """“Gradient descent gets stuck in saddle points”"""
    return Pair(0.0, bowl(from_the_saddle()[-1]))


@cache
@claim(
    "x - η λ x = (1 - η λ) x",
    "powers of |1 - ηλ|; the project's sgd, 200 steps on both sides of 2/λ",
    each=True,
    axes=("step t", "distance from the minimum"),
)
def quadratic() -> Evidence:
    """On λx²/2 gradient descent is at |1 - ηλ|^t: it shrinks below η = 2/λ, stands at it, grows past it"""
    factors = np.array([0.9, 0.99, 1.0, 1.01])  # of 2/λ
    predicted = np.abs(1 - 2 * factors)[:, None] ** np.arange(STEPS + 1)
    walks = jax.vmap(partial(descent, lambda x: jnp.sum(LAMBDA * jnp.square(x) / 2), np.ones(1), STEPS))
    measured = np.abs(called_once(walks, factors * (2 / LAMBDA)))[:, :, 0]
    curves = zip(predicted, measured, factors, strict=True)
    ends = Pair(predicted[:, -1], measured[:, -1], "in the end")
    return Evidence([ends, *(Pair(p, m, f"η = {factor:g} · 2/λ") for p, m, factor in curves)])


@claim(
    "the same in every eigendirection; the largest λ comes first",
    "2 over numpy's largest eigenvalue; bisection for the rate from which the project's sgd moves away",
    Tolerance(1e-9, "30 halvings leave 2e-10"),
)
def threshold() -> Evidence:
    """In several dimensions gradient descent diverges exactly past 2/λ_max"""
    basis = np.linalg.qr(np.random.default_rng(10).normal(size=(5, 5)))[0]
    matrix = basis @ np.diag([0.3, 0.5, 1.0, 1.7, 3.1]) @ basis.T
    top = np.linalg.eigvalsh(matrix)[-1]

    def grows(rate: Array) -> Array:
        # After so many steps only the fastest direction is left: does one more take it further out?
        path = descent(lambda x: x @ matrix @ x / 2, np.ones(5), 300, rate)
        return jnp.linalg.norm(path[-1]) > jnp.linalg.norm(path[-2])

    low, high = 1.9 / top, 2.1 / top
    outwards = compiled(grows, (low,), once=True)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if outwards(middle) else (middle, high)
    return Evidence([Pair(2 / top, (low + high) / 2)], "30 halvings of [1.9, 2.1] / λ")


@belief(
    "false past 2/λ",
    "at most the first distance, 1; the project's sgd after 200 steps at η = 1.01 · 2/λ",
    relation="<=",
)
def any_rate() -> Pair:
    """“On a convex function gradient descent comes closer, at any rate: it may just be slow”"""
    distances = quadratic().pairs[-1].measured
    return Pair(distances[0], distances[-1])


def clip(**hp: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns a gradient, flat, before and after the project's clipping."""
    draw = np.random.default_rng(11).normal
    before = {"embed": draw(size=(3, 4)), "head": 5 * draw(size=(2, 4))}
    after = called_once(lambda grads: flat(clipped(grads, grads, frobenius(flat(grads)), hp)[0]), before)
    return np.concatenate([np.ravel(leaf) for leaf in before.values()]), np.asarray(after)


@claim(PASCANU, "g/|g|; the same of what the project's clipping leaves")
def clip_direction() -> Pair:
    """Clipping by the global norm keeps the gradient's direction"""
    before, after = clip(clip=0.5)
    return Pair(before / np.linalg.norm(before), after / np.linalg.norm(after))


@claim(
    PASCANU,
    "min(|g|, limit) for limits 0.5, 2 and 1000; the norm of what the project's clipping leaves",
    Tolerance(1e-6, "the factor is a float32 in every dtype: 2^-24 = 6e-8, times a few"),
)
def clip_norm() -> Pair:
    """Clipping makes the norm min(|g|, limit)"""
    limits = np.array([0.5, 2.0, 1e3])  # the last one is longer than the gradient
    before, after = zip(*(np.linalg.norm(clip(clip=limit), axis=1) for limit in limits), strict=True)
    return Pair(np.minimum(limits, before), after)


@belief(
    "true of the norm alone; entry by entry it turns the gradient",
    "g/|g|; the same after the project's clip_value of 1",
)
def clip_value_direction() -> Pair:
    """“Clipping keeps the direction”, also entry by entry"""
    before, after = clip(clip_value=1.0)
    return Pair(before / np.linalg.norm(before), after / np.linalg.norm(after))
