"""Claims about the transformer: explicit Jacobians, every parameter and every depth against finite differences."""

import dataclasses
import zlib
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from data.source import Batch
from model.config import ModelConfig
from model.network import Network, Params

from ..core.compile import called_once
from ..core.parameters import path_of
from ..gradflow.delta import true_gradients
from ..gradflow.norms import value
from . import by_hand
from .claim import NEGLIGIBLE, Claim, Evidence, Pair, Tolerance, evidence
from .differences import STEPS, Slopes, slopes
from .subject import Subject

XIONG = "Xiong et al. 2020, 2002.04745, and its Jacobians"
DEFINITION = "the definition of the derivative"
SAMPLES = 2  # entries of each parameter of each block
PLACES = 4  # entries of the stream at each depth
CLOSE = Tolerance(
    1e-5,
    "losses are rounded to 1e-15, so differences know a slope to 1e-12, and a parameter's may be a millionth of that",
)
SMALL = 0.1  # entries are moved as if they were no smaller than this, or rounding would be all there is to see

# A transformer that is small enough for its Jacobians to be written down.
TINY = Network(ModelConfig(layers=3, width=8, heads=2, tied_head=False), 7, 5, "float64")
WINDOW = np.array([[3, 0, 4, 0, 5, 2]], np.int32)  # a token occurs twice


@cache
def _tiny() -> Subject:
    return Subject("tiny", TINY, {}, Batch(WINDOW[:, :-1], WINDOW[:, 1:]), spread=0.5)


@cache
def _walk() -> by_hand.Walk:
    return _walked(_tiny().params)


def _walked(params: Params) -> by_hand.Walk:
    config, params = TINY.config, jax.tree.map(np.asarray, params)
    return by_hand.transformer(params, WINDOW[0, :-1], WINDOW[0, 1:], config.heads, config.norm_eps)


def _embeddings() -> Evidence:
    return evidence(_walk().embed, true_gradients(_tiny().tapped)["embed"])


def _forward() -> Evidence:
    return evidence(_walk().loss, called_once(_tiny().loss, _tiny().params))


def _tiny_delta() -> Evidence:
    predicted = np.array([np.linalg.norm(delta) for delta in _walk().delta])
    return evidence(predicted, value(_tiny().tapped.delta))


def _block_jacobians() -> Evidence:
    params = jax.tree.map(np.asarray, _tiny().params)
    x, pairs = params["embed"][WINDOW[0, :-1]] + params["positions"], []
    for layer, block in enumerate(_walk().blocks):
        measured = np.asarray(called_once(jax.jacfwd(partial(_tiny().block, layer)), jnp.asarray(x)))
        pairs.append(Pair(block.jacobian, measured, f"block {layer}"))
        x = block.value
    return Evidence(tuple(pairs))


def _split() -> Evidence:
    walk, predicted = _walk(), []
    for block, above in zip(walk.blocks, walk.delta[1:], strict=True):
        delta = above.reshape(-1)
        branch = (block.matrix - np.eye(delta.size)).T @ delta
        predicted.append(delta @ delta + 2 * delta @ branch + branch @ branch)
    return evidence(np.array(predicted), value(_tiny().tapped.delta)[:-1] ** 2)


def _two_paths() -> Evidence:
    network = dataclasses.replace(TINY, config=TINY.config.model_copy(update={"tied_head": True}))
    params = {name: leaf for name, leaf in _tiny().params.items() if name != "head"}
    walk = _walked({**params, "head": params["embed"]})
    tied = dataclasses.replace(_tiny(), network=network)
    return evidence(walk.embed + walk.head, called_once(jax.grad(tied.loss), params)["embed"])


class Part(NamedTuple):
    """Some entries of one parameter: where they are in the flat vector of all, and the size of a typical one."""

    label: str
    places: Int[np.ndarray, "samples"]
    size: float


