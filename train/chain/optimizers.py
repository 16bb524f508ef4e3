"""Claims about the update rules: the project's transformations against the rules written out in numpy.

What is compared is how far the parameters have moved from the start after each of a few steps: one row a step, the last
one first.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from model.traced import numbers

from ..config.schema import OptimizerConfig
from ..core.compile import compiled
from ..core.optimizer import transformation
from .claim import COUNTEREXAMPLE, Claim, Evidence, Pair, Tolerance, evidence

STEPS = 6
LR, DECAY, MOMENTUM, BETAS, EPS = 0.02, 0.5, 0.8, (0.8, 0.95), 1e-8
LOUD = 1000.0

Moved = Float[np.ndarray, "steps n"]
Vector = Float[np.ndarray, "n"]
# (memory, gradient, parameters, decay of each entry, t = 1, 2, ...) -> the step down.
Rule = Callable[[dict[str, Any], Vector, Vector, Vector, int], Vector]


@cache
def _problem() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Parameters with stacked blocks, and a gradient for each step."""

    def tree(seed: int) -> dict[str, Any]:
        draw = np.random.default_rng(seed).normal
        blocks = {"attn": {"q": {"kernel": draw(size=(2, 3, 3))}}, "norm_1": {"gain": draw(size=(2, 3))}}
        return {"blocks": blocks, "embed": draw(size=(4, 3))}

    return tree(6), [tree(7 + step) for step in range(STEPS)]


def _flat(tree: Any) -> Vector:
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)])


@cache
def moved(name: str, decay: float = 0.0, kind: str = "auto", loudness: float = 1.0) -> Moved:
    """What the project's rule makes of the problem, its gradients times `loudness`."""
    settings = {"lr": LR, "weight_decay": decay, "momentum": MOMENTUM, "betas": BETAS, "eps": EPS, "decay": kind}
    config = OptimizerConfig.model_validate({"name": name, "schedule": "constant", "warmup": 0} | settings)
    hp = jax.tree.map(np.float64, numbers(config))
    start, grads = _problem()

    def step(params: Any, state: Any, grads: Any, t: Any) -> tuple[Any, Any]:
        rule = transformation(config, hp, t, STEPS)
        updates, state = rule.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        params = jax.tree.map(jnp.asarray, start)
        state, rows = transformation(config, hp, jnp.int32(0), STEPS).init(params), []
        program = compiled(step, (params, state, grads[0], np.int32(0)), once=True)
        for t, grad in enumerate(grads):
            params, state = program(params, state, jax.tree.map(lambda g: loudness * g, grad), np.int32(t))
            rows.append(_flat(params) - _flat(start))
    return np.stack(rows[::-1])


def by_hand(rule: Rule, decay: float = 0.0) -> Moved:
    """What a rule of numpy makes of it. Matrices and tables decay, gains do not."""
    start, grads = _problem()
    pulls = _flat({"blocks": {"attn": {"q": {"kernel": np.ones((2, 3, 3))}}, "norm_1": {"gain": np.zeros((2, 3))}},
                   "embed": np.ones((4, 3))})  # fmt: skip
    w, memory, rows = _flat(start), {}, []
    for t, grad in enumerate(grads, 1):
        w = w - rule(memory, _flat(grad), w, decay * pulls, t)
        rows.append(w - _flat(start))
    return np.stack(rows[::-1])


