"""The interface of a residual rule: a frozen object that says how a sublayer joins the stream.

Notation: x the stream [N, D], F a sublayer, N its norm, s the traced skip scale (1 = with the skip, 0 = without).
The block body (model/transformer.py) is written once and receives the rule as a value; a rule receives F and N as
functions, so it never knows what an attention or an MLP is made of.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ..config import ModelConfig
from ..init import Init
from ..layers import fusion_barrier

Carry = Any  # the pytree that travels through the scan over blocks; x [N, D] for most rules
Parameters = Mapping[str, Any]  # a rule's own, nested by name
# (name, value) -> the value to go on with, for intermediate values of a block: `attn/norm`, the argument of the
# attention's input norm (each call); `attn/input`, that of attention; `attn/scores` [B, H, T, T], the inputs of the
# softmax, masked ones the lowest finite number; `attn/heads`, the input of its output matrix; `attn/output`. And
# `mlp/norm`, `mlp/input`, `mlp/hidden` [N, F], the input of the output matrix, `mlp/output`.
Observer = Callable[[str, Array], Array]


class Context(NamedTuple):
    """Inputs of a rule other than the carry and its own parameters."""

    numbers: Mapping[str, Float[Array, ""]]  # traced numbers of the config, in the stream's dtype
    shape: tuple[int, int]  # (B, T), with B * T = N
    layer: Int[Array, ""] | None = None  # counted from 0
    key: Key[Array, ""] | None = None  # of this block's draws; None outside training
    observe: Observer | None = None
    one: Float[Array, ""] | None = None  # for model.layers.fusion_barrier, where blocks are unrolled
    fused: str | None = None  # implementation of attention: see model/attention.py
    detached: bool = False  # no gradient passes a branch F: what is left comes down through the skips


class Branch(Protocol):
    """F with its dropout: h [N, D] -> (y [N, D], v). v is attention's value vectors [B, T, G, K] before `mix_value`,
    and None for an MLP."""

    def __call__(
        self,
        h: Array,
        mix_value: Callable[[Array], Array] | None = None,
        mix_heads: Callable[[Array, Array], Array] | None = None,
    ) -> tuple[Array, Array | None]: ...


@dataclass(frozen=True)
class Sublayer:
    """One half of a block, as a rule sees it."""

    index: int  # 0 attention, 1 MLP
    branch: Branch
    norms: Mapping[str, Callable[[Array], Array]]  # by slot; the identity under norm: none
    own: Parameters  # the rule's parameters of this sublayer
    block: Parameters  # and those of the whole block

    def f(self, h: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """F(h)."""
        return self.branch(h)[0]

    def norm(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """N(x), the input norm."""
        return self.norms["in"](x)


@dataclass(frozen=True)
class Residual:
    """x <- s x + F(N(x)): pre-LN (Xiong et al. 2020, 2002.04745, fig. 1b), and the base of the other rules."""

    config: ModelConfig

    final_norm: ClassVar[bool] = True  # a norm between the last block and the head
    parts: ClassVar[bool] = False  # the carry holds more than the stream
    norm_slots: ClassVar[tuple[str, ...]] = ("in",)  # norms of a sublayer; their parameters are norm_1, norm_1_out ...

    def option(self, name: str) -> Any:
        """An option that is part of the program: the config's value, or the rule's default."""
        value = getattr(self.config.residual, name)
        return self.config.rule.default(name, self.config) if value is None else value

    def number(self, numbers: Mapping[str, Any], name: str) -> Any:
        """A traced option: its entry in the model's traced `numbers`, or the rule's default."""
        key = f"residual.{name}"
        return numbers[key] if key in numbers else self.config.rule.default(name, self.config)

    @property
    def gains(self) -> dict[str, float]:
        """Factors of the initial block matrices, by tag; they multiply those of the config."""
        return {}

    @property
    def gradient_factor(self) -> float:
        """Factor of the blocks' gradients before the optimizer."""
        return 1.0

    @property
    def flops(self) -> int:
        """Operations of a token's forward pass beyond those of every rule (products with matrices, attention)."""
        return 0

    def sublayer_parameters(self, init: Init, layer: Int[Array, ""], index: int) -> dict[str, Any]:
        """The rule's own parameters of one sublayer."""
        return {}

    def block_parameters(self, init: Init, layer: Int[Array, ""]) -> dict[str, Any]:
        """The rule's own parameters of a block."""
        return {}

    def begin(self, x: Float[Array, "N D"], context: Context) -> Carry:
        """The carry that enters block 0, from the embedding output."""
        return x

    def enter(self, carry: Carry, block: Parameters, context: Context) -> Carry:
        """The carry that block `context.layer` works on."""
        return carry

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        """The carry after one sublayer."""
        return self.add(carry, sub.f(sub.norm(carry)), context)

    def add(self, x: Float[Array, "N D"], y: Float[Array, "N D"], context: Context) -> Float[Array, "N D"]:
        """s x + y."""
        total = context.numbers["skip_scale"] * x + y
        return total if context.one is None else fusion_barrier(total, context.one)

    def end(self, carry: Carry, context: Context) -> Float[Array, "N D"]:
        """The input of the final norm and the head."""
        return self.stream(carry)

    def stream(self, carry: Carry) -> Float[Array, "N ..."]:
        """The part of the carry that delta and the activation statistics are of. Linear: it also picks cotangents."""
        return carry


def scalar(init: Init, value: float | Array) -> Float[Array, ""]:
    """A learnable number."""
    return jnp.asarray(value, jnp.float32).astype(init.dtype)
