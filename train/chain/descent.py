"""Claims about the geometry of descent: where the gradient points, where following it leads."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..config.schema import OptimizerConfig
from ..core.compile import called_once, compiled
from ..core.optimizer import transformation
from .claim import COUNTEREXAMPLE, Claim, Evidence, Pair, Tolerance, evidence

BOOK = "Nocedal & Wright 2006, Numerical Optimization"
CONVEX = "Nesterov 2004, Introductory Lectures on Convex Optimization, theorem 2.1.15"
SADDLE = "Lee et al. 2016, 1602.04915"


def _sgd(rate: Array) -> optax.GradientTransformation:
    """The project's own rule at a rate that may be traced."""
    config = OptimizerConfig(name="sgd", schedule="constant", warmup=0, weight_decay=0.0)
    hp = {"lr": rate, "min_lr": rate, "weight_decay": jnp.zeros(())}
    return transformation(config, hp, jnp.zeros((), jnp.int32), 1)


def _descent(
    loss: Callable[[Array], Array], start: Float[np.ndarray, "n"], rate: Array | float, steps: int
) -> Float[Array, "steps+1 n"]:
    """Where gradient descent has been, its start first."""
    rule = _sgd(jnp.asarray(rate))

    def step(params: dict[str, Array], _: None) -> tuple[dict[str, Array], Array]:
        grads = jax.grad(lambda p: loss(p["embed"]))(params)
        updates = rule.update(grads, rule.init(params), params)[0]
        new = jax.tree.map(jnp.add, params, updates)
        return new, new["embed"]

    with jax.numpy_dtype_promotion("standard"):
        _, been = jax.lax.scan(step, {"embed": jnp.asarray(start)}, None, length=steps)
    return jnp.concatenate([jnp.asarray(start)[None, :], been])


# Where the gradient points.


def _hill(x: Float[Array, "2"]) -> Array:
    return jnp.sin(x[0]) * jnp.exp(0.3 * x[1]) + 0.5 * x[0] * x[1] ** 2


SLOPE_AT = np.array([0.4, 0.7])
ANGLES, STRIDE = 36_000, 1e-4


def _steepest() -> Evidence:
    angles = 2 * np.pi * np.arange(ANGLES) / ANGLES
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    beside = np.stack([SLOPE_AT[:, None] + sign * STRIDE * ring.T for sign in (1, -1)], axis=1)
    up, down = np.asarray(called_once(_hill, jnp.asarray(beside)))
    rise = (up - down) / (2 * STRIDE)
    gradient = np.asarray(called_once(jax.grad(_hill), jnp.asarray(SLOPE_AT)))
    up, down = (angles[place] for place in (rise.argmax(), rise.argmin()))
    angle = np.arctan2(gradient[1], gradient[0]) % (2 * np.pi)
    return Evidence(
        (
            Pair(up, angle, "direction, radians"),
            Pair(down, (angle + np.pi) % (2 * np.pi), "steepest descent, radians"),
            Pair(rise.max(), np.linalg.norm(gradient), "slope there"),
        ),
        f"{ANGLES:,} directions tried",
    )


def _directional() -> Evidence:
    rng = np.random.default_rng(8)
    a, x = rng.normal(size=(9, 6)), rng.normal(size=6)
    gradient = a.T @ (np.exp(a @ x) / np.exp(a @ x).sum())  # of logsumexp(A x), by hand
    directions = rng.normal(size=(1000, 6))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def slope(u: Array) -> Array:
        return jax.jvp(lambda x: jax.nn.logsumexp(jnp.asarray(a) @ x), (jnp.asarray(x),), (u,))[1]

    measured = np.asarray(called_once(jax.vmap(slope), jnp.asarray(directions)))
    return Evidence((Pair(directions @ gradient, measured, "∇f · u"), _excess(measured, gradient)))


def _excess(slopes: np.ndarray, gradient: np.ndarray) -> Pair:
    """By how much the steepest is above |∇f|: by Cauchy and Schwarz, not at all."""
    size = float(np.linalg.norm(gradient))
    return Pair(0.0, max(0.0, float(np.abs(slopes).max()) - size), "above |∇f|", size)


def _level_curves() -> Evidence:
    t = np.linspace(0.2, 1.4, 7)
    curves = {
        "x²/4 + y²": (lambda x: x[0] ** 2 / 4 + x[1] ** 2, (2 * np.cos(t), np.sin(t)), (-2 * np.sin(t), np.cos(t))),
        "x² y": (lambda x: x[0] ** 2 * x[1], (t, 2 / t**2), (np.ones(7), -4 / t**3)),
    }
    pairs = []
    for name, (f, point, tangent) in curves.items():
        gradient = np.asarray(called_once(jax.vmap(jax.grad(f)), jnp.asarray(np.stack(point, axis=1))))
        terms = gradient * np.stack(tangent, axis=1)
        pairs.append(Pair(np.zeros(len(t)), terms.sum(axis=1), name, float(np.abs(terms).max())))
    return Evidence(tuple(pairs))


