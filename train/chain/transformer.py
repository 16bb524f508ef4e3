"""Claims about the transformer: explicit Jacobians, and finite differences of every parameter at every depth."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from data.source import Batch
from model.config import ModelConfig, ResidualConfig
from model.network import Network, path_of

from ..device.programs import called_once
from ..gradflow.delta import true_gradients
from ..gradflow.norms import value
from .claim import NEGLIGIBLE, Evidence, Pair, Tolerance, belief, claim
from .reference import Reference, jacobian, softmax
from .subject import Subject

XIONG = "Xiong et al. 2020, 2002.04745, and its Jacobians"
DEFINITION = "the definition of the derivative"
JACOBIANS = "Jacobians of norms, attention, MLPs and head, by complex steps in numpy"
SAMPLES = 2  # entries of each parameter of each block
PLACES = 4  # entries of the stream at each depth
CLOSE = Tolerance(
    1e-5,
    "losses are rounded to 1e-15, so differences know a slope to 1e-12, and a parameter's may be a millionth of that",
)
SMALL = 0.1  # entries move as if they were no smaller than this: smaller steps would measure rounding alone
# Of finite differences, relative to what is varied: long ones are truncated, short ones stay on one side of a kink.
STEPS: Float[np.ndarray, "K"] = 4.0 ** -np.arange(2, 11)

# Small enough for its Jacobians to be written down; a token occurs twice.
TINY = Network(ModelConfig(layers=3, width=8, heads=2, tied_head=False), 7, 5, "float64")
WINDOW = np.array([[3, 0, 4, 0, 5, 2]], np.int32)


@cache
def tiny() -> Subject:
    return Subject("tiny", TINY, {}, Batch(WINDOW[:, :-1], WINDOW[:, 1:]), spread=0.5)


class Pass(NamedTuple):
    """The tiny network's forward pass in numpy, the Jacobian of each block, and delta on the way back."""

    loss: float
    stream: np.ndarray  # x_l, [L+1, T, D]
    blocks: list[np.ndarray]  # ∂x_(l+1)/∂x_l, [T*D, T*D]
    delta: list[np.ndarray]  # ∂L/∂x_l, [T*D]
    embed: np.ndarray  # ∂L/∂ the table as a lookup
    head: np.ndarray  # ∂L/∂ the table as a head


@cache
def by_hand(tied: bool = False) -> Pass:
    table = {"head": tiny().params["embed"]} if tied else {}
    net, tokens, targets = Reference(TINY.config, tiny().params | table), WINDOW[0, :-1], WINDOW[0, 1:]
    stream, blocks = net.streams(tokens), []
    for x, p in zip(stream, net.blocks, strict=False):
        product = np.eye(x.size)
        for norm, branch in (("norm_1", partial(net.attention, p["attn"])), ("norm_2", partial(net.mlp, p["mlp"]))):
            normed = partial(net.norm, p[norm])
            product += jacobian(branch, normed(x)) @ jacobian(normed, x) @ product
            x = x + branch(normed(x))
        blocks.append(product)
    p = softmax(net.logits(WINDOW[:, :-1]))
    error = (p - np.eye(p.shape[1])[targets]) / len(tokens)
    delta = [jacobian(net.normed, stream[-1]).T @ (error @ net.table).ravel()]
    for block in reversed(blocks):
        delta.insert(0, block.T @ delta[0])
    embed = np.eye(p.shape[1])[tokens].T @ delta[0].reshape(stream[0].shape)
    loss = -np.mean(np.log(p[np.arange(len(targets)), targets]))
    return Pass(float(loss), stream, blocks, delta, embed, error.T @ net.normed(stream[-1]))


@claim(XIONG, "numpy, 3 blocks of width 8; the project's network and loss")
def forward() -> Pair:
    """A transformer written down again in numpy has the same loss"""
    return Pair(by_hand().loss, called_once(tiny().loss, tiny().params))


@claim(XIONG, f"{JACOBIANS}; jax.jacfwd of the project's own blocks")
def block_jacobian() -> Evidence:
    """∂x_(l+1)/∂x_l = (I + J_mlp J_N)(I + J_attn J_N): each block's Jacobian, entry by entry"""
    anatomy, (*entering, _) = tiny().anatomy(), by_hand().stream
    jacobians = jax.vmap(jax.jacfwd(anatomy.block, argnums=2))
    measured = called_once(jacobians, anatomy.blocks, np.arange(len(entering)), np.stack(entering))
    pairs = zip(by_hand().blocks, np.asarray(measured), strict=True)
    return Evidence([Pair(p, m.reshape(p.shape), f"block {layer}") for layer, (p, m) in enumerate(pairs)])


