"""Claims about the transformer: explicit Jacobians, and finite differences of every parameter at every depth."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from data.source import Batch
from model.config import ModelConfig
from model.network import Network, Params, path_of
from model.residual import rule_of

from ..device.programs import called_once
from ..gradflow.delta import true_gradients
from ..gradflow.norms import value
from . import by_hand
from .claim import NEGLIGIBLE, Evidence, Pair, Tolerance, claim
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


def pass_by_hand(params: Params) -> by_hand.Pass:
    params, config = jax.tree.map(np.asarray, params), TINY.config
    blocks = [jax.tree.map(itemgetter(layer), params["blocks"]) for layer in range(config.layers)]
    return by_hand.transformer(
        {**params, "blocks": blocks}, WINDOW[0, :-1], WINDOW[0, 1:], config.heads, config.norm_eps
    )


@cache
def tiny_pass() -> by_hand.Pass:
    return pass_by_hand(tiny().params)


@claim(XIONG, "numpy, 3 blocks of width 8; the project's network and loss")
def forward() -> Pair:
    """A transformer written down again in numpy has the same loss"""
    return Pair(tiny_pass().loss, called_once(tiny().loss, tiny().params))


@claim(XIONG, f"{JACOBIANS}; jax.jacfwd of the project's own blocks")
def block_jacobian() -> Evidence:
    """∂x_(l+1)/∂x_l = (I + J_mlp J_N)(I + J_attn J_N): each block's Jacobian, entry by entry"""
    pairs, anatomy = [], tiny().anatomy()
    for layer, (x, predicted) in enumerate(zip(tiny_pass().stream, tiny_pass().blocks, strict=False)):
        block = partial(anatomy.block, jax.tree.map(itemgetter(layer), anatomy.blocks), jnp.int32(layer))
        measured = called_once(jax.jacfwd(block), jnp.asarray(x))
        pairs.append(Pair(predicted, np.reshape(measured, predicted.shape), f"block {layer}"))
    return Evidence(pairs)


@claim(XIONG, f"the product of explicit {JACOBIANS}; one tapped backward pass of the project's network")
def embeddings() -> Pair:
    """∂L/∂Embeddings = Sᵀ J_0ᵀ J_1ᵀ J_2ᵀ J_Nᵀ Hᵀ (p - y)/T, S the one-hot matrix of the tokens"""
    return Pair(tiny_pass().embed, true_gradients(tiny().tapped)["embed"])


@claim(XIONG, f"partial products of {JACOBIANS}; the taps of the same backward pass", each=True)
def delta() -> Pair:
    """|δ_l| at every depth is the norm of the product of what lies above"""
    return Pair([np.linalg.norm(delta) for delta in tiny_pass().delta], value(tiny().tapped.delta))


@claim("expand |(I + J)ᵀ δ|²", "the three terms, J = the block's Jacobian less I; the taps, squared", each=True)
def split() -> Pair:
    """|δ_l|² = |δ_(l+1)|² + 2⟨δ_(l+1), Jᵀδ_(l+1)⟩ + |Jᵀδ_(l+1)|², J the branch's Jacobian"""
    predicted = []
    for block, above in zip(tiny_pass().blocks, tiny_pass().delta[1:], strict=True):
        delta = above.ravel()
        branch = (block - np.eye(delta.size)).T @ delta
        predicted.append(delta @ delta + 2 * delta @ branch + branch @ branch)
    return Pair(predicted, value(tiny().tapped.delta)[:-1] ** 2)


@claim(
    "the chain rule for what is used twice",
    "dL/dE of the lookup and (p - y)ᵀ N(x_L)/T of the head, by hand; jax.grad of a tied network of the project",
)
def tied() -> Pair:
    """A tied table's gradient is the sum of its two uses, as lookup and as head"""
    network = dataclasses.replace(TINY, config=TINY.config.model_copy(update={"tied_head": True}))
    params = {name: leaf for name, leaf in tiny().params.items() if name != "head"}
    uses = pass_by_hand({**params, "head": params["embed"]})
    loss = dataclasses.replace(tiny(), network=network).loss
    return Pair(uses.embed + uses.head, called_once(jax.grad(loss), params)["embed"])


class Slopes(NamedTuple):
    """Derivatives, and an estimate of their errors."""

    value: Float[np.ndarray, "n"]
    doubt: Float[np.ndarray, "n"]


def slopes(values: Float[np.ndarray, "n 2 K"], sizes: Float[np.ndarray, "n"]) -> Slopes:
    """Returns the derivatives of n functions from their values at +size * STEPS and -size * STEPS.

    Each two neighbouring steps are extrapolated to zero (Richardson 1911), which leaves an error of h^4. The result is
    the extrapolation that differs least from its neighbour, with the rounding of the values added to that difference
    (Ridders 1982, "Accurate computation of F'(x) and F'(x)F''(x)").

    >>> values = np.exp(np.stack([STEPS, -STEPS]))[None]
    >>> bool(abs(slopes(values, np.ones(1)).value[0] - 1) < 1e-11)
    True
    """
    steps = sizes[:, None] * STEPS
    central = (values[:, 0] - values[:, 1]) / (2 * steps)
    better = (16 * central[:, 1:] - central[:, :-1]) / 15
    rounding = 4 * np.finfo(np.float64).eps * np.abs(values).max(axis=1) / steps
    doubt = np.abs(np.diff(better, axis=1)) + rounding[:, 2:]
    best = doubt.argmin(axis=1)[:, None]
    return Slopes(np.take_along_axis(better[:, 1:], best, 1)[:, 0], np.take_along_axis(doubt, best, 1)[:, 0])


