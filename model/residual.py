"""The studied thing: how a sublayer joins the stream. One frozen object a rule; the block body is written once.

Notation: x the stream, F the sublayer, N its norm, s the traced skip scale (1 = with the skip, 0 = without).
A rule receives closures for F and N, so it never knows what an attention or an MLP is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from model.config import ModelConfig

Branch = Callable[[Array], Array]
Carry = Any  # the pytree that travels through the scan over blocks; x [N, D] for the rules below


class Context(NamedTuple):
    """What a rule may depend on besides the carry."""

    skip_scale: Float[Array, ""]


@dataclass(frozen=True)
class Residual:
    """x <- s x + F(N(x)): pre-LN (Xiong et al. 2020, 2002.04745, fig. 1b), and the base of the other rules."""

    final_norm: bool = True  # a norm between the last block and the head
    additive: bool = True  # the skip scale applies, so the counterfactual s = 0 exists

    def begin(self, x: Float[Array, "N D"]) -> Carry:
        """The carry that enters block 0, from the embedding output."""
        return x

    def sublayer(self, carry: Carry, branch: Branch, norm: Branch, context: Context) -> Carry:
        """The carry after one sublayer. `branch` is F with its dropout, `norm` is N (the identity for norm: none)."""
        return context.skip_scale.astype(carry.dtype) * carry + branch(norm(carry))

    def end(self, carry: Carry) -> Float[Array, "N D"]:
        """What the final norm and the head read."""
        return carry

    def stream(self, carry: Carry) -> Float[Array, "N D"]:
        """What delta and the activation statistics are taken of: x itself."""
        return carry


@dataclass(frozen=True)
class PostLN(Residual):
    """x <- N(s x + F(x)): the original transformer (Xiong et al. 2020, fig. 1a). The last norm is the block's own."""

    final_norm: bool = False

    def sublayer(self, carry: Carry, branch: Branch, norm: Branch, context: Context) -> Carry:
        return norm(context.skip_scale.astype(carry.dtype) * carry + branch(carry))


# `none` is pre_ln at s = 0 and not a rule of its own, so with and without share one compiled program.
RULES: dict[str, Residual] = {"pre_ln": Residual(), "post_ln": PostLN(), "none": Residual()}


def rule_of(config: ModelConfig) -> Residual:
    return RULES[config.residual]


def skip_scale_of(config: ModelConfig) -> float:
    """s as the config means it: 0 under `residual: none`, else `skip_scale`."""
    return 0.0 if config.residual == "none" else config.skip_scale
