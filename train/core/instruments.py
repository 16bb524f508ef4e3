"""The instruments of `watch.instruments` and of `deltaflow probe --instruments`: what each measures, on what.

Each is a pure function of a `Subject`, a program of its own that runs between two windows of training: a step that
asks for none is not slowed, and training does the same with or without them. Dropout is off in all of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from data.source import Batch
from model.network import Anatomy, Network, Params
from model.residual import rule_of, without_skip

from ..config.schema import RunConfig, WatchConfig
from ..gradflow import curvature, gradients, jacobian, landscape, noise, per_block
from ..gradflow.delta import Backward, backward
from ..gradflow.norms import Norm
from .batch import BatchInput, batch_of
from .loss import losses, mean_loss, micro_total, tapped_loss
from .optimizer import HParams, rate
from .state import State
from .step import train_step

UPDATES = np.linspace(-5.0, 15.0, 21)  # where the loss is looked at: multiples of the next update
SHARES = np.linspace(-1.0, 1.0, 21)  # and of a random direction as long as the weights
LINES = {"landscape/update": "the next update", "landscape/random": "a random direction as long as the weights"}
NOISE_BATCHES = 8


class Signed(NamedTuple):
    """A value that may be negative and beyond a float's range, as opposed to a norm, which is logged as log10."""

    value: Norm


class Curve(NamedTuple):
    """Losses along a line, at the multiples `at`."""

    at: Float[Array, "n"]
    loss: Float[Array, "n"]


# [] one value, [L] one a layer, [L, H] one a layer and head; by what it is of: "layer", "head", a matrix. nan: not
# defined there.
Reading: TypeAlias = Norm | Signed | Array | gradients.Histogram | Curve | Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """The weights after some steps, and the batches that training takes next."""

    network: Network
    config: RunConfig
    state: State
    hp: HParams
    batches: Batch  # leaves [J, B, ...]

    @property
    def params(self) -> Params:
        return self.state.params

    def batch(self, index: int = 0) -> Batch:
        return jax.tree.map(lambda leaf: leaf[index], self.batches)

    def backward(self, params: Params, numbers: Mapping[str, Any] | None = None, index: int = 0) -> Backward:
        numbers = self.hp.model if numbers is None else numbers
        return backward(tapped_loss(self.network, self.batch(index), numbers, None), params, self.config.model.layers)[
            1
        ]

    def loss(self, params: Params) -> Float[Array, ""]:
        """The training loss of the first batch, differentiable any number of times."""
        return _untapped(self.network, self.batch(), self.hp.model)(params)

    def mean_loss(self, params: Params) -> Float[Array, ""]:
        """The same of all batches together."""

        def one(total: Array, batch: Batch) -> tuple[Array, None]:
            return total + _untapped(self.network, batch, self.hp.model)(params), None

        first = jax.eval_shape(lambda: self.loss(params))
        total, _ = jax.lax.scan(jax.checkpoint(one), jnp.zeros((), first.dtype), self.batches)
        return total / jax.tree.leaves(self.batches)[0].shape[0]

    def updated(self) -> Params:
        """The weights after the step that training takes next."""
        state, _, _ = train_step(self.network, self.config, self.state, self.hp, self.batch(), False)
        return state.params

    def anatomy(self, inputs: Array) -> Anatomy:
        return self.network.anatomy(self.params, inputs, numbers=self.hp.model)

    @property
    def precise(self) -> "Subject":
        """With products and activations in at least float32: second derivatives in bfloat16 say little."""
        dtype = "float64" if self.network.dtype == "float64" else "float32"
        return dataclasses.replace(self, network=dataclasses.replace(self.network, dtype=dtype))


def _untapped(
    network: Network, batch: Batch, numbers: Mapping[str, Any], total: Array | None = None
) -> Callable[[Params], Array]:
    loss = tapped_loss(network, batch, numbers, None, total)
    return lambda params: loss(params, None, None)[0]  # pyright: ignore[reportArgumentType]


def _attention(subject: Subject) -> dict[str, Reading]:
    seen = per_block.observed(subject.anatomy(subject.batch().inputs), {"attention": per_block.attention})["attention"]
    return {
        "attn/entropy": {"layer": jnp.mean(seen.entropy, axis=1), "head": seen.entropy},
        "attn/logit_max": {"layer": jnp.max(seen.logit_max, axis=1), "head": seen.logit_max},
    }