def differences(function: Callable[[Array, Array], Array], places: np.ndarray, sizes: np.ndarray) -> Slopes:
    """Returns d function(place, change) / d change at places [n, ...], with steps relative to `sizes` [n]."""
    changes = sizes[:, None] * np.concatenate([STEPS, -STEPS])
    where = np.repeat(places, changes.shape[1], axis=0)

    def all_of_them(where: Array, changes: Array) -> Array:
        return jax.lax.map(lambda pair: function(*pair), (where, changes))

    values = called_once(all_of_them, where, changes.ravel())
    return slopes(np.reshape(values, (len(sizes), 2, len(STEPS))), sizes)


def grouped(
    labels: Sequence[str], counts: Sequence[int], predicted: Slopes, measured: np.ndarray, note: str
) -> Evidence:
    """One pair for each label, of the next `counts` entries.

    Errors of slopes that are small and that differences cannot resolve are relative to the largest of all; the note
    names these slopes, and they come last.
    """
    ends, largest, pairs, small = np.cumsum(counts)[:-1], float(np.abs(predicted.value).max()), [], []
    columns = zip(*(np.split(each, ends) for each in (predicted.value, predicted.doubt, measured)), strict=True)
    for label, (p, doubt, m) in zip(labels, columns, strict=True):
        slope = np.abs(p).max()
        if slope <= NEGLIGIBLE * largest and (slope == 0 or doubt.max() > 0.1 * CLOSE.value * slope):
            small.append(Pair(p, m, label, largest))
        else:
            pairs.append(Pair(p, m, label))
    if small:
        names = "; ".join(pair.label for pair in small[:3]) + (f" and {len(small) - 3} more" if len(small) > 3 else "")
        note += f". Too small for differences, so their errors are against the largest slope: {names}"
    return Evidence([*pairs, *small], note)


class Part(NamedTuple):
    """Some entries of one parameter: their places in the flat vector of all, and the size of a typical one."""

    label: str
    places: np.ndarray
    size: float


def parts_of(params: Any) -> list[Part]:
    """Returns SAMPLES entries of every parameter, the stacked ones layer by layer."""
    parts, offset = [], 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path, stacked = path_of(keys), path_of(keys).startswith("blocks/")
        for layer, values in enumerate(np.reshape(leaf, (leaf.shape[0] if stacked else 1, -1))):
            label = f"{path}, block {layer}" if stacked else path
            rng = np.random.default_rng([zlib.crc32(path.encode()), layer])
            places = offset + rng.choice(values.size, min(SAMPLES, values.size), replace=False)
            parts.append(Part(label, places, max(SMALL, float(np.sqrt(np.mean(values**2))))))
            offset += values.size
    return parts


@claim(
    DEFINITION,
    "central finite differences of the loss, extrapolated; one tapped backward pass",
    tolerance=CLOSE,
    of_model=True,
)
def parameters(subject: Subject) -> Evidence:
    """Every parameter of the config's model: the gradient is the slope of the loss"""
    labels, groups, sizes = zip(*parts_of(subject.params), strict=True)
    flat, unflat = ravel_pytree(subject.params)
    counts, places = [len(group) for group in groups], np.concatenate(groups)
    predicted = differences(
        lambda place, change: subject.loss(unflat(flat.at[place].add(change))), places, np.repeat(sizes, counts)
    )
    measured = np.asarray(ravel_pytree(true_gradients(subject.tapped))[0])[places]
    note = f"{len(labels)} parameters, each block's its own; at most {SAMPLES} entries of each"
    return grouped(labels, counts, predicted, measured, note)


@claim(
    DEFINITION,
    "finite differences along δ_l and along single entries, blocks put together one by one; "
    "the taps' |δ_l|, and jax.grad",
    tolerance=CLOSE,
    of_model=True,
)
def stream(subject: Subject) -> Evidence:
    """δ_l at every depth of the config's model: the slope of the loss by the stream that enters block l"""
    depths, of_carry = np.arange(subject.network.config.layers + 1), rule_of(subject.network.config).stream
    zero = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: subject.anatomy().carry))
    shape = jax.eval_shape(of_carry, zero)
    onto = jax.linear_transpose(of_carry, zero)  # a change of the stream as a change of the whole carry
    gradient = jax.vmap(jax.grad(subject.loss_with_offset, argnums=1), in_axes=(0, None))
    grad = called_once(lambda depths: jax.vmap(of_carry)(gradient(depths, zero)), depths)
    delta = np.reshape(grad, (len(depths), -1))
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
    sizes = rms[:, None] * np.where(np.arange(count) == 0, np.sqrt(size), 1.0)
    predicted = differences(loss, places, sizes.ravel())
    measured = np.concatenate([value(subject.tapped.delta)[:, None], delta[:, entries]], axis=1).ravel()
    labels = [label for depth in depths for label in (f"|δ_{depth}|", f"δ_{depth}, {count - 1} entries")]
    return grouped(labels, [1, count - 1] * len(depths), predicted, measured, f"{len(depths)} depths")