def parts_of(params: Any) -> list[Part]:
    """Every parameter, the stacked ones layer by layer, with the entries that are looked at."""
    parts, offset = [], 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path, size = path_of(keys), int(np.prod(leaf.shape))
        layers = leaf.shape[0] if path.startswith("blocks/") else 1
        each = size // layers
        for layer in range(layers):
            label = f"{path}, block {layer}" if path.startswith("blocks/") else path
            rng = np.random.default_rng([zlib.crc32(path.encode()), layer])
            places = rng.choice(each, min(SAMPLES, each), replace=False) + offset + layer * each
            values = np.asarray(leaf).reshape(layers, each)[layer]
            parts.append(Part(label, places, max(SMALL, float(np.sqrt(np.mean(values**2))))))
        offset += size
    return parts


def _differences(function: Any, places: np.ndarray, sizes: np.ndarray) -> Slopes:
    """Of function(place, change) by the change, at many places [n], steps relative to `sizes` [n]."""
    changes = sizes[:, None] * np.concatenate([STEPS, -STEPS])[None, :]
    where = np.broadcast_to(places.reshape(len(places), 1, -1), (*changes.shape, places.size // len(places)))

    def all_of_them(where: Array, changes: Array) -> Array:
        return jax.lax.map(lambda one: function(*one), (where, changes))

    found = called_once(all_of_them, where.reshape(changes.size, -1), changes.reshape(-1))
    values = np.asarray(found).reshape(changes.shape)
    return slopes(values[:, : len(STEPS)], values[:, len(STEPS) :], sizes)


def _told_apart(
    labels: Sequence[str], groups: Sequence[slice], found: Slopes, measured: Float[np.ndarray, "n"]
) -> tuple[list[Pair], list[str]]:
    """One pair a group, and the labels of those that finite differences do not know well, or not from zero.

    These are small beside the largest slope of all, and are measured against that one.
    """
    largest, pairs, still = float(np.abs(found.value).max()), [], []
    for label, group in zip(labels, groups, strict=True):
        slope, doubt = float(np.abs(found.value[group]).max()), float(found.doubt[group].max())
        if slope <= NEGLIGIBLE * largest and (slope == 0 or doubt > 0.1 * CLOSE.value * slope):
            still.append(label)
            pairs.append(Pair(found.value[group], measured[group], label, largest))
        else:
            pairs.append(Pair(found.value[group], measured[group], label))
    pairs.sort(key=lambda pair: pair.size is not None)
    return pairs, still


def _parameters(subject: Subject) -> Evidence:
    parts = parts_of(subject.params)
    flat, unflat = ravel_pytree(subject.params)
    places = np.concatenate([part.places for part in parts])
    sizes = np.concatenate([np.full(len(part.places), part.size) for part in parts])

    def loss(place: Array, change: Array) -> Array:
        return subject.loss(unflat(flat.at[place[0]].add(change)))

    measured = np.asarray(ravel_pytree(true_gradients(subject.tapped))[0])[places]
    ends = np.cumsum([len(part.places) for part in parts])
    groups = [slice(end - len(part.places), end) for part, end in zip(parts, ends.tolist(), strict=True)]
    found = _differences(loss, places, sizes)
    pairs, still = _told_apart([part.label for part in parts], groups, found, measured)
    note = f"{len(parts)} parameters, each block's its own; at most {SAMPLES} entries of each"
    return Evidence(tuple(pairs), note + _still(still))


def _still(labels: Sequence[str]) -> str:
    if not labels:
        return ""
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return f". Too small for differences, so their errors are against the largest slope: {'; '.join(labels[:3])}{more}"


def _stream(subject: Subject) -> Evidence:
    layers, zero = subject.network.config.layers, subject.carry()
    depths = np.arange(layers + 1)
    shape = jax.eval_shape(subject.stream, zero)
    onto = jax.linear_transpose(subject.stream, zero)  # a change of the stream as a change of the whole carry
    grad = called_once(jax.vmap(jax.grad(subject.loss_beside, argnums=1), in_axes=(0, None)), jnp.asarray(depths), zero)
    delta = np.asarray(called_once(jax.vmap(subject.stream), grad)).reshape(layers + 1, -1)
    norms = value(subject.tapped.delta)
    # Along delta the loss rises by |delta|; and along a few entries by delta there.
    size = delta.shape[1]
    entries = np.random.default_rng(0).choice(size, min(PLACES, size), replace=False)
    length = np.linalg.norm(delta, axis=1, keepdims=True)
    along = np.concatenate([(delta / length)[:, None], np.tile(np.eye(size)[entries], (layers + 1, 1, 1))], axis=1)
    directions = jnp.asarray(along.reshape(-1, size))

    def loss(place: Array, change: Array) -> Array:
        (offset,) = onto((change * directions[place[1]]).reshape(shape.shape))
        return subject.loss_beside(place[0], offset)

    count = along.shape[1]
    places = np.stack([np.repeat(depths, count), np.arange((layers + 1) * count)], axis=1)
    rms = np.asarray(subject.tapped.seen.rms, np.float64)
    sizes = rms[:, None] * np.where(np.arange(count) == 0, np.sqrt(size), 1.0)[None, :]
    found = _differences(loss, places, sizes.reshape(-1))
    measured = np.concatenate([norms[:, None], delta[:, entries]], axis=1).reshape(-1)
    groups, labels = [], []
    for depth in depths.tolist():
        at = depth * count
        groups += [slice(at, at + 1), slice(at + 1, at + count)]
        labels += [f"|δ_{depth}|", f"δ_{depth}, {count - 1} entries"]
    pairs, still = _told_apart(labels, groups, found, measured)
    return Evidence(tuple(pairs), f"{layers + 1} depths" + _still(still))


def claims(subject: Subject) -> tuple[Claim, ...]:
    jacobians = "Jacobians of norms, attention, MLPs and head, by hand in numpy"
    return (
        Claim(
            "transformer/forward",
            "A transformer written down again in numpy has the same loss",
            XIONG,
            "numpy, 3 blocks of width 8; the project's network and loss",
            _forward,
        ),
        Claim(
            "transformer/block_jacobian",
            "∂x_(l+1)/∂x_l = (I + J_mlp J_N)(I + J_attn J_N): each block's Jacobian, entry by entry",
            XIONG,
            f"{jacobians}; jax.jacfwd of the project's own blocks",
            _block_jacobians,
        ),
        Claim(
            "transformer/embeddings",
            "∂L/∂Embeddings = Sᵀ J_0ᵀ J_1ᵀ J_2ᵀ J_Nᵀ Hᵀ (p - y)/T, S the one-hot matrix of the tokens",
            XIONG,
            f"the product of explicit {jacobians}; one tapped backward pass of the project's network",
            _embeddings,
        ),
        Claim(
            "transformer/delta",
            "|δ_l| at every depth is the norm of the product of what lies above",
            XIONG,
            f"partial products of {jacobians}; the taps of the same backward pass",
            _tiny_delta,
            each=True,
        ),
        Claim(
            "transformer/split",
            "|δ_l|² = |δ_(l+1)|² + 2⟨δ_(l+1), Jᵀδ_(l+1)⟩ + |Jᵀδ_(l+1)|², J the branch's Jacobian",
            "expand |(I + J)ᵀ δ|²",
            "the three terms, J = the block's Jacobian by hand less I; the taps, squared",
            _split,
            each=True,
        ),
        Claim(
            "transformer/tied",
            "A tied table's gradient is the sum of its two uses, as lookup and as head",
            "the chain rule for what is used twice",
            "dL/dE of the lookup and (p - y)ᵀ N(x_L)/T of the head, by hand; jax.grad of a tied network of the project",
            _two_paths,
        ),
        Claim(
            "transformer/parameters",
            "Every parameter of the config's model: the gradient is the slope of the loss",
            DEFINITION,
            "central finite differences of the loss, extrapolated; one tapped backward pass",
            partial(_parameters, subject),
            CLOSE,
        ),
        Claim(
            "transformer/stream",
            "δ_l at every depth of the config's model: the slope of the loss by the stream that enters block l",
            DEFINITION,
            "finite differences along δ_l and along single entries, blocks put together one by one; "
            "the taps' |δ_l|, and jax.grad",
            partial(_stream, subject),
            CLOSE,
        ),
    )
