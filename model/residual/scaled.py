"""Rules that scale or norm what a sublayer adds: the stream stays one x [N, D]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..layers import normalize
from .base import Carry, Context, Residual, Sublayer, scalar


class PostLN(Residual):
    """x <- N(s x + F(x)): the original transformer (Xiong et al. 2020, 2002.04745, fig. 1a). The last norm is the
    block's own. Wants a warm-up."""

    final_norm = False

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        return sub.norm(self.add(carry, sub.f(carry), context))


class MixLN(PostLN):
    """post_ln in the first `share` of the blocks, pre_ln in the others, and a final norm (Li et al. 2024, Mix-LN,
    2412.13795)."""

    final_norm = True

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        assert context.layer is not None
        share = jnp.asarray(self.number(context.numbers, "share"), carry.dtype)
        post = context.layer.astype(carry.dtype) + 0.5 < share * self.config.layers  # as many as are nearest
        total = self.add(carry, sub.f(jnp.where(post, carry, sub.norm(carry))), context)
        return jnp.where(post, sub.norm(total), total)


class Keel(Residual):
    """x <- N_o(s alpha x + F(N_i(x))), alpha = 2L, the number of sublayers (Chen & Wei 2026, 2601.19895).

    The last norm is the block's own. With |F| = sigma |x| a sublayer's skip keeps 1 / sqrt(1 + sigma^2 / alpha^2) of
    delta, post_ln's 1 / sqrt(1 + sigma^2).
    """

    norm_slots = ("in", "out")
    final_norm = False

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        alpha = jnp.asarray(self.number(context.numbers, "alpha"), carry.dtype)
        return sub.norms["out"](self.add(alpha * carry, sub.f(sub.norm(carry)), context))


class ResPostNorm(Residual):
    """x <- s x + N(F(x)), without a norm before F: OLMo 2 (Walsh et al. 2024, 2501.00656), and Swin v2
    (Liu et al. 2021, 2111.09883)."""

    norm_slots = ("out",)

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        return self.add(carry, sub.norms["out"](sub.f(carry)), context)


class LayerNormScaling(Residual):
    """x <- s x + F(N(x) / sqrt(l)), l the block, counted from 1 (Sun et al. 2025, 2502.05795).

    Where F is as large as its input, the mean square of the stream grows by the harmonic number, as log L, and not
    as L.
    """

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        assert context.layer is not None
        depth = (context.layer + 1).astype(carry.dtype)
        return self.add(carry, sub.f(sub.norm(carry) / jnp.sqrt(depth)), context)


class CompleteP(Residual):
    """x <- s x + (L_base / L) F(N(x)): a learning rate that is right at L_base blocks is right at any depth (Dey et al.
    2025, 2505.01618, table 1 with alpha = 1).

    The gradients of a block, which have the factor too, are divided by it before the optimizer, as Adam's epsilon of
    blocks times L_base / L has the same effect; sgd needs it for the same transfer.
    """

    @property
    def gradient_factor(self) -> float:
        return self.config.layers / self.option("base_layers")

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        y = sub.f(sub.norm(carry))
        return self.add(carry, y if self.gradient_factor == 1 else y / self.gradient_factor, context)


class Orthogonal(Residual):
    """x <- s x + y - (<y, x> / |x|^2) x, y = F(N(x)): a token's update is perpendicular to its stream, which therefore
    grows in every sublayer (Oh et al. 2025, 2505.11881, without its epsilon)."""

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        y, unit = sub.f(sub.norm(carry)), normalize(carry, "rms", 0.0)
        return self.add(carry, y - jnp.mean(y * unit, axis=-1, keepdims=True) * unit, context)


class GPAS(Residual):
    """z = s x + F(N(x)), x <- z - SiLU(g) sg(z), sg without a gradient; g is learnable, 0 at the start, one a block
    (Chen et al. 2025, 2506.22049, and its code).

    Activations are scaled by 1 - SiLU(g) and gradients are not, so that delta and the gradients of all blocks below are
    no derivatives of the loss at g != 0.
    """

    def block_parameters(self, init, layer):
        return {"gate": scalar(init, self.number(init.numbers, "gate"))}

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        z = super().sublayer(carry, sub, context)
        return z - jax.nn.silu(sub.block["gate"].astype(z.dtype)) * jax.lax.stop_gradient(z)


class Sandwich(Residual):
    """x <- s x + N_o(F(N_i(x))): Peri-LN (Kim et al. 2025, 2502.02732)."""

    norm_slots = ("in", "out")

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        return self.add(carry, sub.norms["out"](sub.f(sub.norm(carry))), context)


