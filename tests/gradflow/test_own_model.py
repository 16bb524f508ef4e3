"""Models that are not ours: delta against its definition (the examples of docs/own_model.md: test_docs.py)."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from test_own_stack import blocks

from train.gradflow.own_model import gradient_flow
from train.gradflow.verdict import judge


class Block(nnx.Module):
    def __init__(self, weight):
        self.weight = nnx.Param(weight)

    def __call__(self, x, mask, *, cache=None):
        return cache, x + mask * jnp.tanh(x @ self.weight[...])


class Stack(nnx.Module):
    def __init__(self, block):
        self.block = block


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x, mask):
        weight = self.param("weight", linen.initializers.zeros_init(), (6, 6))
        return {"cache": x[0]}, x + mask * jnp.tanh(x @ weight)


class LinenStack(linen.Module):
    kind: Any = LinenBlock
    axis: int | None = None  # of the parameters under scan

    @linen.compact
    def __call__(self, x, mask):
        if self.axis is not None:
            over = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}, "length": 4}
            scan: Any = linen.scan(lambda block, x, _: (block(x, mask)[1], None), **over)
            return scan(self.kind(name="all"), x, None)[0]
        for layer in range(4):
            _, x = self.kind(name=str(layer))(x, mask)
        return x


@jax.tree_util.register_pytree_node_class
class Node:
    """A block of a pytree model without a library; it sees one example."""

    def __init__(self, weight, activation=jnp.tanh):
        self.weight, self.activation = weight, activation

    def __call__(self, x, mask):
        return x + mask * self.activation(x @ self.weight)

    def tree_flatten(self):
        return (self.weight,), self.activation

    @classmethod
    def tree_unflatten(cls, activation, children):
        return cls(*children, activation)  # pyright: ignore[reportCallIssue]


WEIGHTS = blocks(4, 1.0)
X, MASK = np.random.default_rng(1).normal(size=(3, 6)), np.array([1.0, 0.0, 1.0, 1.0, 0.5, 1.0])


def nnx_list(weights, x, mask):
    def loss(model, x, mask):
        for block in model.layers:
            _, x = block(x, mask[None], cache=None)
        return jnp.sum(x**3)

    return loss, nnx.Sequential(*map(Block, weights)), lambda model: model.layers, x, mask


def nnx_scan(weights, x, mask):
    def loss(model, x, mask):
        scan = nnx.scan(lambda x, block: block(x, mask[None])[1], in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return jnp.sum(scan(x, model.block) ** 3)

    return loss, Stack(Block(weights)), lambda model: model.block, x, mask


def linen_list(weights, x, mask, kind=LinenBlock):
    params = {str(layer): {"weight": weight} for layer, weight in enumerate(weights)}
    return linen_loss, LinenStack(kind=kind), LinenBlock, params, x, mask


def linen_remat(weights, x, mask):
    return linen_list(weights, x, mask, linen.remat(LinenBlock))


def linen_scan(weights, x, mask, kind=LinenBlock):
    return linen_loss, LinenStack(kind=kind, axis=0), LinenBlock, {"all": {"weight": weights}}, x, mask


def linen_remat_scan(weights, x, mask):
    return linen_scan(weights, x, mask, linen.remat(LinenBlock, prevent_cse=False))


def linen_loss(model, params, x, mask):
    return jnp.sum(model.apply({"params": params}, x, mask[None]) ** 3)


def tree(weights, x, mask):
    def loss(model, x, mask):
        def example(x):
            for block in model:
                x = block(x, mask)
            return x

        return jnp.sum(jax.vmap(example)(x) ** 3)

    return loss, tuple(map(Node, weights)), lambda model: model, x, mask


def tree_scan(weights, x, mask):
    def loss(model, x, mask):
        return jnp.sum(jax.lax.scan(lambda x, block: (jax.vmap(block, (0, None))(x, mask), None), x, model)[0] ** 3)

    return loss, Node(weights), lambda model: model, x, mask


def equinox(weights, x, mask):
    eqx = pytest.importorskip("equinox")

    class Linear(eqx.Module):
        weight: jax.Array
        activation: Any = jnp.tanh  # a leaf that is no array

        __call__ = Node.__call__

    class Net(eqx.Module):
        layers: list

        def run(self, x, mask):
            for layer in self.layers:
                x = eqx.filter_checkpoint(layer)(x, mask)
            return x

    def loss(model, x, mask):
        return jnp.sum(eqx.filter_jit(jax.vmap(lambda x: model.run(x, mask)))(x) ** 3)

    return loss, Net(list(map(Linear, weights))), lambda model: model.layers, x, mask


def arguments(build, dtype="float32") -> Any:
    """Returns arguments of `gradient_flow` for one network, which each `build` writes in another library's way."""
    return build(*(jnp.asarray(array, dtype) for array in (WEIGHTS, X, MASK)))