@claim(XIONG, f"the product of explicit {JACOBIANS}; one tapped backward pass of the project's network")
def embeddings() -> Pair:
    """∂L/∂Embeddings = Sᵀ J_0ᵀ J_1ᵀ J_2ᵀ J_Nᵀ Hᵀ (p - y)/T, S the one-hot matrix of the tokens"""
    return Pair(by_hand().embed, true_gradients(tiny().tapped)["embed"])


@claim(XIONG, f"partial products of {JACOBIANS}; the taps of the same backward pass", each=True)
def delta() -> Pair:
    """|δ_l| at every depth is the norm of the product of what lies above"""
    return Pair([np.linalg.norm(delta) for delta in by_hand().delta], value(tiny().tapped.delta))


@claim("expand |(I + J)ᵀ δ|²", "the three terms, J = the block's Jacobian less I; the taps, squared", each=True)
def split() -> Pair:
    """|δ_l|² = |δ_(l+1)|² + 2⟨δ_(l+1), Jᵀδ_(l+1)⟩ + |Jᵀδ_(l+1)|², J the branch's Jacobian"""
    predicted = []
    for block, above in zip(by_hand().blocks, by_hand().delta[1:], strict=True):
        branch = (block - np.eye(above.size)).T @ above
        predicted.append(above @ above + 2 * above @ branch + branch @ branch)
    return Pair(predicted, value(tiny().tapped.delta)[:-1] ** 2)


@claim(
    "the chain rule for what is used twice",
    "dL/dE of the lookup and (p - y)ᵀ N(x_L)/T of the head, by hand; jax.grad of a tied network of the project",
)
def tied() -> Pair:
    """A tied table's gradient is the sum of its two uses, as lookup and as head"""
    network = dataclasses.replace(TINY, config=TINY.config.model_copy(update={"tied_head": True}))
    params = {name: leaf for name, leaf in tiny().params.items() if name != "head"}
    gradient = jax.grad(dataclasses.replace(tiny(), network=network).loss)
    return Pair(by_hand(tied=True).embed + by_hand(tied=True).head, called_once(gradient, params)["embed"])


class Sample(NamedTuple):
    """Entries of one parameter, or of the stream at one depth."""

    label: str
    places: np.ndarray  # [count, ...]
    size: float  # of a typical entry
    measured: np.ndarray  # gradients there, [count]


class Slopes(NamedTuple):
    """Derivatives, and an estimate of their errors."""

    value: Float[np.ndarray, "n"]
    doubt: Float[np.ndarray, "n"]


def slopes(function: Callable[[Array, Array], Array], samples: Sequence[Sample]) -> Slopes:
    """Returns d function(place, change) / d change at all places, from STEPS times the size of each.

    Each two neighbouring steps are extrapolated to zero (Richardson 1911), which leaves an error of h^4. The result is
    the extrapolation that differs least from its neighbour, with the rounding of the values added to that difference
    (Ridders 1982, "Accurate computation of F'(x) and F'(x)F''(x)").
    """
    steps = np.repeat([each.size for each in samples], [len(each.places) for each in samples])[:, None] * STEPS
    changes = np.stack([steps, -steps], axis=1)  # [n, 2, K]
    places = np.repeat(np.concatenate([each.places for each in samples]), 2 * len(STEPS), axis=0)
    values = called_once(lambda *all: jax.lax.map(lambda each: function(*each), all), places, changes.ravel())
    values = np.reshape(values, changes.shape)
    central = (values[:, 0] - values[:, 1]) / (2 * steps)
    better = (16 * central[:, 1:] - central[:, :-1]) / 15
    rounding = 4 * np.finfo(np.float64).eps * np.abs(values).max(axis=1) / steps
    doubt = np.abs(np.diff(better, axis=1)) + rounding[:, 2:]
    best = doubt.argmin(axis=1)[:, None]
    return Slopes(np.take_along_axis(better[:, 1:], best, 1)[:, 0], np.take_along_axis(doubt, best, 1)[:, 0])


@belief(
    "GPAS, Chen et al. 2025, 2506.22049: activations are scaled by 1 - SiLU(g) behind a stop-gradient",
    "|δ_0| of the project's backward pass at g = 1; a central difference of the loss along δ_0",
)
def stopped_gradient() -> Pair:
    """“What backpropagation returns is the slope of the loss”, with any residual rule"""
    network = dataclasses.replace(TINY, config=TINY.config.model_copy(update={"residual": ResidualConfig(rule="gpas")}))
    gates = {"gate": jnp.ones(TINY.config.layers)}
    subject = dataclasses.replace(tiny(), network=network)
    params = tiny().params | {"blocks": tiny().params["blocks"] | {"residual": gates}}
    delta = called_once(jax.grad(subject.loss), params)["embed"]
    unit = delta / np.linalg.norm(delta)
    up, down = (called_once(subject.loss, params | {"embed": params["embed"] + h * unit}) for h in (1e-5, -1e-5))
    return Pair(np.linalg.norm(delta), (up - down) / 2e-5)