class SkipInit(Residual):
    """x <- s x + alpha F(N(x)), alpha learnable and 0 at the start (De & Smith 2020, 2002.10444)."""

    def sublayer_parameters(self, init, layer, index):
        return {"alpha": scalar(init, self.number(init.numbers, "alpha"))}

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        return self.add(carry, sub.own["alpha"].astype(carry.dtype) * sub.f(sub.norm(carry)), context)


class ReZero(SkipInit):
    """x <- s x + alpha F(x), alpha learnable and 0 at the start, no norm in the block (Bachlechner et al. 2020,
    2003.04887, eq. 3). At alpha = 0 a block passes delta unchanged, and only alpha has a gradient."""

    norm_slots = ()

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        return self.add(carry, sub.own["alpha"].astype(carry.dtype) * sub.f(carry), context)


class LayerScale(Residual):
    """x <- s x + diag(lambda) F(N(x)), lambda [D] learnable (Touvron et al. 2021, CaiT, 2103.17239, eq. 3).

    It starts at 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 beyond, as in the paper's section 2.
    """

    def sublayer_parameters(self, init, layer, index):
        start = self.number(init.numbers, "scale")
        return {"lambda": jnp.full((self.config.width,), scalar(init, start))}

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        return self.add(carry, sub.own["lambda"].astype(carry.dtype)[None, :] * sub.f(sub.norm(carry)), context)


class DeepNorm(Residual):
    """x <- N(s alpha x + F(x)), alpha = (2L)^(1/4); V, O and the MLP start (8L)^(-1/4) times smaller (Wang et al. 2022,
    2203.00555, fig. 2, decoder only). The last norm is the block's own."""

    final_norm = False

    @property
    def gains(self) -> dict[str, float]:
        beta = (8 * self.config.layers) ** -0.25
        return dict.fromkeys(("attn_v", "attn_o", "mlp_in", "mlp_gate", "mlp_out"), beta)

    def alpha(self, context: Context) -> Float[Array, ""] | float:
        return self.number(context.numbers, "alpha")

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        return sub.norm(self.add(self.alpha(context) * carry, sub.f(carry), context))


class GPT2Scaled(Residual):
    """pre_ln whose O and MLP-out start 1/sqrt(2L) times smaller (Radford et al. 2019, GPT-2, section 2.3)."""

    @property
    def gains(self) -> dict[str, float]:
        return dict.fromkeys(("attn_o", "mlp_out"), (2 * self.config.layers) ** -0.5)


class StochasticDepth(Residual):
    """x <- s x + (b_l / p_l) F(N(x)), b_l ~ Bernoulli(p_l), p_l = 1 - (l/L)(1 - p_L) (Huang et al. 2016, 1603.09382,
    eq. 4, with the survival probability divided out in training).

    l counts blocks from 1. One draw a block and batch, for both sublayers; outside training b_l / p_l is 1, and also in
    the counterfactual: without the skip nothing passes a dropped block.
    """

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        y = sub.f(sub.norm(carry))
        if context.key is None or context.layer is None:
            return self.add(carry, y, context)
        last = jnp.asarray(self.number(context.numbers, "keep"), carry.dtype)
        depth = (context.layer + 1).astype(carry.dtype) / self.config.layers
        keep = 1 - depth * (1 - last)
        drawn = jax.random.uniform(context.key, (), carry.dtype) < keep
        return self.add(carry, jnp.where(drawn, y / keep, jnp.zeros_like(y)), context)


class Highway(Residual):
    """x <- T F(N(x)) + (1 - T) x, T = sigmoid(x W + b), b = -1 at the start.

    Srivastava et al. 2015, 1505.00387, eq. 3. The gate weighs the skip itself, so there is no skip scale.
    """

    def sublayer_parameters(self, init, layer, index):
        width = self.config.width
        kernel = init.matrix(f"blocks/residual/gate_{index + 1}", layer, width, width)
        bias = jnp.full((width,), scalar(init, self.number(init.numbers, "bias")))
        return {"gate": {"kernel": kernel, "bias": bias}}

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        kernel, bias = (sub.own["gate"][name].astype(carry.dtype) for name in ("kernel", "bias"))
        gate = jax.nn.sigmoid(carry @ kernel + bias[None, :])
        return gate * sub.f(sub.norm(carry)) + (1 - gate) * carry
