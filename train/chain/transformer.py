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
from jaxtyping import Array, Float, Int

from data.source import Batch
from model.config import ModelConfig
from model.network import Network, Params, path_of

from ..device.programs import called_once
from ..gradflow.delta import true_gradients
from ..gradflow.norms import value
from . import by_hand
from .by_hand import STEPS, Slopes, slopes
from .claim import NEGLIGIBLE, Evidence, Pair, Tolerance, claim
from .subject import Subject

XIONG = "Xiong et al. 2020, 2002.04745, and its Jacobians"
DEFINITION = "the definition of the derivative"
JACOBIANS = "Jacobians of norms, attention, MLPs and head, by hand in numpy"
SAMPLES = 2  # entries of each parameter of each block
PLACES = 4  # entries of the stream at each depth
CLOSE = Tolerance(
    1e-5,
    "losses are rounded to 1e-15, so differences know a slope to 1e-12, and a parameter's may be a millionth of that",
)
SMALL = 0.1  # entries move as if they were no smaller than this: smaller steps would measure rounding alone

# Small enough for its Jacobians to be written down; a token occurs twice.
TINY = Network(ModelConfig(layers=3, width=8, heads=2, tied_head=False), 7, 5, "float64")
WINDOW = np.array([[3, 0, 4, 0, 5, 2]], np.int32)


@cache
def tiny() -> Subject:
    return Subject("tiny", TINY, {}, Batch(WINDOW[:, :-1], WINDOW[:, 1:]), spread=0.5)


def pass_by_hand(params: Params) -> by_hand.Pass:
    params = jax.tree.map(np.asarray, params)
    return by_hand.transformer(params, WINDOW[0, :-1], WINDOW[0, 1:], TINY.config.heads, TINY.config.norm_eps)


@cache
def tiny_pass() -> by_hand.Pass:
    return pass_by_hand(tiny().params)


@claim(
    "transformer/forward",
    "A transformer written down again in numpy has the same loss",
    XIONG,
    "numpy, 3 blocks of width 8; the project's network and loss",
)
def forward() -> Pair:
    return Pair(tiny_pass().loss, called_once(tiny().loss, tiny().params))


@claim(
    "transformer/block_jacobian",
    "∂x_(l+1)/∂x_l = (I + J_mlp J_N)(I + J_attn J_N): each block's Jacobian, entry by entry",
    XIONG,
    f"{JACOBIANS}; jax.jacfwd of the project's own blocks",
)
def block_jacobian() -> Evidence:
    params = jax.tree.map(np.asarray, tiny().params)
    x, pairs = params["embed"][WINDOW[0, :-1]] + params["positions"], []
    for layer, block in enumerate(tiny_pass().blocks):
        measured = np.asarray(called_once(jax.jacfwd(partial(tiny().block, layer)), jnp.asarray(x)))
        pairs.append(Pair(block.jacobian, measured, f"block {layer}"))
        x = block.value
    return Evidence(pairs)


@claim(
    "transformer/embeddings",
    "∂L/∂Embeddings = Sᵀ J_0ᵀ J_1ᵀ J_2ᵀ J_Nᵀ Hᵀ (p - y)/T, S the one-hot matrix of the tokens",
    XIONG,
    f"the product of explicit {JACOBIANS}; one tapped backward pass of the project's network",
)
def embeddings() -> Pair:
    return Pair(tiny_pass().embed, true_gradients(tiny().tapped)["embed"])


@claim(
    "transformer/delta",
    "|δ_l| at every depth is the norm of the product of what lies above",
    XIONG,
    f"partial products of {JACOBIANS}; the taps of the same backward pass",
    each=True,
)
def delta() -> Pair:
    return Pair([np.linalg.norm(delta) for delta in tiny_pass().delta], value(tiny().tapped.delta))


@claim(
    "transformer/split",
    "|δ_l|² = |δ_(l+1)|² + 2⟨δ_(l+1), Jᵀδ_(l+1)⟩ + |Jᵀδ_(l+1)|², J the branch's Jacobian",
    "expand |(I + J)ᵀ δ|²",
    "the three terms, J = the block's Jacobian by hand less I; the taps, squared",
    each=True,
)
def split() -> Pair:
    predicted = []
    for block, above in zip(tiny_pass().blocks, tiny_pass().delta[1:], strict=True):
        delta = above.reshape(-1)
        branch = (block.matrix - np.eye(delta.size)).T @ delta
        predicted.append(delta @ delta + 2 * delta @ branch + branch @ branch)
    return Pair(predicted, value(tiny().tapped.delta)[:-1] ** 2)


@claim(
    "transformer/tied",
    "A tied table's gradient is the sum of its two uses, as lookup and as head",
    "the chain rule for what is used twice",
    "dL/dE of the lookup and (p - y)ᵀ N(x_L)/T of the head, by hand; jax.grad of a tied network of the project",
)
def tied() -> Pair:
    network = dataclasses.replace(TINY, config=TINY.config.model_copy(update={"tied_head": True}))
    params = {name: leaf for name, leaf in tiny().params.items() if name != "head"}
    uses = pass_by_hand({**params, "head": params["embed"]})
    loss = dataclasses.replace(tiny(), network=network).loss
    return Pair(uses.embed + uses.head, called_once(jax.grad(loss), params)["embed"])


class Part(NamedTuple):
    """Some entries of one parameter: their places in the flat vector of all, and the size of a typical one."""

    label: str
    places: Int[np.ndarray, "samples"]
    size: float


