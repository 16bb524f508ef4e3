"""Delta at every block of a model that is not ours, measured without a change to its code.

A meter is the identity at the argument and at the output of a block; its backward pass measures the cotangent. Blocks
of Linen are intercepted, blocks of NNX and of other pytrees (Equinox) replaced in a copy of the model.

The powers of two that keep a deep stack in the range of its dtype cannot travel from block to block here, as they do in
model/taps.py. They are inputs, one a block and one for the loss, chosen on the host from the norms of the pass before,
and so the same under vmap, scan, jit and remat. Squares are summed in bins of 64 binary orders: the examples of a
vmapped model add up, whatever their sizes.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jaxtyping import Array, Float

from model.scaling import exponent_limit, power_of_two, scaled

from ..text import power
from .verdict import Verdict, judge

_METER = "deltaflow_meter"  # name of a slot among the parameters of a block of Linen
BIN = 64  # binary orders of the squares in a bin
SAFE = 40.0  # log2 of a measured norm, or of its inverse, up to which a pass is in the range of float32
SAME = 0.02  # difference in log2 between two measurements of the same cotangent


class GradientFlow(NamedTuple):
    delta_log10: Float[np.ndarray, "L+1"]  # log10|delta_l|: at the argument of block l, and at the last block's output
    verdict: Verdict


class _Slot(NamedTuple):
    """Input of a block's two meters; its cotangent is what they measure. Stacked: a leading axis L."""

    exponent: Float[Array, ""]  # power of two to take out of the cotangent below the block
    bins: Float[Array, "2 N"]  # cotangent: the squares at the argument and at the output, see `_log2_norm`
    calls: Float[Array, ""]  # cotangent: the number of calls


