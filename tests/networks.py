"""The tiny network that laws are tested on, and parameters for it in which nothing is 0 or 1 by accident."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data.source import Batch
from model.config import ModelConfig
from model.network import Network, path_of
from model.residual import RULES, Context, numbers_of, rule_of
from train.core.loss import tapped_loss
from train.gradflow.delta import Backward, backward

SIGMAS = 5  # a statistical test fails by chance once in two million
L, D, H, V, T, B = 3, 8, 2, 11, 5, 2
WINDOWS: Any = np.random.default_rng(0).integers(0, V, size=(B, T + 1)).astype(np.int32)
TOKENS, TARGETS = WINDOWS[:, :-1], WINDOWS[:, 1:].reshape(-1)
# Every token apart, so that the gradient of the embedding's table is delta_0, row by row.
DISTINCT: Any = np.random.default_rng(1).permutation(V)[: B * T].reshape(B, T).astype(np.int32)
APART = np.concatenate([DISTINCT, TOKENS[:, :1]], axis=1)

# Rules that differ from one of the others in a factor or a norm alone.
ALIKE = ("sandwich", "skipinit", "layerscale", "deepnorm", "gpt2_scaled", "x0_lambda", "stochastic_depth")
ALIKE += ("hyper_connections", "mix_ln", "keel", "res_post_norm", "lns", "completep", "gpas", "orthogonal")


def quick(*rules: str) -> list[Any]:
    """Returns every rule as a parameter; those that are not named are for `make slow`."""
    return [pytest.param(rule, marks=[] if rule in rules else [pytest.mark.slow]) for rule in RULES]


def network(dtype: str = "float64", unroll: int = 1, **model: Any) -> Network:
    sizes: dict[str, Any] = {"layers": L, "width": D, "heads": H}
    return Network(ModelConfig(**(sizes | model)), V, T, dtype, unroll)


def float32_network(dtype: str = "float32", unroll: int = 1, **model: Any) -> Network:
    return network(dtype, unroll, **model)


def rule_network(residual: Any, dtype: str = "float64", unroll: int = 1, **model: Any) -> Network:
    """One network a rule for most laws: without positions, the table of the head apart, norms without epsilon."""
    ends = {"positions": "none", "tied_head": False, "norm_eps": 0.0}
    return network(dtype, unroll, residual=residual, **(ends | model))


def task_network(vocab_size: int | None = 11, **ends: Any) -> Network:
    """Returns two blocks for 8 tokens, with the inputs and outputs of a task."""
    return Network(ModelConfig(layers=2, width=8, heads=2, norm="none"), vocab_size, 8, "float64", **ends)


def masked_batch(rows: int = 4) -> Batch:
    """Row i has i + 1 unmasked targets, so that a mean of means differs from the mean."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 11, (rows, 9), np.int32)
    weights = (np.arange(8)[None, :] <= np.arange(rows)[:, None]).astype(np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights)


def parameters(network: Network, scale: float = 0.4) -> dict[str, Any]:
    """Generic values, the same for a path and shape in every network: no gain is 1, no bias and no alpha 0."""

    def draw(path, leaf):
        rng = np.random.default_rng(list(jax.tree_util.keystr(path).encode()))
        centre = 1.0 if path[-1].key == "gain" else 0.0
        # jnp.asarray would compile a program for each shape.
        return jax.device_put((centre + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, network.shapes())


def changed(params: dict[str, Any], path: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """Returns `params` with change(entry) in place of the entry at a path such as `blocks/attn/q`."""
    name, _, rest = path.partition("/")
    return params | {name: changed(params[name], rest, change) if rest else change(params[name])}


def leaves(params: Any) -> dict[str, np.ndarray]:
    """Returns arrays by path, such as `blocks/mlp/in/kernel`."""
    return {path_of(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}


def same(actual: Any, wanted: Any, rtol: float = 1e-12, atol: float = 0.0) -> None:
    """Asserts that trees of one structure have equal leaves."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), actual, wanted)


@partial(jax.jit, static_argnums=0)
def logits(net: Network, params: Any, numbers: Any = None, key: Any = None, tokens: Any = TOKENS) -> Any:
    return net.apply(params, tokens, numbers=numbers, key=key)[0]


@partial(jax.jit, static_argnums=0)
def tapped(net: Network, params: Any, numbers: Any = None, windows: Any = WINDOWS) -> tuple[Any, Backward]:
    """Returns the mean loss and the tapped backward pass of a batch."""
    loss, result, _ = backward(tapped_loss(net, windows, numbers, None), params, net.config.layers)
    return loss, result


@partial(jax.jit, static_argnums=0)
def untapped(net: Network, params: Any, numbers: Any = None, windows: Any = WINDOWS) -> tuple[Any, Any]:
    """Returns the mean loss and jax.grad of it, without taps."""
    loss: Any = tapped_loss(net, windows, numbers, None)
    return jax.value_and_grad(lambda p: loss(p, None, None)[0])(params)


def dense_loss(net: Network, params: Any, head: Any, offsets: Any, numbers: Any = None, windows: Any = WINDOWS) -> Any:
    """Returns the mean loss, block by block without scan or taps, with an offset to the stream at each depth.

    head: the table of the logits. Delta is the gradient of `offsets` [L+1, N, D] ([L+1, n, N, D] of n streams) at 0.
    """
    rule, model = net.config.residual.rule, nnx.merge(net._abstract[0], params)
    graph, stacked = nnx.split(model.blocks)
    tokens, targets = windows[:, :-1], windows[:, 1:].reshape(-1)
    dtype = params["embed"].dtype
    numbers = {name: jnp.asarray(x, dtype) for name, x in (numbers_of(net.config) | (numbers or {})).items()}

    def moved(carry: Any, o: Any) -> Any:
        """The carry with `o` added to what delta is taken of, by rule: not as `Residual.stream` has it."""
        if rule in ("value_residual", "x0_lambda"):
            return carry[0] + o, carry[1]
        if rule in ("siamese", "hyper_connections", "mhc"):
            return tuple(x + each for x, each in zip(carry, o, strict=True))
        return (carry[0], carry[1] + o) if rule in ("attnres", "denseformer") else carry + o

    x = params["embed"][tokens.reshape(-1)]
    x = x + jnp.tile(params["positions"][: tokens.shape[1]], (len(tokens), 1)) if "positions" in params else x
    context = Context(numbers, tokens.shape)
    carry = rule_of(net.config).begin(x, context)
    for layer in range(net.config.layers):
        block = nnx.merge(graph, jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked))
        carry = block(moved(carry, offsets[layer]), context._replace(layer=jnp.int32(layer)), dtype)
    x = rule_of(net.config).end(moved(carry, offsets[-1]), context)
    x = x if model.norm_f is None else model.norm_f(x, numbers["norm_eps"])
    return -jnp.mean(jax.nn.log_softmax(x @ head.T)[jnp.arange(targets.size), targets])