def sgd(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    return LR * g + LR * decay * w


def sgd_l2(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    """The gradient of L + decay/2 |w|^2."""
    return LR * (g + decay * w)


def momentum(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    memory["m"] = MOMENTUM * memory.get("m", 0.0) + g
    return LR * memory["m"]


def nesterov(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    memory["m"] = MOMENTUM * memory.get("m", 0.0) + g
    return LR * (g + MOMENTUM * memory["m"])


def adam(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    """Decay, where there is some, is in the gradient."""
    g = g + decay * w
    memory["m"] = BETAS[0] * memory.get("m", 0.0) + (1 - BETAS[0]) * g
    memory["v"] = BETAS[1] * memory.get("v", 0.0) + (1 - BETAS[1]) * g**2
    return LR * (memory["m"] / (1 - BETAS[0] ** t)) / (np.sqrt(memory["v"] / (1 - BETAS[1] ** t)) + EPS)


def adamw(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    return adam(memory, g, w, 0 * decay, t) + LR * decay * w


def lion(memory: dict[str, Any], g: Vector, w: Vector, decay: Vector, t: int) -> Vector:
    m = memory.get("m", 0.0)
    memory["m"] = BETAS[1] * m + (1 - BETAS[1]) * g
    return LR * np.sign(BETAS[0] * m + (1 - BETAS[0]) * g) + LR * decay * w


WRITTEN: Mapping[str, tuple[Rule, float, str, str]] = {
    "sgd": (sgd, 0.0, "w ← w - η g", "Robbins & Monro 1951"),
    "momentum": (momentum, 0.0, "m ← μ m + g, w ← w - η m", "Polyak 1964; Sutskever et al. 2013, eq. 1"),
    "nesterov": (
        nesterov,
        0.0,
        "m ← μ m + g, w ← w - η (g + μ m)",
        "Nesterov 1983; Sutskever et al. 2013, eq. 3, at the point ahead",
    ),
    "adam": (
        adam,
        0.0,
        "w ← w - η m̂ / (√v̂ + ε), both averages debiased",
        "Kingma & Ba 2015, 1412.6980, algorithm 1",
    ),
    "adamw": (
        adamw,
        DECAY,
        "Adam's step, and beside it w ← w - η λ w",
        "Loshchilov & Hutter 2019, 1711.05101, algorithm 2",
    ),
    "lion": (
        lion,
        DECAY,
        "w ← w - η (sign(β₁ m + (1-β₁) g) + λ w), then m ← β₂ m + (1-β₂) g",
        "Chen et al. 2023, 2302.06675, algorithm 2",
    ),
}


def _written(name: str) -> Claim:
    rule, decay, formula, source = WRITTEN[name]
    return Claim(
        f"optimizer/{name}",
        f"{name}: {formula}",
        source,
        f"the rule in numpy, {STEPS} steps; the project's `transformation`, blocks stacked",
        lambda: evidence(by_hand(rule, decay), moved(name, decay)),
    )


def _decay_of_sgd() -> Evidence:
    predicted = by_hand(sgd_l2, DECAY)
    return Evidence(
        (
            Pair(predicted, moved("sgd", DECAY, "l2"), "decay: l2"),
            Pair(predicted, moved("sgd", DECAY, "decoupled"), "decay: decoupled"),
        )
    )


def _loudness() -> Evidence:
    return Evidence(
        (
            Pair(by_hand(adam), moved("adam", loudness=LOUD), "adam"),
            Pair(by_hand(lion), moved("lion", loudness=LOUD), "lion"),
        )
    )


CLAIMS = (
    *map(_written, WRITTEN),
    Claim(
        "optimizer/nesterov_is_momentum",
        "“Nesterov's step is momentum by another name”",
        "sometimes told; it differs from the first step on: (1 + μ) g against g",
        "the rule of momentum in numpy; the project's nesterov",
        lambda: evidence(by_hand(momentum), moved("nesterov")),
        COUNTEREXAMPLE,
        belief=True,
    ),
    Claim(
        "optimizer/sgd_decay",
        "For SGD, L2 in the loss is weight decay: w ← w - η (g + λ w) = (1 - η λ) w - η g",
        "Loshchilov & Hutter 2019, 1711.05101, proposition 1",
        "the gradient of L + λ/2 |w|² in numpy; the project's sgd with decay: l2, and with decay: decoupled",
        _decay_of_sgd,
    ),
    Claim(
        "optimizer/adam_l2",
        "Adam with L2 divides the weights' pull by √v̂ as it does the gradient",
        "Loshchilov & Hutter 2019, 1711.05101, algorithm 2",
        "Adam in numpy with g + λ w for its gradient; the project's adam with decay: l2",
        lambda: evidence(by_hand(adam, DECAY), moved("adam", DECAY, "l2")),
    ),
    Claim(
        "optimizer/adam_l2_is_adamw",
        "“Adam with L2 is AdamW”",
        "widely told; false: Loshchilov & Hutter 2019, 1711.05101, proposition 2",
        "AdamW in numpy; the project's adam with decay: l2, of the same λ",
        lambda: evidence(by_hand(adamw, DECAY), moved("adam", DECAY, "l2")),
        COUNTEREXAMPLE,
        belief=True,
    ),
    Claim(
        "optimizer/loudness",
        "Adam and Lion take the same steps with gradients 1000 times as large: their norm does not say who learns",
        "Kingma & Ba 2015, 1412.6980, section 2.1",
        "both rules in numpy with g; the project's with 1000 g",
        _loudness,
        Tolerance(1e-5, "Adam's ε = 1e-8 beside a √v̂ that can be as small as 1e-3"),
    ),
    Claim(
        "optimizer/louder_learns_faster",
        "“The larger a parameter's gradient, the faster it learns”",
        "widely told; true of SGD with or without momentum, not of Adam or Lion",
        "1000 times as far; the project's adam with 1000 g",
        lambda: evidence(LOUD * by_hand(adam), moved("adam", loudness=LOUD)),
        COUNTEREXAMPLE,
        belief=True,
    ),
)