BUILDS = [nnx_list, linen_scan, equinox]
LATER = (nnx_scan, linen_list, linen_remat, linen_remat_scan, tree, tree_scan)
BUILDS += [pytest.param(x, marks=pytest.mark.slow) for x in LATER]


@pytest.mark.parametrize("build", BUILDS)
def test_delta_at_blocks_of_every_kind_is_the_gradient_of_what_is_added_to_the_stream(build, x64):
    def moved(offsets):
        y = jnp.asarray(X) + offsets[0]
        for weight, offset in zip(jnp.asarray(WEIGHTS), offsets[1:], strict=True):
            y = y + MASK[None] * jnp.tanh(y @ weight) + offset
        return jnp.sum(y**3)

    wanted = jax.grad(moved)(jnp.zeros((5, 3, 6)))
    flow = gradient_flow(*arguments(build, "float64"))
    np.testing.assert_allclose(10**flow.delta_log10, np.linalg.norm(wanted.reshape(5, -1), axis=1), rtol=1e-12)
    assert flow.verdict == judge(flow.delta_log10, {}, doubt=True)


@pytest.mark.parametrize("build", [nnx_list, tree])
def test_the_model_is_what_it_was(build):
    def parts():
        return jax.tree.leaves(nnx.state(model) if build is nnx_list else model), list(map(type, of_model(model)))

    loss, model, of_model, *args = arguments(build)
    leaves, kinds = parts()
    gradient_flow(loss, model, of_model, *args)
    assert kinds == parts()[1] and all(map(operator.is_, leaves, parts()[0]))


def chain(factor):
    """Returns arguments of `gradient_flow` for 60 float32 blocks x * factor, of 3 vmapped examples."""

    def loss(model, x):
        def example(x):
            for block in model:
                x = block(x)
            return jnp.sum(x)

        return jnp.sum(jax.vmap(example)(x) * jnp.asarray([1.0, 1e-12, 1e12], jnp.float32))

    steep = [jax.tree_util.Partial(scaled_gradient, jnp.float32(factor)) for _ in range(60)]
    return loss, steep, lambda model: model, jnp.ones((3, 2), jnp.float32)


@jax.custom_vjp
def scaled_gradient(factor, x):
    """Returns x, whose gradient it multiplies by `factor`: only the backward pass leaves the range."""
    del factor
    return x


scaled_gradient.defvjp(lambda factor, x: (x, factor), lambda factor, g: (jnp.zeros_like(factor), factor * g))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-15, 1.0, 1e15])
def test_float32_reaches_1e_minus_900_and_1e900_and_examples_of_any_size_add_up(factor):
    delta = gradient_flow(*chain(factor)).delta_log10
    exact = 12 + np.log10(2) / 2 + np.arange(60, -1, -1) * np.log10(float(np.float32(factor)))
    np.testing.assert_allclose(delta, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [1.2e-38, *(pytest.param(x, marks=pytest.mark.slow) for x in (1e-30, 1e38))])