def evidence_of(samples: Sequence[Sample], predicted: Slopes, note: str) -> Evidence:
    """Returns one pair for each sample.

    Errors of slopes that are small and that differences cannot resolve are relative to the largest of all; the note
    names these slopes, and they come last.
    """
    ends, largest = np.cumsum([len(each.places) for each in samples])[:-1], float(np.abs(predicted.value).max())
    pairs, small = [], []
    for each, p, doubt in zip(samples, *(np.split(column, ends) for column in predicted), strict=True):
        slope = np.abs(p).max()
        if slope <= NEGLIGIBLE * largest and (slope == 0 or doubt.max() > 0.1 * CLOSE.value * slope):
            small.append(Pair(p, each.measured, each.label, largest))
        else:
            pairs.append(Pair(p, each.measured, each.label))
    if small:
        names = "; ".join(pair.label for pair in small[:3]) + (f" and {len(small) - 3} more" if len(small) > 3 else "")
        note += f". Too small for differences, so their errors are against the largest slope: {names}"
    return Evidence([*pairs, *small], note)


def samples_of(params: Any, gradients: Any) -> list[Sample]:
    """Returns SAMPLES entries of every parameter, the stacked ones layer by layer; places in the flat vector of all."""
    samples, offset, gradient = [], 0, np.asarray(ravel_pytree(gradients)[0])
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path, stacked = path_of(keys), path_of(keys).startswith("blocks/")
        for layer, values in enumerate(np.reshape(leaf, (leaf.shape[0] if stacked else 1, -1))):
            rng = np.random.default_rng([zlib.crc32(path.encode()), layer])
            places = offset + rng.choice(values.size, min(SAMPLES, values.size), replace=False)
            label, size = f"{path}, block {layer}" if stacked else path, float(np.sqrt(np.mean(values**2)))
            samples.append(Sample(label, places, max(SMALL, size), gradient[places]))
            offset += values.size
    return samples


@claim(
    DEFINITION, "central finite differences of the loss, extrapolated; one tapped backward pass", CLOSE, of_model=True
)
def parameters(subject: Subject) -> Evidence:
    """Every parameter of the config's model: the gradient is the slope of the loss"""
    samples, (flat, unflat) = samples_of(subject.params, true_gradients(subject.tapped)), ravel_pytree(subject.params)
    predicted = slopes(lambda place, change: subject.loss(unflat(flat.at[place].add(change))), samples)
    note = f"{len(samples)} parameters, each block's its own; at most {SAMPLES} entries of each"
    return evidence_of(samples, predicted, note)


@claim(
    DEFINITION,
    "finite differences along δ_l and along single entries, blocks put together one by one; "
    "the taps' |δ_l|, and jax.grad",
    CLOSE,
    of_model=True,
)
def stream(subject: Subject) -> Evidence:
    """δ_l at every depth of the config's model: the slope of the loss by the stream that enters block l"""
    depths, anatomy = np.arange(subject.network.config.layers + 1), subject.anatomy()
    size = jax.eval_shape(anatomy.stream, anatomy.carry).size
    gradient = jax.vmap(jax.grad(subject.loss_with_change, argnums=1), in_axes=(0, None))
    delta = np.asarray(called_once(gradient, depths, np.zeros(size)))
    # Along delta the loss rises by |delta|, and along an entry by delta there.
    entries = np.random.default_rng(0).choice(size, min(PLACES, size), replace=False)
    along = (delta / np.linalg.norm(delta, axis=1, keepdims=True))[:, None]
    directions = jnp.asarray(np.concatenate([along, np.tile(np.eye(size)[entries], (len(depths), 1, 1))], axis=1))
    lengths, samples = value(subject.tapped.delta)[:, None], []
    for depth, rms in enumerate(np.asarray(subject.tapped.stream.rms, np.float64)):
        places = np.stack([np.full(len(entries) + 1, depth), np.arange(len(entries) + 1)], axis=1)
        samples.append(Sample(f"|δ_{depth}|", places[:1], rms * np.sqrt(size), lengths[depth]))
        samples.append(Sample(f"δ_{depth}, {len(entries)} entries", places[1:], rms, delta[depth, entries]))

    def loss(place: Array, change: Array) -> Array:
        return subject.loss_with_change(place[0], change * directions[place[0], place[1]])

    return evidence_of(samples, slopes(loss, samples), f"{len(depths)} depths")