def _units(subject: Subject) -> dict[str, Reading]:
    seen = per_block.observed(subject.anatomy(subject.batch().inputs), {"mlp": per_block.dead_units})
    return {"act/dead_units": seen["mlp"]}


def _split(subject: Subject) -> dict[str, Reading]:
    batch = subject.batch()

    def loss(logits: Array) -> Array:
        return mean_loss(losses(subject.network, logits, batch, subject.hp.model), batch)

    parts = per_block.split(subject.anatomy(batch.inputs), loss)
    return {"split/skip": parts.skip, "split/branch": parts.branch, "split/cosine": parts.cosine}


def _entries(subject: Subject) -> dict[str, Reading]:
    result = subject.backward(subject.params)
    return {"grad/zero_fraction": gradients.zero_fraction(result), "grad/histogram": gradients.histogram(result)}


def _weight_dot_grad(subject: Subject) -> dict[str, Reading]:
    dots = gradients.weight_dot_grad(subject.params, subject.backward(subject.params))
    return {"grad/dot_weight": {tag: Signed(dot) for tag, dot in dots.items()}}


def _twins(subject: Subject) -> dict[str, Reading]:
    here = subject.backward(subject.params)
    without = subject.backward(subject.params, without_skip(subject.hp.model))
    return _angles("cosine/without_skip", gradients.cosines(here, without))


def _successive(subject: Subject) -> dict[str, Reading]:
    here, there = subject.backward(subject.params), subject.backward(subject.updated(), index=1)
    return _angles("cosine/next_step", gradients.cosines(here, there))


def _angles(name: str, found: gradients.Cosines) -> dict[str, Reading]:
    return {name: {"layer": found.layer, "all": found.whole}}


def _noise(subject: Subject) -> dict[str, Reading]:
    parts = noise_parts(subject.config.data.batch)

    def gradient(part: Batch, whole: Batch) -> Params:
        total = micro_total(whole, parts)  # so that the mean over parts is the whole batch's gradient
        return jax.grad(_untapped(subject.network, part, subject.hp.model, total))(subject.params)

    found = noise.noise(gradient, subject.batches, parts)
    ratio = found.trace.mantissa / found.gradient.mantissa
    scale = Signed(Norm(ratio, found.trace.exponent - found.gradient.exponent))
    return {
        "noise/scale": scale,
        "noise/gradient_square": Signed(found.gradient),
        "noise/trace": Signed(found.trace),
    }


def noise_parts(batch: int) -> int:
    """Into how many parts a batch is cut: the largest divisor up to 8, or the smallest beyond; 1 cannot be.

    >>> noise_parts(16), noise_parts(12), noise_parts(11), noise_parts(1)
    (8, 6, 11, 1)
    """
    few = max(parts for parts in range(1, min(8, batch) + 1) if batch % parts == 0)
    return few if few > 1 else next((parts for parts in range(9, batch + 1) if batch % parts == 0), 1)


def _sharpness(subject: Subject) -> dict[str, Reading]:
    subject = subject.precise
    found = curvature.sharpness(subject.mean_loss, subject.params, jax.random.key(0))
    return _ends("sharpness", found) | _threshold("sharpness", subject)


def _sharpness_adam(subject: Subject) -> dict[str, Reading]:
    subject = subject.precise
    found = curvature.preconditioned_sharpness(
        subject.mean_loss, subject.params, _preconditioner(subject), jax.random.key(0)
    )
    return _ends("sharpness_adam", found) | _threshold("sharpness_adam", subject)


def _ends(name: str, found: curvature.SpectrumEnds) -> dict[str, Reading]:
    return {f"{name}/{key}": value for key, value in found._asdict().items()}


def _threshold(name: str, subject: Subject) -> dict[str, Reading]:
    """The curvature beyond which the optimizer diverges on a quadratic, at the rate of the next step.

    Gradient descent 2 / lr; momentum beta (2 + 2 beta) / lr; Nesterov's (2 + 2 beta) / (1 + 2 beta) / lr (Cohen et al.
    2021, 2103.00065, section 2); Adam's for the preconditioned curvature (2 + 2 beta_1) / (1 - beta_1) / lr.
    """
    config, hp = subject.config.optimizer, subject.hp.optimizer
    if config.lr_factors or subject.config.model.width_ratio != 1:
        return {}  # there is no one rate
    lr = rate(config, hp, subject.state.step, subject.config.train.steps)
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


