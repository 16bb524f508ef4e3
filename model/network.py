"""A model as pure functions, `init` and `apply`, of a nested dictionary of parameters; and samples from it.

NNX modules are split once, when a program is traced; from then on parameters are nested dictionaries of arrays, with
the blocks stacked along a leading layer axis. Calling an NNX module takes 7 to 10 ms of Python, calling a jitted
function of dictionaries 0.2 ms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from .config import ModelConfig
from .init import Init
from .residual import Carry, Observer, numbers_of, rule_of
from .transformer import MOST_LOGITS, Interface, Score, StreamStats, Transformer

Params = dict[str, Any]


def path_of(keys: tuple) -> str:
    """Joins a parameter's keys to a path, `blocks/mlp/in/kernel`, less the underscore of attributes such as `in_`."""
    return "/".join(str(entry.key).strip("_") for entry in keys)


def leaves_by_path(params: Any) -> dict[str, Any]:
    """Returns the leaves of nested parameters by path, such as `blocks/attn/q/kernel`."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}


class Anatomy(NamedTuple):
    """A model on one input, block by block and without dropout, for instruments that measure inside blocks."""

    carry: Carry  # input of block 0
    blocks: Any  # parameters, stacked along the first axis
    # (parameters of a block, its index, carry, observer, detached) -> carry; see model/residual/base.py's Context
    block: Callable[..., Carry]
    logits: Callable[..., Any]  # from the last block's output, or their scores: see Transformer.__call__
    stream: Callable[[Carry], Float[Array, "N ..."]]  # the stream that delta is measured on

    @property
    def layers(self) -> Int[Array, "L"]:
        """Indices of the blocks."""
        return jnp.arange(jax.tree.leaves(self.blocks)[0].shape[0])


@dataclass(frozen=True)
class Network:
    """A transformer for windows of `context` tokens, computing in `dtype`.

    Inputs are ids below `vocab_size`, or `channels` real values a token. There are `outputs` logits, or one for each
    token of the vocabulary; `pooled`: one prediction a window, from the mean over its tokens. `task` determines the
    loss: lm, classification or regression. `unroll`, `remat`, `fused`: see Transformer.__call__.
    `most_logits`: the largest number of logits on a device at a time.
    """

    config: ModelConfig
    vocab_size: int | None
    context: int
    dtype: str = "float32"
    unroll: int = 1
    task: str = "lm"
    outputs: int | None = None
    channels: int | None = None
    pooled: bool = False
    remat: str = "none"
    fused: str | None = None
    most_logits: int = MOST_LOGITS

    def __post_init__(self) -> None:
        if (self.vocab_size is None) == (self.channels is None) or (self.vocab_size or self.outputs) is None:
            raise ValueError("expected vocab_size, or channels and outputs")

    @property
    def param_dtype(self) -> jnp.dtype:
        return jnp.dtype("float64" if self.dtype == "float64" else "float32")

    def _build(self, seed: int | Int[Array, ""], numbers: Mapping[str, Any]) -> Transformer:
        init = Init(jax.random.key(seed), self.config.init, numbers, self.param_dtype, self.config.width_ratio)
        sizes = (self.vocab_size, self.context, self.outputs, self.channels, self.pooled, self.most_logits)
        return Transformer(self.config, Interface(*sizes), init)

    @cached_property
    def _abstract(self) -> tuple[Any, Params]:
        plain = {"dtype": str(self.param_dtype), "unroll": 1, "task": "lm", "remat": "none", "fused": None}
        return _abstract(replace(self, **plain))

    def init(self, seed: int | Int[Array, ""], numbers: Mapping[str, Any] | None = None) -> Params:
        """Returns parameters as a nested dictionary. Run under jit; `seed` (uint32) and `numbers` may be traced.

        `numbers` override the config's traced numbers (model/traced.py), here and in `apply`.
        """
        return nnx.to_pure_dict(nnx.split(self._build(seed, numbers_of(self.config) | dict(numbers or {})))[1])

    def shapes(self) -> Params:
        """Returns the parameters' shapes and dtypes without computing them."""
        return jax.tree.map(lambda leaf: leaf, self._abstract[1])

    def apply(
        self,
        params: Params,
        tokens: Int[Array, "B T"] | Float[Array, "B T C"],
        *,
        numbers: Mapping[str, Any] | None = None,
        key: Key[Array, ""] | None = None,
        slots: Float[Array, "L+1 2"] | None = None,
        head: Float[Array, "V D"] | None = None,
        score: Score | None = None,
        targets: Array | None = None,
    ) -> tuple[Any, StreamStats | None]:
        """Returns logits [B*T, V], or [B, V] when pooled, or their scores, and stream statistics.

        See Transformer.__call__.
        """
        model: Transformer = nnx.merge(self._abstract[0], params)
        return model(
            tokens,
            numbers=numbers_of(self.config) | dict(numbers or {}),
            key=key,
            dtype=self.dtype,
            unroll=self.unroll,
            remat=self.remat,
            fused=self.fused,
            slots=slots,
            head=head,
            score=score,
            targets=targets,
        )

    def anatomy(
        self,
        params: Params,
        tokens: Int[Array, "B T"] | Float[Array, "B T C"],
        *,
        numbers: Mapping[str, Any] | None = None,
    ) -> Anatomy:
        """Returns the parts of `apply` as separate functions."""
        model: Transformer = nnx.merge(self._abstract[0], params)
        carry, context = model.begin(tokens, numbers_of(self.config) | dict(numbers or {}))
        graph, stacked = nnx.split(model.blocks)

        def block(
            parameters: Any, layer: Array, carry: Carry, observe: Observer | None = None, detached: bool = False
        ) -> Carry:
            here = context._replace(layer=layer, observe=observe, detached=detached)
            return nnx.merge(graph, parameters)(carry, here, self.dtype)

        def logits(carry: Carry, score: Score | None = None, targets: Array | None = None) -> Any:
            return model.end(carry, context, self.dtype, None, score, targets)

        return Anatomy(carry, stacked, block, logits, rule_of(self.config).stream)


@lru_cache(maxsize=64)
def _abstract(network: Network) -> tuple[Any, Params]:
    """Returns the graph and the parameters' shapes, once: a module takes 20 ms to build, and programs are traced by
    the dozen."""
    graph, state = nnx.split(nnx.eval_shape(lambda: network._build(0, numbers_of(network.config))))
    return graph, nnx.to_pure_dict(state)


def next_token_logits(
    network: Network, params: Params, tokens: Int[Array, "T"], length: int | Int[Array, ""]
) -> Float[Array, "V"]:
    """Returns the logits of the token after the first `length` of `tokens`, which are padded to the context.

    The model must be causal, so that the padding has no effect.
    """
    logits, _ = network.apply(params, tokens[None, :])
    return logits[length - 1]


def filtered(logits: Float[Array, "V"], temperature: float, top_k: int | None) -> Float[Array, "V"]:
    """Divides logits by `temperature` and sets all but the `top_k` largest to -inf (Fan et al. 2018, 1805.04833)."""
    logits = logits / temperature
    if top_k is None or top_k >= logits.shape[0]:
        return logits
    smallest = jax.lax.top_k(logits, top_k)[0][-1]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def draw(key: Key[Array, ""], logits: Float[Array, "V"], temperature: float, top_k: int | None) -> Int[Array, ""]:
    """Draws one token; the most likely one at temperature 0."""
    if temperature == 0.0:
        return jnp.argmax(logits)
    # The largest logit is subtracted first, so that a small temperature cannot overflow several to infinity.
    return jax.random.categorical(key, filtered(logits - jnp.max(logits), temperature, top_k))