def gradient_flow(loss: Callable[..., Array], model: Any, blocks: Any, *args: Any) -> GradientFlow:
    """Returns log10|delta_l|, l = 0 to L, and the verdict of one backward pass, for any stack of blocks.

    loss: (model, *args) -> scalar. It is called with a copy of `model` whose blocks are measured; args are traced.

    blocks: for a Linen model the class of the blocks, or several. Otherwise a function of the model that returns its
    blocks: a list in the order of depth, or one module whose arrays are stacked along a leading axis and which is
    called under scan.

    The stream is the first argument of a block, and its output or the first element of it with the same shape. Raises
    ValueError if a block is not called exactly once, or if the stream also goes around the blocks.
    """
    if isinstance(model, linen.Module):
        arrays, depth, measured_loss = _linen(loss, model, blocks, args)
    elif isinstance(model, nnx.Module):
        arrays, depth, measured_loss = _nnx(loss, model, blocks)
    else:
        arrays, depth, measured_loss = _pytree(loss, model, blocks)
    if depth == 0:
        raise ValueError(f"blocks: expected the blocks of {type(model).__name__}, got none")
    dtype = jnp.result_type(float)  # float64 if it is enabled
    bins = jnp.zeros((depth, 2, 2 * ((exponent_limit(dtype) + 2) * 2 // BIN)), dtype)
    zeros = _Slot(jnp.zeros(depth, dtype), bins, jnp.zeros(depth, dtype))
    result = jax.eval_shape(measured_loss, zeros, arrays, args)
    if getattr(result, "shape", None) != () or not jnp.issubdtype(result.dtype, jnp.floating):
        raise ValueError(f"loss: expected one real number, got {result}")
    limit = exponent_limit(result.dtype)

    @jax.jit
    @jax.grad
    def measure(slots, exponent, arrays, args):
        return _meter(measured_loss(slots, arrays, args), exponent, bins[0, 0], exponent)

    taken, delta = np.zeros(depth + 1), np.zeros(0)  # the last one at the loss
    for _ in range(depth + 3):  # each pass reaches at least one depth more
        exponents = jnp.asarray(taken, dtype)
        slots = measure(zeros._replace(exponent=exponents[:-1]), exponents[-1], arrays, args)
        seen = _log2_norm(slots.bins)
        above = np.cumsum(taken[::-1])[::-1][1:]
        _check(np.asarray(slots.calls), seen + above[:, None])
        delta = np.append(seen[0, 0] + above[0], seen[:, 1] + above)
        if np.abs(seen).max() <= SAFE:
            break
        before, taken = taken, np.zeros(depth + 1)
        taken[depth] = np.clip(np.round(np.nan_to_num(delta[depth], nan=limit)), -limit, limit)
        for layer in reversed(range(depth)):
            if not np.isfinite(delta[layer]):
                break
            taken[layer] = np.clip(np.round(delta[layer]) - taken.sum(), -126, 126)
        if (taken == before).all():
            break
    delta_log10 = delta * np.log10(2.0)
    return GradientFlow(delta_log10, judge(delta_log10, {}, doubt=True))


@jax.custom_vjp
def _meter(x, exponent, bins, calls):
    """Returns x. In the backward pass measures its cotangent and takes 2^exponent out of it."""
    del exponent, bins, calls
    return x


def _forward(x, exponent, bins, calls):
    del calls
    return x, (exponent, bins)


def _backward(residuals, cotangent):
    exponent, bins = jnp.asarray(residuals[0]), residuals[1]  # jax 0.7 may hand in a literal
    wide = cotangent.astype(bins.dtype)
    k = power_of_two(wide)
    squares = jnp.sum(jnp.square(scaled(wide, -k)))
    index = jnp.floor(2 * k / BIN)
    squares = scaled(squares, 2 * k - BIN * index)
    here = jnp.arange(bins.size) - bins.size // 2 == index.astype(int)
    below = scaled(wide, -exponent).astype(cotangent.dtype)
    # One a call, and not one an example: of a constant, vmap makes no sum.
    return below, jnp.zeros_like(exponent), jnp.where(here, squares, jnp.zeros_like(squares)), jnp.ones_like(exponent)


_meter.defvjp(_forward, _backward)


def _log2_norm(bins: Float[Array, "*axes N"]) -> Float[np.ndarray, "*axes"]:
    """Returns log2 of the norm whose squares are in the bins, on the host."""
    count = bins.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        orders = np.log2(np.asarray(bins, np.float64)) + BIN * (np.arange(count) - count // 2)
        return np.logaddexp2.reduce(orders, axis=-1) / 2


def _check(calls: Float[np.ndarray, "L"], norms: Float[np.ndarray, "L 2"]) -> None:
    """Raises ValueError unless the stream passes every block once and nothing else."""
    for layer in np.flatnonzero(calls != 1):
        if calls[layer] == 0:
            raise ValueError(f"blocks: block {layer} was not called, or the loss does not depend on it")
        raise ValueError(
            f"blocks: expected one call of block {layer}, got {calls[layer]:g}. Blocks that share weights are not "
            "supported; of a stack under scan, return the stacked module itself, not a list"
        )
    upper, lower = norms[1:, 0], norms[:-1, 1]
    with np.errstate(invalid="ignore"):
        same = (upper == lower) | (np.abs(upper - lower) < SAME) | ~(np.maximum(upper, lower) < np.inf)
    for layer in np.flatnonzero(~same)[::-1]:
        ratio = power((upper[layer] - lower[layer]) * np.log10(2.0))
        raise ValueError(
            f"blocks: the stream goes around block {layer + 1}: the gradient at its argument is {ratio} times that at "
            f"the output of block {layer}. Choose blocks that contain their skips, and all that is between two blocks"
        )


def _through(call: Callable[..., Any], slot: _Slot, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Returns call(*args, **kwargs) with a meter at the first argument and one at the output."""
    if not args:
        raise ValueError("blocks: expected the stream as first positional argument, got keywords alone")
    if slot.calls.ndim:
        raise ValueError("blocks: expected a stacked module that is called under scan, got a call of all of it")
    stream, *others = args
    output = call(_meter(stream, slot.exponent, slot.bins[0], slot.calls), *others, **kwargs)
    parts = [output] if not isinstance(output, (tuple, list)) else list(output)
    index = next((i for i, part in enumerate(parts) if getattr(part, "shape", None) == stream.shape), None)
    if index is None:
        shapes = jax.tree.map(jnp.shape, output)
        raise ValueError(f"blocks: expected an output of the shape {stream.shape} of the argument, got {shapes}")
    # The zeros are no part of a slot: an output has no call to count, and no power to take out.
    zero = jnp.zeros_like(slot.exponent)
    parts[index] = _meter(parts[index], zero, slot.bins[1], zero)
    if not isinstance(output, (tuple, list)):
        return parts[0]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def _linen(loss, model, blocks, args):
    """Returns (None, L, loss of (slots, None, args)). Blocks are told apart by their paths, in the order of calls.

    A slot is a parameter of its block, which nn.scan hands to the calls of a stack one by one.
    """
    if not all(isinstance(kind, type) for kind in (blocks if isinstance(blocks, tuple) else (blocks,))):
        raise ValueError(f"blocks: expected the class of a Linen model's blocks, or several, got {blocks!r}")
    stacks: dict[tuple[str, ...], tuple[int, ...]] = {}  # by path: () of one block, (n,) of n under nn.scan

    def measured_loss(slots, arrays, args):
        del arrays
        params: Any = None

        def apply(variables, *arguments, **keywords):
            nonlocal params
            params, end = variables.get("params", {}), 0
            for path, stack in stacks.items():
                start, end = end, end + math.prod(stack)
                if slots is not None:
                    slot = _Slot(*(leaf[start:end].reshape(*stack, *leaf.shape[1:]) for leaf in slots))
                    params = _with_meter(params, path, slot)
            return model.apply({**variables, "params": params}, *arguments, **keywords)

        def intercept(call, arguments, keywords, context):
            block = context.module
            if context.method_name != "__call__" or not isinstance(block, blocks):
                return call(*arguments, **keywords)
            if params is None:
                raise ValueError("loss: expected model.apply(variables, ...), with the model that it is given")
            if slots is not None:
                return _through(call, block.get_variable("params", _METER), arguments, keywords)
            whole = jax.tree.leaves(reduce(lambda tree, name: tree.get(name, {}), block.path, params))
            parts = jax.tree.leaves(block.variables.get("params", {}))
            stack = whole[0].shape[: whole[0].ndim - parts[0].ndim] if parts else ()
            if any(one.shape != (*stack, *part.shape) for one, part in zip(whole, parts, strict=True)):
                raise ValueError(f"blocks: expected nn.scan over axis 0 of the parameters of {type(block).__name__}")
            stacks[block.path] = stack
            return call(*arguments, **keywords)

        copy = model.clone()
        object.__setattr__(copy, "apply", apply)
        with linen.intercept_methods(intercept):
            return loss(copy, *args)

    jax.eval_shape(lambda *args: measured_loss(None, None, args), *args)
    return None, sum(map(math.prod, stacks.values())), measured_loss


def _with_meter(params, path, slot):
    """Returns nested parameters with a slot among those of the module at `path`."""
    first, *rest = path or [_METER]
    return {**params, first: _with_meter(params.get(first, {}), rest, slot) if path else slot}


@cache
def _tapped(kind: type) -> type:
    """Returns a class of blocks that are called through meters; the slot is in three of its parameters."""

    def __call__(self, *args, **kwargs):
        slot = _Slot(*(getattr(self, f"meter_{name}")[...] for name in _Slot._fields))
        return _through(partial(kind.__call__, self), slot, args, kwargs)

    return type(kind)(kind.__name__, (kind,), {"__call__": __call__})


def _nnx(loss, model, blocks):
    """Returns (arrays, L, loss of (slots, arrays, args)). A block becomes an instance of a derived class."""
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    depth = _depth(blocks(model), lambda stack: jax.tree.leaves(nnx.state(stack)))

    def measured_loss(slots, leaves, args):
        copy = nnx.merge(graph, jax.tree.unflatten(tree, leaves))  # variables of this trace, which nnx.scan demands
        for block, slot in _with_slots(blocks(copy), slots):
            for name, value in slot._asdict().items():
                setattr(block, f"meter_{name}", nnx.Param(value))
            block.__class__ = _tapped(type(block))
        return loss(copy, *args)

    return leaves, depth, measured_loss


@jax.tree_util.register_pytree_node_class
class _Tapped:
    """A block of a pytree model that is called through meters; all else is the block's."""

    def __init__(self, block, slot):
        self.block, self.slot = block, slot

    def __call__(self, *args, **kwargs):
        return _through(self.block, self.slot, args, kwargs)

    def __getattr__(self, name):
        return getattr(self.block, name)

    def tree_flatten(self):
        return (self.block, self.slot), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def _pytree(loss, model, blocks):
    """Returns (arrays, L, loss of (slots, arrays, args)). A block becomes a node that holds it and its slot."""
    leaves, tree = jax.tree.flatten(model)
    arrays = {index: leaf for index, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))}
    depth = _depth(blocks(model), jax.tree.leaves)

    def measured_loss(slots, arrays, args):
        copy = jax.tree.unflatten(tree, [arrays.get(index, leaf) for index, leaf in enumerate(leaves)])
        tapped = {id(block): _Tapped(block, slot) for block, slot in _with_slots(blocks(copy), slots)}
        copy = jax.tree.map(lambda node: tapped.get(id(node), node), copy, is_leaf=lambda node: id(node) in tapped)
        return loss(copy, *args)

    return arrays, depth, measured_loss


def _depth(stack, leaves) -> int:
    if isinstance(stack, Sequence):
        return len(stack)
    lengths = {leaf.shape[:1] for leaf in leaves(stack) if isinstance(leaf, (jax.Array, np.ndarray))}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"blocks: expected a list, or a module whose arrays are stacked along one leading axis, got "
            f"{type(stack).__name__} with leading axes {sorted(lengths)}"
        )
    return lengths.pop()[0]


def _with_slots(stack, slots: _Slot):
    """Returns pairs (block, slot); a stacked module has all the slots."""
    if not isinstance(stack, Sequence):
        return [(stack, slots)]
    return [(block, jax.tree.map(lambda leaf, index=index: leaf[index], slots)) for index, block in enumerate(stack)]
