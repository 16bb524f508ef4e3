"""Instruments on the loss as a function of the weights: ends of the Hessian's spectrum, and lines through it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from model.network import Params

from ..core.optimizer import rate
from ..gradflow import curvature
from .readings import LossCurve, Reading
from .snapshot import Snapshot

UPDATES = np.linspace(-5.0, 15.0, 21)  # places along the next update, in multiples of it
SHARES = np.linspace(-1.0, 1.0, 21)  # and along a random direction as long as the weights


def sharpness(snapshot: Snapshot) -> dict[str, Reading]:
    """The Hessian's largest and smallest eigenvalue, and the optimizer's threshold."""
    ends = curvature.sharpness(snapshot.mean_loss, snapshot.params, jax.random.key(0))
    return _ends("sharpness", ends) | threshold("sharpness", snapshot)


def sharpness_adam(snapshot: Snapshot) -> dict[str, Reading]:
    """The same of the Hessian preconditioned as Adam does."""
    preconditioner = _preconditioner(snapshot)
    ends = curvature.preconditioned_sharpness(snapshot.mean_loss, snapshot.params, preconditioner, jax.random.key(0))
    return _ends("sharpness_adam", ends) | threshold("sharpness_adam", snapshot)


def _ends(name: str, ends: curvature.SpectrumEnds) -> dict[str, Reading]:
    return {f"{name}/{key}": value for key, value in ends._asdict().items()}


def threshold(name: str, snapshot: Snapshot) -> dict[str, Reading]:
    """The curvature beyond which the optimizer diverges on a quadratic, at the rate of the next step.

    Gradient descent 2 / lr; momentum beta (2 + 2 beta) / lr; Nesterov's (2 + 2 beta) / (1 + 2 beta) / lr (Cohen et al.
    2021, 2103.00065, section 2); Adam's for the preconditioned curvature (2 + 2 beta_1) / (1 - beta_1) / lr.
    """
    config, hp = snapshot.config.optimizer, snapshot.hp.optimizer
    lr = _rate(snapshot)
    if lr is None:
        return {}
    beta = hp["momentum"] if name == "sharpness" else hp["betas"][0]
    of = {
        "sgd": 2.0,
        "momentum": 2 + 2 * beta,
        "nesterov": (2 + 2 * beta) / (1 + 2 * beta),
        "adam": (2 + 2 * beta) / (1 - beta),
        "adamw": (2 + 2 * beta) / (1 - beta),
    }
    own = ("adam", "adamw") if name == "sharpness_adam" else ("sgd", "momentum", "nesterov")
    return {f"{name}/threshold": jnp.asarray(of[config.name] / lr)} if config.name in own else {}


def _rate(snapshot: Snapshot) -> Array | None:
    """The learning rate of the next step; None where parameters have rates of their own."""
    config = snapshot.config
    if config.optimizer.lr_factors or config.model.width_ratio != 1:
        return None
    return rate(config.optimizer, snapshot.hp.optimizer, snapshot.state.step, config.train.steps)


def critical_sharpness(snapshot: Snapshot) -> dict[str, Reading]:
    """2 / eta_c, with eta_c the rate from which on the next update no longer lowers the loss of its batch."""
    update = jax.tree.map(jnp.subtract, snapshot.updated(), snapshot.params)
    multiple, lr = curvature.critical_multiple(snapshot.loss, snapshot.params, update), _rate(snapshot)
    of: dict[str, Reading] = {"sharpness/critical_multiple": multiple}
    return of if lr is None else of | {"sharpness/critical": 2 / (multiple * lr.astype(multiple.dtype))}


def _preconditioner(snapshot: Snapshot) -> Params:
    """(1 - beta_1^t) (sqrt(v-hat) + eps) of Adam after t steps, the debiasing of its first average included (Cohen et
    al. 2022, 2207.14484, section 2); not a number before the first step, when there is no v."""
    leaves = jax.tree.leaves(snapshot.state.optimizer, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    (adam,) = (leaf for leaf in leaves if isinstance(leaf, optax.ScaleByAdamState))
    hp = snapshot.hp.optimizer

    def preconditioner_of(nu: Array) -> Array:
        beta, eps = jnp.asarray(hp["betas"][1], nu.dtype), jnp.asarray(hp["eps"], nu.dtype)
        count = jnp.asarray(adam.count, nu.dtype)
        debiased = nu / -jnp.expm1(count * jnp.log(beta))
        return -jnp.expm1(count * jnp.log(jnp.asarray(hp["betas"][0], nu.dtype))) * (jnp.sqrt(debiased) + eps)

    return jax.tree.map(preconditioner_of, adam.nu)


def loss_landscape(snapshot: Snapshot) -> dict[str, Reading]:
    """The loss of the first batch along the next update and along a random direction."""
    update = jax.tree.map(jnp.subtract, snapshot.updated(), snapshot.params)
    random = curvature.random_direction(snapshot.params, jax.random.key(0))
    curves = {"landscape/update": (update, UPDATES), "landscape/random": (random, SHARES)}
    out: dict[str, Reading] = {}
    for name, (direction, multiples) in curves.items():
        at = jnp.asarray(multiples, "float32")
        out[name] = LossCurve(at, curvature.along_line(snapshot.loss, snapshot.params, direction, at))
    return out
