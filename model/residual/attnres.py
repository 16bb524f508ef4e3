"""Attention residuals: a sublayer reads a learned mix of the outputs of all those before it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .base import Carry, Context, Residual, Sublayer


class AttnRes(Residual):
    """h = sum_i alpha_i v_i, alpha = softmax_i(w^T RMSNorm(v_i)), v_0 the embedding and v_i the output F(N(h)) of
    sublayer i; the head reads such a mix too (Attention Residuals, 2603.15031). All w are 0 at the start.

    `heads` divides the width: each part of h has a query and weights of its own over the sources, whose keys are normed
    as a whole.

    `block: S` sums the outputs of S blocks into one source, and the sum so far of the current ones is another. w = 0
    weighs all sources alike, so N(h) and with it the whole function are pre_ln's (up to norm_eps).

    The carry is (the sources, h); delta is taken of h, the mixed input of a block. Gains need not telescope as
    Jacobians do: the gradient also flows past h. There are 2L queries: the first sublayer has a single source and needs
    none, query 1 of a block mixes the input of its MLP, and query 2 what the next block, or the head, reads.
    """

    parts = True

    @property
    def size(self) -> int:
        """Sublayers whose outputs are summed into one source."""
        block = self.option("block")
        return 1 if block is None else 2 * block

    @property
    def rows(self) -> int:
        """Rows of the buffer of sources."""
        return 1 + -(-2 * self.config.layers // self.size)

    @property
    def flops(self) -> int:
        return 2 * self.config.layers * 4 * self.rows * self.config.width  # scores, and the mix of values

    def sublayer_parameters(self, init, layer, index):
        return {"query": init.constant(0.0, self.config.width)}

    def begin(self, x, context):
        return jnp.zeros((self.rows, *x.shape), x.dtype).at[0].set(x), x

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        sources, h = carry
        assert context.layer is not None
        done = 2 * context.layer + sub.index  # sublayers before this one
        row = 1 + done // self.size
        y = sub.f(sub.norm(h))
        sources = sources.at[row].add(y)
        query = sub.own["query"].astype(y.dtype).reshape(self.option("heads"), -1)
        return sources, mix(sources, query, row + 1, context.numbers["norm_eps"])

    def stream(self, carry):
        return carry[1]


def mix(
    sources: Float[Array, "S N D"], query: Float[Array, "H K"], count: Int[Array, ""], eps: Float[Array, ""]
) -> Float[Array, "N D"]:
    """The attention of H queries over the first `count` sources, D = H K: keys are normed, values are not."""
    (S, N, D), H = sources.shape, len(query)
    weights = source_weights(sources, query, count, eps)
    return jnp.einsum("snh,snhk->nhk", weights, sources.reshape(S, N, H, -1)).reshape(N, D)


def source_weights(
    sources: Float[Array, "S N D"], query: Float[Array, "H K"], count: Int[Array, ""], eps: Float[Array, ""]
) -> Float[Array, "S N H"]:
    """The weights of the first `count` sources in `mix`; 0 for the others."""
    (S, N, _), H = sources.shape, len(query)
    seen_S11 = (jnp.arange(S, dtype=count.dtype) < count)[:, None, None]
    # The product with a normed key is that with the source over its norm, so that no key is written; a source still to
    # come is zero, whose norm would be divided by.
    mean_square = jnp.where(seen_S11, jnp.mean(jnp.square(sources), axis=-1, keepdims=True), 1)
    scores_SNH = jnp.einsum("snhk,hk->snh", sources.reshape(S, N, H, -1), query)
    scores_SNH = scores_SNH * jax.lax.rsqrt(mean_square + eps.astype(sources.dtype))
    scores_SNH = jnp.where(seen_S11, scores_SNH, jnp.finfo(scores_SNH.dtype).min)
    return jax.nn.softmax(scores_SNH, axis=0)