def parts_of(params: Any) -> list[Part]:
    """Returns SAMPLES entries of every parameter, the stacked ones layer by layer."""
    parts, offset = [], 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path, stacked = path_of(keys), path_of(keys).startswith("blocks/")
        layers = np.asarray(leaf).reshape(leaf.shape[0] if stacked else 1, -1)
        for layer, values in enumerate(layers):
            label = f"{path}, block {layer}" if stacked else path
            rng = np.random.default_rng([zlib.crc32(path.encode()), layer])
            places = rng.choice(values.size, min(SAMPLES, values.size), replace=False) + offset + layer * values.size
            parts.append(Part(label, places, max(SMALL, float(np.sqrt(np.mean(values**2))))))
        offset += layers.size
    return parts


def differences(function: Callable[[Array, Array], Array], places: np.ndarray, sizes: np.ndarray) -> Slopes:
    """Returns d function(place, change) / d change at places [n, ...], with steps relative to `sizes` [n]."""
    changes = sizes[:, None] * np.concatenate([STEPS, -STEPS])[None, :]
    where = np.repeat(places, changes.shape[1], axis=0)

    def all_of_them(where: Array, changes: Array) -> Array:
        return jax.lax.map(lambda pair: function(*pair), (where, changes))

    values = np.asarray(called_once(all_of_them, where, changes.reshape(-1))).reshape(changes.shape)
    return slopes(values[:, : len(STEPS)], values[:, len(STEPS) :], sizes)


def grouped(labels: Sequence[str], sizes: Sequence[int], by_hand: Slopes, measured: np.ndarray, note: str) -> Evidence:
    """One pair for each label, of the next `sizes` entries.

    A slope that differences cannot tell from zero, or not well, and that is small relative to the largest of all, is
    measured against that one; the note names these, and they come last.
    """
    largest, pairs, ends = float(np.abs(by_hand.value).max()), [], np.cumsum(sizes)
    for label, start, end in zip(labels, ends - sizes, ends, strict=True):
        group = slice(int(start), int(end))
        slope, doubt = float(np.abs(by_hand.value[group]).max()), float(by_hand.doubt[group].max())
        tiny = slope <= NEGLIGIBLE * largest and (slope == 0 or doubt > 0.1 * CLOSE.value * slope)
        pairs.append(Pair(by_hand.value[group], measured[group], label, largest if tiny else None))
    pairs.sort(key=lambda pair: pair.size is not None)
    if names := [pair.label for pair in pairs if pair.size is not None]:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        note += (
            f". Too small for differences, so their errors are against the largest slope: {'; '.join(names[:3])}{more}"
        )
    return Evidence(pairs, note)


@claim(
    "transformer/parameters",
    "Every parameter of the config's model: the gradient is the slope of the loss",
    DEFINITION,
    "central finite differences of the loss, extrapolated; one tapped backward pass",
    tolerance=CLOSE,
    of_model=True,
)
def parameters(subject: Subject) -> Evidence:
    parts = parts_of(subject.params)
    flat, unflat = ravel_pytree(subject.params)
    counts = [len(part.places) for part in parts]
    places = np.concatenate([part.places for part in parts])
    sizes = np.repeat([part.size for part in parts], counts)
    by_hand = differences(lambda place, change: subject.loss(unflat(flat.at[place].add(change))), places, sizes)
    measured = np.asarray(ravel_pytree(true_gradients(subject.tapped))[0])[places]
    note = f"{len(parts)} parameters, each block's its own; at most {SAMPLES} entries of each"
    return grouped([part.label for part in parts], counts, by_hand, measured, note)


@claim(
    "transformer/stream",
    "δ_l at every depth of the config's model: the slope of the loss by the stream that enters block l",
    DEFINITION,
    "finite differences along δ_l and along single entries, blocks put together one by one; "
    "the taps' |δ_l|, and jax.grad",
    tolerance=CLOSE,
    of_model=True,
)
def stream(subject: Subject) -> Evidence:
    depths, zero = np.arange(subject.network.config.layers + 1), subject.carry()
    shape = jax.eval_shape(subject.stream, zero)
    onto = jax.linear_transpose(subject.stream, zero)  # a change of the stream as a change of the whole carry
    grad = called_once(
        jax.vmap(jax.grad(subject.loss_with_offset, argnums=1), in_axes=(0, None)), jnp.asarray(depths), zero
    )
    delta = np.asarray(called_once(jax.vmap(subject.stream), grad)).reshape(len(depths), -1)
    # Along delta the loss rises by |delta|, and along an entry by delta there.
    size = delta.shape[1]
    entries = np.random.default_rng(0).choice(size, min(PLACES, size), replace=False)
    length = np.linalg.norm(delta, axis=1, keepdims=True)
    along = [(delta / length)[:, None], np.tile(np.eye(size)[entries], (len(depths), 1, 1))]
    directions: Float[Array, "depths count size"] = jnp.asarray(np.concatenate(along, axis=1))

    def loss(place: Array, change: Array) -> Array:
        (offset,) = onto((change * directions[place[0], place[1]]).reshape(shape.shape))
        return subject.loss_with_offset(place[0], offset)

    count = directions.shape[1]
    places = np.stack([np.repeat(depths, count), np.tile(np.arange(count), len(depths))], axis=1)
    rms = np.asarray(subject.tapped.stream.rms, np.float64)
    sizes = rms[:, None] * np.where(np.arange(count) == 0, np.sqrt(size), 1.0)[None, :]
    by_hand = differences(loss, places, sizes.reshape(-1))
    measured = np.concatenate([value(subject.tapped.delta)[:, None], delta[:, entries]], axis=1).reshape(-1)
    labels = [label for depth in depths for label in (f"|δ_{depth}|", f"δ_{depth}, {count - 1} entries")]
    return grouped(labels, [1, count - 1] * len(depths), by_hand, measured, f"{len(depths)} depths")
