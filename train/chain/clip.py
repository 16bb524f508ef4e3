"""Claims about clipping: what it leaves of a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..core.clipping import clipped
from ..core.compile import called_once
from ..gradflow.norms import flat, frobenius
from .claim import COUNTEREXAMPLE, Claim, Evidence, Tolerance, evidence


def _gradients() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(11).normal
    return {"embed": draw(size=(3, 4)), "head": 5 * draw(size=(2, 4))}


def _clip(hp: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """(gradient, what the project's clipping makes of it), flat."""

    def clip(grads: dict[str, Array]) -> dict[str, Array]:
        return clipped(grads, grads, frobenius(flat(grads)), jax.tree.map(jnp.asarray, hp))[0]

    before = _gradients()
    after = called_once(clip, before)
    whole, left = (np.concatenate([np.ravel(leaf) for leaf in tree.values()]) for tree in (before, after))
    return whole, left


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def _direction_after(hp: dict[str, float]) -> Evidence:
    before, after = _clip(hp)
    return evidence(_unit(before), _unit(after))


def _clip_norm() -> Evidence:
    before = _clip({"clip": 1.0})[0]
    limits = np.array([0.5, 2.0, 1e3])  # the last one is longer than the gradient
    measured = np.array([np.linalg.norm(_clip({"clip": limit})[1]) for limit in limits])
    return evidence(np.minimum(limits, np.linalg.norm(before)), measured)


CLAIMS = (
    Claim(
        "descent/clip_direction",
        "Clipping by the global norm keeps the gradient's direction",
        "Pascanu et al. 2013, 1211.5063, algorithm 1",
        "g/|g|; the same of what the project's clipping leaves",
        lambda: _direction_after({"clip": 0.5}),
    ),
    Claim(
        "descent/clip_norm",
        "Clipping makes the norm min(|g|, limit)",
        "Pascanu et al. 2013, 1211.5063, algorithm 1",
        "min(|g|, limit) for limits 0.5, 2 and 1000; the norm of what the project's clipping leaves",
        _clip_norm,
        Tolerance(1e-6, "the factor is a float32 in every dtype: 2^-24 = 6e-8, times a few"),
    ),
    Claim(
        "descent/clip_value_direction",
        "“Clipping keeps the direction”, also entry by entry",
        "true of the norm alone; entry by entry it turns the gradient",
        "g/|g|; the same after the project's clip_value of 1",
        lambda: _direction_after({"clip_value": 1.0}),
        COUNTEREXAMPLE,
        belief=True,
    ),
)
