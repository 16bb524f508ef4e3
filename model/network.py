"""A model as two pure functions of a plain dictionary of parameters.

NNX modules are split once, when a program is traced; from then on parameters are nested dictionaries of arrays with
the blocks stacked along a leading layer axis. Calling an NNX module costs 7 to 10 ms of Python, a jitted function of
dictionaries 0.2 ms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from .config import ModelConfig
from .init import Init
from .residual import Carry, Observer, numbers_of, rule_of
from .transformer import Interface, StreamStats, Transformer

Params = dict[str, Any]


class Anatomy(NamedTuple):
    """A model on one input, block by block; nothing is dropped. For instruments that look inside."""

    carry: Carry  # what enters block 0
    blocks: Any  # parameters, stacked along the first axis
    # (parameters of a block, its index, carry, observer, detached) -> carry; see model/residual/base.py's Context
    block: Callable[..., Carry]
    logits: Callable[[Carry], Float[Array, "N V"]]  # from what leaves the last block
    stream: Callable[[Carry], Float[Array, "N ..."]]  # what delta is taken of


@dataclass(frozen=True)
class Network:
    """A transformer for windows of `context` tokens; `dtype` is that of compute.

    Inputs are ids below `vocab_size`, or `channels` real values a token; outputs are as many as `outputs`, or one
    logit a token of the vocabulary. `pooled`: one output a window, from the mean over its tokens. `task` is what the
    outputs are for: lm, classification, regression.
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

    def __post_init__(self) -> None:
        if (self.vocab_size is None) == (self.channels is None) or (self.vocab_size or self.outputs) is None:
            raise ValueError("expected vocab_size, or channels and outputs")

    @property
    def param_dtype(self) -> jnp.dtype:
        return jnp.dtype("float64" if self.dtype == "float64" else "float32")

    def _build(self, seed: int | Int[Array, ""], numbers: Mapping[str, Any]) -> Transformer:
        init = Init(jax.random.key(seed), self.config.init, numbers, self.param_dtype, self.config.width_ratio)
        interface = Interface(self.vocab_size, self.context, self.outputs, self.channels, self.pooled)
        return Transformer(self.config, interface, init)

    @cached_property
    def _graph(self) -> Any:
        return nnx.graphdef(nnx.eval_shape(lambda: self._build(0, numbers_of(self.config))))

    def init(self, seed: int | Int[Array, ""], numbers: Mapping[str, Any] | None = None) -> Params:
        """Parameters as a nested dictionary; `seed` (uint32) and `numbers` may be traced. Run it under jit.

        `numbers` replace the config's own traced ones (model/traced.py), here and in `apply`.
        """
        return nnx.to_pure_dict(nnx.split(self._build(seed, numbers_of(self.config) | dict(numbers or {})))[1])

    def shapes(self) -> Params:
        """The parameters' shapes and dtypes, without computing them."""
        return jax.eval_shape(lambda: self.init(0))

    def apply(
        self,
        params: Params,
        tokens: Int[Array, "B T"] | Float[Array, "B T C"],
        *,
        numbers: Mapping[str, Any] | None = None,
        key: Key[Array, ""] | None = None,
        slots: Float[Array, "L+1 2"] | None = None,
        head: Float[Array, "V D"] | None = None,
    ) -> tuple[Float[Array, "N V"], StreamStats | None]:
        """Logits [B*T, V] ([B, V] when pooled), as Transformer.__call__ describes."""
        model: Transformer = nnx.merge(self._graph, params)
        return model(
            tokens,
            numbers=numbers_of(self.config) | dict(numbers or {}),
            key=key,
            dtype=self.dtype,
            unroll=self.unroll,
            slots=slots,
            head=head,
        )

    def anatomy(
        self,
        params: Params,
        tokens: Int[Array, "B T"] | Float[Array, "B T C"],
        *,
        numbers: Mapping[str, Any] | None = None,
    ) -> Anatomy:
        """The parts that `apply` is made of."""
        model: Transformer = nnx.merge(self._graph, params)
        carry, context = model.begin(tokens, numbers_of(self.config) | dict(numbers or {}))
        graph, stacked = nnx.split(model.blocks)

        def block(
            parameters: Any, layer: Array, carry: Carry, observe: Observer | None = None, detached: bool = False
        ) -> Carry:
            here = context._replace(layer=layer, observe=observe, detached=detached)
            return nnx.merge(graph, parameters)(carry, here, self.dtype)

        def logits(carry: Carry) -> Array:
            return model.end(carry, context, self.dtype)

        return Anatomy(carry, stacked, block, logits, rule_of(self.config).stream)