def test_a_factor_of_the_loss_changes_no_ratio_in_all_of_float32(factor):
    loss, model, of_model, *args = arguments(tree)
    one, other = (
        gradient_flow(
            lambda model, c, *args: c * loss(model, *args), model, of_model, jnp.float32(c), *args
        ).delta_log10
        for c in (1.0, factor)
    )
    np.testing.assert_allclose(other - one, np.full(5, np.log10(factor)), rtol=0, atol=2e-6)


@pytest.mark.slow
def test_zeros_of_a_stack_that_is_cut_are_reported_as_possible_underflow():
    loss, steep, of_model, x = chain(1e-15)
    steep[10] = jax.tree_util.Partial(scaled_gradient, jnp.float32(0))
    delta, verdict = gradient_flow(loss, steep, of_model, x)
    assert np.isneginf(delta[:11]).all() and delta[11] == pytest.approx(12 + np.log10(2) / 2 - 49 * 15, abs=1e-4)
    assert verdict.state == "vanishing" and "zero, or too small for its dtype, at depth 10" in verdict.why
    steep[10] = jax.tree_util.Partial(scaled_gradient, jnp.float32(np.inf))
    delta, verdict = gradient_flow(loss, steep, of_model, x)
    assert not np.isfinite(delta[:11]).any() and np.isfinite(delta[11:]).all()
    assert verdict.state == "exploding" and verdict.first_bad_layer == 10


def outer_skip(model, x, mask):
    for block in model:
        x = x + jax.vmap(block, (0, None))(x, mask)
    return jnp.sum(x)


def first_alone(model, x, mask):
    return jnp.sum(jax.vmap(model[0], (0, None))(x, mask))


def shared(model, x, mask):
    for block in (model[0], *model):
        x = jax.vmap(block, (0, None))(x, mask)
    return jnp.sum(x)


def by_keyword(model, x, mask):
    return jnp.sum(model[0](x=x[0], mask=mask))


@pytest.mark.parametrize(
    "loss",
    [
        *(outer_skip, first_alone, shared, by_keyword),
        lambda model, x, mask: (first_alone(model, x, mask), x),
        lambda model, x, mask: jax.vmap(model[0], (0, None))(x, mask),
    ],
    ids=["outer skip", "first alone", "shared", "by keyword", "two values", "a vector"],
)
def test_what_the_meters_cannot_measure_is_refused(loss, wording):
    _, model, of_model, *args = arguments(tree)
    with wording.raises(ValueError, volatile=r"[\d.e+-]+(?= times)|\(?ShapeDtypeStruct.*"):
        gradient_flow(loss, model, of_model, *args)


def test_blocks_that_are_no_stack_are_refused(wording):
    loss, model, _, *args = arguments(tree)
    with wording.raises(ValueError):
        gradient_flow(loss, model, lambda model: [], *args)
    with wording.raises(ValueError):
        gradient_flow(loss, model, lambda model: {"up": np.ones(2), "down": np.ones(3)}, *args)
    with wording.raises(ValueError):
        gradient_flow(loss, model, lambda model: model[0], *args)
    with wording.raises(ValueError):
        gradient_flow(
            lambda model, x: jnp.sum(model[0](x)),
            [jax.tree_util.Partial(lambda x: x[:3])],
            lambda model: model,
            args[0][0],
        )
    loss, model, _, *args = arguments(linen_scan)
    with wording.raises(ValueError):
        gradient_flow(loss, model, (linen.Dense, linen.Conv), *args)
    with wording.raises(ValueError):
        gradient_flow(loss, model, "block", *args)
    with wording.raises(ValueError):
        across = {"all": {"weight": jnp.swapaxes(args[0]["all"]["weight"], 0, 1)}}
        gradient_flow(loss, LinenStack(axis=1), LinenBlock, across, *args[1:])
    with wording.raises(ValueError, "loss"):
        gradient_flow(lambda _, *args: loss(model, *args), model, LinenBlock, *args)
