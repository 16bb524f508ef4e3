"""Claims about the update rules: the project's transformations against the rules written out in numpy.

The distance of the parameters from their start is compared after each of a few steps: one row a step, the last first.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from model.traced import numbers

from ..config.schema import OptimizerConfig
from ..core.optimizer import transformation
from ..device.programs import called_once
from .claim import Evidence, Pair, Tolerance, belief, claim

STEPS = 6
LR, DECAY, MOMENTUM, BETAS, EPS = 0.02, 0.5, 0.8, (0.8, 0.95), 1e-8
LOUD = 1000.0
DECOUPLED = "Loshchilov & Hutter 2019, 1711.05101"

Vector = np.ndarray
# (memory, gradient, parameters, decay of each entry, t = 1, 2, ...) -> the step down; a memory starts at 0.
Rule = Callable[[dict[str, Any], Vector, Vector, Vector, int], Vector]


def trajectory(config: OptimizerConfig, hp: Any, start: Any, gradient: Callable[[Any, Any], Any], steps: int) -> Any:
    """Returns the parameters after each step of the project's rule, stacked. `gradient`: of (parameters, step)."""

    def step(carry: Any, t: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = transformation(config, hp, t, steps).update(gradient(params, t), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), params

    with jax.numpy_dtype_promotion("standard"):
        start = jax.tree.map(jnp.asarray, start)
        state = transformation(config, hp, jnp.int32(0), steps).init(start)
        return jax.lax.scan(step, (start, state), jnp.arange(steps, dtype=jnp.int32))[1]


def draw(seed: int) -> dict[str, Any]:
    """Returns parameters, or a gradient, with stacked blocks."""
    normal = np.random.default_rng(seed).normal
    blocks = {"attn": {"q": {"kernel": normal(size=(2, 3, 3))}}, "norm_1": {"gain": normal(size=(2, 3))}}
    return {"blocks": blocks, "embed": normal(size=(4, 3))}


START, GRADIENTS = draw(6), [draw(7 + step) for step in range(STEPS)]


def flat(tree: Any) -> Vector:
    return np.asarray(ravel_pytree(tree)[0])


@cache
def moved(name: str, decay: float = 0.0, kind: str = "auto", loudness: float = 1.0) -> Float[np.ndarray, "steps n"]:
    """Returns the path of the project's rule, with gradients multiplied by `loudness`."""
    settings = {"lr": LR, "weight_decay": decay, "momentum": MOMENTUM, "betas": BETAS, "eps": EPS, "decay": kind}
    config = OptimizerConfig.model_validate({"name": name, "schedule": "constant", "warmup": 0} | settings)
    hp = jax.tree.map(np.float64, numbers(config))
    gradients = jax.tree.map(lambda *each: jnp.asarray(loudness * np.stack(each)), *GRADIENTS)

    def vectors() -> Float[Array, "steps n"]:
        steps = trajectory(config, hp, START, lambda _, t: jax.tree.map(lambda g: g[t], gradients), STEPS)
        return jax.vmap(lambda params: ravel_pytree(params)[0])(steps)

    return (np.asarray(called_once(vectors)) - flat(START))[::-1]


def by_hand(rule: Rule, decay: float = 0.0) -> Float[np.ndarray, "steps n"]:
    """Returns the path of a rule in numpy. Matrices and tables decay, gains do not."""
    decays = jax.tree_util.tree_map_with_path(lambda at, x: np.full(x.shape, decay * ("gain" not in str(at))), START)
    w, memory, rows = flat(START), {"m": 0.0, "v": 0.0}, []
    for t, gradient in enumerate(GRADIENTS, 1):
        w = w - rule(memory, flat(gradient), w, flat(decays), t)
        rows.append(w - flat(START))
    return np.stack(rows[::-1])


def same_as_project(source: str, decay: float = 0.0) -> Callable[[Rule], Rule]:
    """Registers the claim that the project's rule of this name is the decorated one, whose docstring is its formula."""

    def register(rule: Rule) -> Rule:
        def measure() -> Pair:
            return Pair(by_hand(rule, decay), moved(rule.__name__, decay))

        measure.__name__, measure.__doc__ = rule.__name__, rule.__doc__ and f"{rule.__name__}: {rule.__doc__}"
        claim(source, f"the rule in numpy, {STEPS} steps; the project's `transformation`, blocks stacked")(measure)
        return rule

    return register


@same_as_project("Robbins & Monro 1951")
def sgd(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    """w ← w - η g"""
    return LR * (g + decay * w)  # decay in the loss or decoupled from it: the same


@same_as_project("Polyak 1964; Sutskever et al. 2013, eq. 1")
def momentum(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    """m ← μ m + g, w ← w - η m"""
    memory["m"] = MOMENTUM * memory["m"] + g
    return LR * memory["m"]


@same_as_project("Nesterov 1983; Sutskever et al. 2013, eq. 3, at the point ahead")
def nesterov(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    """m ← μ m + g, w ← w - η (g + μ m)"""
    memory["m"] = MOMENTUM * memory["m"] + g
    return LR * (g + MOMENTUM * memory["m"])


@same_as_project("Kingma & Ba 2015, 1412.6980, algorithm 1")
def adam(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    """w ← w - η m̂ / (√v̂ + ε), both averages debiased"""
    g = g + decay * w  # L2 in the loss
    memory["m"] = BETAS[0] * memory["m"] + (1 - BETAS[0]) * g
    memory["v"] = BETAS[1] * memory["v"] + (1 - BETAS[1]) * g**2
    return LR * (memory["m"] / (1 - BETAS[0] ** t)) / (np.sqrt(memory["v"] / (1 - BETAS[1] ** t)) + EPS)


@same_as_project(f"{DECOUPLED}, algorithm 2", DECAY)
def adamw(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    """Adam's step, and apart from it w ← w - η λ w"""
    return adam(memory, g, w, 0 * decay, t) + LR * decay * w


@same_as_project("Chen et al. 2023, 2302.06675, algorithm 2", DECAY)
def lion(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    """w ← w - η (sign(β₁ m + (1-β₁) g) + λ w), then m ← β₂ m + (1-β₂) g"""
    m = memory["m"]
    memory["m"] = BETAS[1] * m + (1 - BETAS[1]) * g
    return LR * np.sign(BETAS[0] * m + (1 - BETAS[0]) * g) + LR * decay * w


@belief(
    "sometimes told; it differs from the first step on: (1 + μ) g against g",
    "the rule of momentum in numpy; the project's nesterov",
)
def nesterov_is_momentum() -> Pair:
    """“Nesterov's step is momentum by another name”"""
    return Pair(by_hand(momentum), moved("nesterov"))


@claim(
    f"{DECOUPLED}, proposition 1",
    "the gradient of L + λ/2 |w|² in numpy; the project's sgd with decay: l2, and with decay: decoupled",
)
def sgd_decay() -> Evidence:
    """For SGD, L2 in the loss is weight decay: w ← w - η (g + λ w) = (1 - η λ) w - η g"""
    return Evidence([Pair(by_hand(sgd, DECAY), moved("sgd", DECAY, x), f"decay: {x}") for x in ("l2", "decoupled")])


@claim(f"{DECOUPLED}, algorithm 2", "Adam in numpy with g + λ w for its gradient; the project's adam with decay: l2")
def adam_l2() -> Pair:
    """Adam with L2 divides the weights' pull by √v̂ as it does the gradient"""
    return Pair(by_hand(adam, DECAY), moved("adam", DECAY, "l2"))


@belief(
    f"widely told; false: {DECOUPLED}, proposition 2",
    "AdamW in numpy; the project's adam with decay: l2, of the same λ",
)
def adam_l2_is_adamw() -> Pair:
    """“Adam with L2 is AdamW”"""
    return Pair(by_hand(adamw, DECAY), moved("adam", DECAY, "l2"))


@claim(
    "Kingma & Ba 2015, 1412.6980, section 2.1",
    "both rules in numpy with g; the project's with 1000 g",
    Tolerance(1e-5, "Adam's ε = 1e-8 next to a √v̂ that can be as small as 1e-3"),
)
def loudness() -> Evidence:
    """Adam and Lion take the same steps with gradients 1000 times as large: their norm does not say who learns"""
    return Evidence([Pair(by_hand(x), moved(x.__name__, loudness=LOUD), x.__name__) for x in (adam, lion)])


@belief(
    "widely told; true of SGD with or without momentum, not of Adam or Lion",
    "1000 times as far; the project's adam with 1000 g",
)
def louder_learns_faster() -> Pair:
    """“The larger a parameter's gradient, the faster it learns”"""
    return Pair(LOUD * by_hand(adam), moved("adam", loudness=LOUD))