# Where following it leads.


def _least_squares() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, b and the eigenvalues of A^T A, of |A w - b|^2 / 2."""
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=(30, 4)), rng.normal(size=30)
    return a, b, np.linalg.eigvalsh(a.T @ a)


def _fitted(steps: int) -> np.ndarray:
    a, b, eigenvalues = _least_squares()

    def loss(w: Array) -> Array:
        return jnp.sum(jnp.square(jnp.asarray(a) @ w - jnp.asarray(b))) / 2

    return np.asarray(called_once(lambda rate: _descent(loss, np.ones(4), rate, steps), 1 / eigenvalues[-1]))


def _convex() -> Evidence:
    a, b, _ = _least_squares()
    return evidence(np.linalg.lstsq(a, b)[0], _fitted(400)[-1])


def _convex_rate() -> Evidence:
    a, b, eigenvalues = _least_squares()
    distance = np.linalg.norm(_fitted(20) - np.linalg.lstsq(a, b)[0], axis=1)
    steps = np.arange(1, len(distance))
    return evidence((1 - eigenvalues[0] / eigenvalues[-1]) ** steps * distance[0], distance[1:])


def _bowl(x: Float[Array, "2"]) -> Array:
    """A saddle at 0 whose way down ends in two minima, (0, ±1), of value -1/4."""
    return x[0] ** 2 / 2 - x[1] ** 2 / 2 + x[1] ** 4 / 4


NUDGE, SADDLE_RATE = 1e-8, 0.1


def _saddle_shape() -> Evidence:
    origin = jnp.zeros(2)
    gradient = np.asarray(called_once(jax.grad(_bowl), origin))
    eigenvalues = np.linalg.eigvalsh(np.asarray(called_once(jax.hessian(_bowl), origin)))
    return Evidence((Pair(np.array([-1.0, 1.0]), eigenvalues, "Hessian"), Pair(np.zeros(2), gradient, "∇f", 1.0)))


@cache
def _from_the_saddle(nudge: float, steps: int) -> np.ndarray:
    return np.asarray(called_once(lambda start: _descent(_bowl, start, SADDLE_RATE, steps), np.array([1.0, nudge])))


def _leaves() -> Evidence:
    steps = np.arange(100, 0, -1)
    return evidence(NUDGE * (1 + SADDLE_RATE) ** steps, _from_the_saddle(NUDGE, 100)[steps, 1])


def _end_value(nudge: float) -> Evidence:
    end = _from_the_saddle(nudge, 600)[-1]
    return Evidence((Pair(-0.25, _bowl(jnp.asarray(end)), "value"), Pair(np.array([0.0, 1.0]), end, "where")))


def _stuck() -> Evidence:
    return evidence(0.0, _bowl(jnp.asarray(_from_the_saddle(NUDGE, 600)[-1])))


STEPS = 200
FACTORS = (0.9, 0.99, 1.0, 1.01)  # of 2 / λ
LAMBDA = 3.0


@cache
def _on_a_quadratic() -> Evidence:
    def been(factor: Array) -> Array:
        rate = factor * (2 / LAMBDA)
        return jnp.abs(_descent(lambda x: jnp.sum(LAMBDA * jnp.square(x) / 2), np.ones(1), rate, STEPS)[:, 0])

    measured = called_once(jax.vmap(been), jnp.asarray(FACTORS))
    time = np.arange(STEPS + 1)
    curves = [
        Pair(np.abs(1 - 2 * factor) ** time, np.asarray(one), f"η = {factor:g} · 2/λ")
        for factor, one in zip(FACTORS, measured, strict=True)
    ]
    ends = Pair(np.abs(1 - 2 * np.array(FACTORS)) ** STEPS, np.asarray(measured)[:, -1], "in the end")
    return Evidence((ends, *curves))


def _threshold() -> Evidence:
    """Bisects for the rate from which a quadratic in five dimensions moves away from its minimum."""
    basis = np.linalg.qr(np.random.default_rng(10).normal(size=(5, 5)))[0]
    matrix = basis @ np.diag([0.3, 0.5, 1.0, 1.7, 3.1]) @ basis.T
    top = np.linalg.eigvalsh(matrix)[-1]

    def grows(rate: Array) -> Array:
        # Long enough that only the fastest direction is left, and then whether a step takes it further out.
        been = _descent(lambda x: x @ jnp.asarray(matrix) @ x / 2, np.ones(5), rate, 300)
        return jnp.linalg.norm(been[-1]) > jnp.linalg.norm(been[-2])

    low, high = 1.9 / top, 2.1 / top
    outwards = compiled(grows, (low,), once=True)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if outwards(middle) else (middle, high)
    return evidence(2 / top, (low + high) / 2, "30 halvings of [1.9, 2.1] / λ")


def _any_rate() -> Evidence:
    distances = np.asarray(_on_a_quadratic().pairs[-1].measured)
    return evidence(distances[0], distances[-1])


CLAIMS = (
    Claim(
        "descent/steepest",
        "The gradient points where the function rises fastest, and -∇f where it falls fastest",
        f"{BOOK}, section 2.2",
        f"the best of {ANGLES:,} directions, by the function's values alone; the angle and norm of jax.grad",
        _steepest,
        Tolerance(5e-4, "directions are 1.7e-4 radians apart: up to half of that off, beside an angle of 0.3"),
    ),
    Claim(
        "descent/directional",
        "The slope in a direction u is ∇f · u, so none of 1000 is steeper than |∇f|",
        f"{BOOK}, section 2.2",
        "∇f of logsumexp(A x) by hand; jax.jvp along u",
        _directional,
    ),
    Claim(
        "descent/level_curve",
        "The gradient is perpendicular to the level curve: ∇f · tangent = 0",
        "calculus: f is constant along the curve",
        "0, against the terms that cancel; jax.grad times the tangents of x²/4 + y² = 1 and x² y = 2 by hand",
        _level_curves,
    ),
    Claim(
        "descent/convex",
        "On a convex function gradient descent at 1/λ reaches the minimum (λ: the largest eigenvalue)",
        CONVEX,
        "numpy's least squares; the project's sgd after 400 steps",
        _convex,
        Tolerance(1e-10, "the minimum is known to rounding times the problem's condition"),
    ),
    Claim(
        "descent/convex_rate",
        "Its distance from there after t steps is at most (1 - λ_min/λ_max)^t of the first",
        "each eigendirection shrinks by 1 - λ_i/λ_max in a step",
        "the bound; the distance after each of 20 steps of the project's sgd",
        _convex_rate,
        relation="<=",
        each=True,
    ),
    Claim(
        "descent/saddle",
        "A saddle: ∇f is 0 and the Hessian has eigenvalues of both signs",
        SADDLE,
        "-1 and 1, and 0; jax.hessian and jax.grad of x²/2 - y²/2 + y⁴/4 at the origin",
        _saddle_shape,
    ),
    Claim(
        "descent/saddle_is_left",
        "Gradient descent leaves a saddle: from 1e-8 beside it, y grows by 1 + η a step",
        SADDLE,
        "1e-8 · 1.1^t; y after each of 100 steps of the project's sgd",
        _leaves,
        Tolerance(1e-6, "y⁴/4 bends the slope by y², 2e-8 in the end"),
        each=True,
    ),
    Claim(
        "descent/saddle_ends",
        "It ends in the minimum at (0, 1), where the function is -1/4",
        SADDLE,
        "by hand; the project's sgd after 600 steps",
        lambda: _end_value(NUDGE),
    ),
    Claim(
        "descent/saddle_traps",
        "“Gradient descent gets stuck in saddle points”",
        "widely told; only from a start that is exactly on the way in, else it takes ln(1/distance)/ln(1+η) steps",
        "0, the saddle's value; where the project's sgd is after 600 steps",
        _stuck,
        COUNTEREXAMPLE,
        belief=True,
    ),
    Claim(
        "descent/quadratic",
        "On λx²/2 gradient descent is at |1 - ηλ|^t: it shrinks below η = 2/λ, stands at it, grows past it",
        "x - η λ x = (1 - η λ) x",
        "powers of |1 - ηλ|; the project's sgd, 200 steps on both sides of 2/λ",
        _on_a_quadratic,
        each=True,
        axes=("step t", "distance from the minimum"),
    ),
    Claim(
        "descent/threshold",
        "In several dimensions gradient descent diverges exactly past 2/λ_max",
        "the same in every eigendirection; the largest λ comes first",
        "2 over numpy's largest eigenvalue; bisection for the rate from which the project's sgd moves away",
        _threshold,
        Tolerance(1e-9, "30 halvings leave 2e-10"),
    ),
    Claim(
        "descent/any_rate",
        "“On a convex function gradient descent comes closer, at any rate: it may just be slow”",
        "false past 2/λ",
        "at most the first distance, 1; the project's sgd after 200 steps at η = 1.01 · 2/λ",
        _any_rate,
        COUNTEREXAMPLE,
        "<=",
        belief=True,
    ),
)
