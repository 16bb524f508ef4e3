"""Rules that mix in something from the bottom of the network, or inside attention."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..layers import normalize
from .base import Carry, Context, Parameters, Residual, Sublayer, scalar


class ValueResidual(Residual):
    """pre_ln whose attention uses V_l <- (1 - lambda) V_l + lambda V_1, lambda learnable and 0.5 at the start (Zhou et
    al. 2024, 2410.17897, eq. 6).

    The carry is (x, V_1); delta is taken of x. Block 0 sets V_1, so its own lambda has no effect and gradient 0.
    """

    parts = True

    def block_parameters(self, init, layer):
        return {"lambda": scalar(init, self.number(init.numbers, "mix"))}

    def begin(self, x, context):
        config, (B, T) = self.config, context.shape
        return x, jnp.zeros((B, T, config.value_heads, config.head_width), x.dtype)

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        x, first = carry
        if sub.index == 1:
            return super().sublayer(x, sub, context), first
        assert context.layer is not None
        bottom = context.layer == 0

        def mix(v: Array) -> Array:
            weight = sub.block["lambda"].astype(v.dtype)
            return (1 - weight) * v + weight * jnp.where(bottom, v, first.astype(v.dtype))

        y, v = sub.branch(sub.norm(x), mix_value=mix)
        assert v is not None
        return self.add(x, y, context), jnp.where(bottom, v.astype(first.dtype), first)

    def stream(self, carry):
        return carry[0]


class X0Lambda(Residual):
    """pre_ln after x <- lambda_0 x + lambda_1 x_0 before each block, x_0 the embedding output; (1, 0) at the start,
    learnable (modded-nanogpt, K. Jordan et al. 2024).

    The carry is (x, x_0); delta is taken of x before the mix. s = 0 leaves the path by x_0 open.
    """

    parts = True

    def block_parameters(self, init, layer):
        return {"lambda_0": scalar(init, 1.0), "lambda_1": scalar(init, self.number(init.numbers, "mix"))}

    def begin(self, x, context):
        return x, x

    def enter(self, carry: Carry, block: Parameters, context: Context) -> Carry:
        x, x0 = carry
        return block["lambda_0"].astype(x.dtype) * x + block["lambda_1"].astype(x.dtype) * x0, x0

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        return super().sublayer(carry[0], sub, context), carry[1]

    def stream(self, carry):
        return carry[0]


class DenseFormer(Residual):
    """pre_ln whose stream after block l is sum_j alpha_lj X_j: X_0 the embedding output, X_j the output of block j
    counted from 1; alpha_l is 1 at X_l and 0 elsewhere at the start, learnable (Pagliardini et al. 2024, 2402.02622,
    and its code).

    `dynamic: true` adds GELU(RMSNorm(X_l) W_1) W_2 to alpha_l, a value a token, W_2 = 0 at the start: the residual
    stream of MUDDFormer (Xiao et al. 2025, 2502.12170) without its ways into q, k and v.

    The carry is (all X, the stream), delta is taken of the stream; gains need not telescope as Jacobians do. s = 0
    leaves the paths by alpha open.
    """

    parts = True

    @property
    def flops(self) -> int:
        return self.config.layers * 2 * (self.config.layers + 1) * self.config.width  # the sum over all X

    def block_parameters(self, init, layer):
        sources = self.config.layers + 1
        own: dict[str, Any] = {"alpha": jax.nn.one_hot(layer + 1, sources, dtype=init.dtype)}
        if self.option("dynamic"):
            kernel = init.matrix("blocks/residual/dynamic", layer, self.config.width, sources)
            own["dynamic"] = {"hidden": kernel, "out": jnp.zeros((sources, sources), init.dtype)}
        return own

    def begin(self, x, context):
        return jnp.zeros((self.config.layers + 1, *x.shape), x.dtype).at[0].set(x), x

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        outputs, x = carry
        x = super().sublayer(x, sub, context)
        if sub.index == 0:
            return outputs, x
        assert context.layer is not None
        # Blocks above are zero here, and so is the gradient of their alpha.
        outputs, alpha = outputs.at[context.layer + 1].set(x), sub.block["alpha"].astype(x.dtype)[None]
        if self.option("dynamic"):
            hidden, out = (sub.block["dynamic"][name].astype(x.dtype) for name in ("hidden", "out"))
            alpha = alpha + jax.nn.gelu(normalize(x, "rms", context.numbers["norm_eps"]) @ hidden) @ out
        return outputs, jnp.sum(alpha.T[:, :, None] * outputs, axis=0)

    def stream(self, carry):
        return carry[1]


class ValueSkipInit(Residual):
    """No skip: attention weights are alpha I + beta softmax(Q K^T), and the MLP half is F(N(x)).

    alpha = 1 and beta = 0 at the start, learnable, one pair a block (He et al. 2023, 2302.10322, section 3). Wants
    orthogonal V and O: model.init: orthogonal. With grouped heads a value serves every query head of its group.
    """

    def block_parameters(self, init, layer):
        return {"alpha": scalar(init, self.number(init.numbers, "alpha")), "beta": scalar(init, 0.0)}

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        def mix(v: Array, o: Array) -> Array:
            alpha, beta = (sub.block[name].astype(o.dtype) for name in ("alpha", "beta"))
            return alpha * v + beta * o

        return sub.branch(sub.norm(carry), mix_heads=mix)[0]