def _preconditioner(subject: Subject) -> Params:
    """(1 - beta_1^t) (sqrt(v-hat) + eps) of Adam after t steps, the debiasing of its first average included (Cohen et
    al. 2022, 2207.14484, section 2); not a number before the first step, when there is no v."""
    found = [
        leaf
        for leaf in jax.tree.leaves(subject.state.optimizer, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        if isinstance(leaf, optax.ScaleByAdamState)
    ]
    (adam,) = found
    hp = subject.hp.optimizer

    def one(nu: Array) -> Array:
        beta, eps = jnp.asarray(hp["betas"][1], nu.dtype), jnp.asarray(hp["eps"], nu.dtype)
        count = jnp.asarray(adam.count, nu.dtype)
        debiased = nu / -jnp.expm1(count * jnp.log(beta))
        return -jnp.expm1(count * jnp.log(jnp.asarray(hp["betas"][0], nu.dtype))) * (jnp.sqrt(debiased) + eps)

    return jax.tree.map(one, adam.nu)


def _jacobian(subject: Subject) -> dict[str, Reading]:
    """Of the first example of the batch: examples do not touch one another."""
    subject = subject.precise
    found = jacobian.jacobians(subject.anatomy(subject.batch().inputs[:1]), jax.random.key(0))
    blocks = {f"jacobian/{key}": value for key, value in found.block._asdict().items()}
    return blocks | {f"jacobian/stack_{key}": value for key, value in found.stack._asdict().items()}


def _landscape(subject: Subject) -> dict[str, Reading]:
    subject = subject.precise
    update = jax.tree.map(jnp.subtract, subject.updated(), subject.params)
    random = landscape.random_direction(subject.params, jax.random.key(0))
    curves = {"landscape/update": (update, UPDATES), "landscape/random": (random, SHARES)}
    out: dict[str, Reading] = {}
    for name, (direction, multiples) in curves.items():
        at = jnp.asarray(multiples, "float32")
        out[name] = Curve(at, landscape.along_line(subject.loss, subject.params, direction, at))
    return out


def _curvature_batches(watch: WatchConfig) -> int:
    return watch.curvature_batches


@dataclass(frozen=True)
class Instrument:
    measure: Callable[[Subject], dict[str, Reading]]
    batches: Callable[[WatchConfig], int] = lambda watch: 1  # that it looks at
    optimizer: bool = False  # it needs the optimizer's state
    precise: bool = False  # products in full float32, also where training multiplies in less
    pictured: bool = False  # it leaves histograms or pictures, which a resumed run has to draw again
    long: bool = False  # many passes through the network: its program is worth the compiler's time
    applies: Callable[[RunConfig], bool] = lambda config: True


INSTRUMENTS: dict[str, Instrument] = {
    "attention": Instrument(_attention),
    "units": Instrument(_units),
    "entries": Instrument(_entries, pictured=True),
    "weight_dot_grad": Instrument(_weight_dot_grad),
    "split": Instrument(_split),
    "twins": Instrument(_twins, applies=lambda config: rule_of(config.model).additive),
    "successive": Instrument(_successive, lambda watch: 2, optimizer=True),
    "noise": Instrument(_noise, lambda watch: NOISE_BATCHES, long=True, applies=lambda config: config.data.batch > 1),
    "sharpness": Instrument(_sharpness, _curvature_batches, precise=True, long=True),
    "sharpness_adam": Instrument(
        _sharpness_adam,
        _curvature_batches,
        optimizer=True,
        precise=True,
        long=True,
        applies=lambda config: config.optimizer.name in ("adam", "adamw") and not config.optimizer.freeze,
    ),
    "jacobian": Instrument(_jacobian, precise=True),
    "landscape": Instrument(_landscape, optimizer=True, precise=True, pictured=True, long=True),
}


def read(
    name: str, network: Network, config: RunConfig, state: State, hp: HParams, corpus: Array | None, feeds: BatchInput
) -> dict[str, Reading]:
    """What an instrument says. `feeds`: leaves [J, B, ...], the next J batches. Run it under jit.

    `name`, `network` and `config` are static. Gradients are those of training, in its dtype; curvature, Jacobians and
    the landscape are in float32 at least.
    """
    rolled = dataclasses.replace(network, unroll=1)  # short to compile, and it runs seldom
    batches = jax.vmap(lambda feed: batch_of(feed, corpus, network.context))(feeds)
    instrument, subject = INSTRUMENTS[name], Subject(rolled, config, state, hp, batches)
    if not instrument.precise:
        return instrument.measure(subject)
    with jax.default_matmul_precision("highest"):
        return instrument.measure(subject)
