"""Rules that widen the residual stream to n copies, mixed by small matrices: the carry H is n arrays [N, D].

They are apart, and sums over them are written out, since XLA:CPU takes five times as long for one array [n, N, D].

Delta is taken of all streams together (the Frobenius norm of dL/dH), so gains need not telescope as Jacobians of one
stream do.
"""

import math
from functools import reduce
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..layers import normalize
from .base import Carry, Context, Residual, Sublayer, scalar


class Streams(Residual):
    """Base of both rules: a sublayer reads one mix of the streams and is written to all of them."""

    @property
    def n(self) -> int:
        return self.option("streams")

    @property
    def flops(self) -> int:
        return 2 * self.config.layers * 2 * (self.n + 2) * self.n * self.config.width  # read, across, write

    def begin(self, x: Float[Array, "N D"], context: Context) -> Carry:
        """Copies."""
        return (x,) * self.n

    def weights(self, carry: Carry, sub: Sublayer, context: Context) -> tuple[Array, Array, Array]:
        """(what each stream gives to the sublayer [n, N], from stream to stream [n, n, N] (from, to), what each stream
        gets of the sublayer's output [n, N]); N may be 1.

        Tokens come last, since processors work on many entries of the last axis at once, and n is about 4.
        """
        raise NotImplementedError

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        read, across, write = self.weights(carry, sub, context)
        h: Any = sum(read[i][:, None] * x for i, x in enumerate(carry))
        y = sub.f(sub.norm(h))
        mixed: list[Any] = [sum(across[i, j][:, None] * x for i, x in enumerate(carry)) for j in range(self.n)]
        return tuple(self.add(x, write[j][:, None] * y, context) for j, x in enumerate(mixed))

    def end(self, carry: Carry, context: Context) -> Float[Array, "N D"]:
        """The sum of the streams; the final norm takes the factor n out again."""
        return reduce(jnp.add, carry)

    def stream(self, carry: Carry) -> Float[Array, "N n*D"]:
        return jnp.concatenate(carry, axis=1)


class HyperConnections(Streams):
    """H <- s A_r^T H + B^T F(N(A_m^T H)) (Zhu et al. 2024, 2409.19606, eq. 2); streams start as copies, the head reads
    their sum.

    B = 1, A_r = I and A_m = e_(k mod n) for sublayer k at the start, which computes pre_ln's function. `dynamic: true`
    adds scale * tanh(RMSNorm(H) W) to each of them, a value a token (eq. 10 to 13), with W = 0 and scale = 0.01.

    The paper's listing (appendix J) has a LayerNorm with a gain there, and one scale for A_m and A_r together; here
    the norm has no parameters, as in mhc, and each of the three has its own scale.
    """

    @property
    def flops(self) -> int:
        # The matrices of the moving parts are used once a stream, not once.
        again = 2 * (self.n - 1) * (self.n + 2) * self.config.width if self.option("dynamic") else 0
        return super().flops + 2 * self.config.layers * again

    def sublayer_parameters(self, init, layer, index):
        n, D = self.n, self.config.width
        own: dict[str, Any] = {
            "read": jax.nn.one_hot((2 * layer + index) % n, n, dtype=init.dtype),
            "across": jnp.eye(n, dtype=init.dtype),
            "write": jnp.ones((n,), init.dtype),
        }
        if self.option("dynamic"):
            gate = scalar(init, self.number(init.numbers, "gate"))
            for name, columns in (("read", 1), ("across", n), ("write", 1)):
                own[f"dynamic_{name}"] = {"kernel": jnp.zeros((D, columns), init.dtype), "scale": gate}
        return own

    def weights(self, carry, sub, context):
        dtype = carry[0].dtype
        read, across, write = (sub.own[name].astype(dtype)[..., None] for name in ("read", "across", "write"))
        if not self.option("dynamic"):
            return read, across, write
        normed = [normalize(x, "rms", context.numbers["norm_eps"]) for x in carry]

        def moving(name: str) -> Float[Array, "n columns N"]:
            part = sub.own[f"dynamic_{name}"]
            kernel, scale = part["kernel"].astype(dtype), part["scale"].astype(dtype)
            return scale * jnp.tanh(jnp.stack([(x @ kernel).T for x in normed]))

        return read + moving("read")[:, 0], across + moving("across"), write + moving("write")[:, 0]


class ManifoldHyperConnections(Streams):
    """H <- s H_res H + H_post^T F(N(H_pre H)), H_res doubly stochastic (Xie et al. 2025, mHC, 2512.24880, eqs. 3 to 9).

    With h = RMSNorm(vec(H)) of a token: H_pre = sigmoid(gate h W_pre + b_pre), H_post = 2 sigmoid(gate h W_post +
    b_post), H_res = Sinkhorn(exp(gate h W_res + b_res)), `rounds` of normed columns, then rows.

    At the start W = 0 and each gate is 0.01; b_pre = -ln(n - 1), so that H_pre averages the streams; b_post = 0, so
    that H_post is 1; b_res is 0 on the diagonal and -8 elsewhere, close to the identity. While the streams are copies
    this is pre_ln's function.

    `mixing` is another map to doubly stochastic matrices, exact where Sinkhorn's is a limit. identity: H_res = I.
    circulant: a softmax over the n cyclic shifts. lite: one over all n! permutations (mHC-lite, 2601.05732). The
    logits are 0 for the identity and -8 for the others at the start.
    """

    def permutations(self) -> Float[np.ndarray, "P n n"]:
        """The matrices whose convex combinations circulant and lite are, the identity first."""
        shifts = [np.roll(np.arange(self.n), -shift) for shift in range(self.n)]
        orders = shifts if self.option("mixing") == "circulant" else [*permutations(range(self.n))]
        return np.eye(self.n)[np.stack(orders)]

    def starts(self) -> dict[str, Float[np.ndarray, "columns"]]:
        """The logits of a sublayer's matrices where the dynamic part is 0."""
        n, mixing = self.n, self.option("mixing")
        logits = {"read": np.full(n, -math.log(n - 1)), "write": np.zeros(n)}
        if mixing == "sinkhorn":
            logits["across"] = -8 * (1 - np.eye(n)).ravel()
        elif mixing != "identity":
            logits["across"] = -8 * (np.arange(len(self.permutations())) > 0)
        return logits

    def sublayer_parameters(self, init, layer, index):
        width = self.n * self.config.width
        starts = {name: jnp.asarray(logits, init.dtype) for name, logits in self.starts().items()}
        gate = scalar(init, self.number(init.numbers, "gate"))
        kernels = {name: jnp.zeros((width, start.size), init.dtype) for name, start in starts.items()}
        return {name: {"kernel": kernels[name], "bias": start, "gate": gate} for name, start in starts.items()}

    def weights(self, carry, sub, context):
        dtype = carry[0].dtype
        # One product for all logits, of the streams as they are; a token's norm divides it afterwards.
        kernels = jnp.concatenate([part["kernel"] for part in sub.own.values()], axis=1).astype(dtype)
        kernels = kernels.reshape(self.n, self.config.width, -1)
        products: Any = sum(x @ kernel for x, kernel in zip(carry, kernels, strict=True))
        mean_square = sum(jnp.mean(jnp.square(x), axis=1) for x in carry) / self.n
        products = products.T * jax.lax.rsqrt(mean_square + context.numbers["norm_eps"].astype(dtype))[None]
        ends = np.cumsum([part["bias"].size for part in sub.own.values()])[:-1]
        of_part = dict(zip(sub.own, jnp.split(products, ends), strict=True))

        def logits(name: str) -> Float[Array, "columns N"]:
            bias, gate = (sub.own[name][part].astype(dtype) for part in ("bias", "gate"))
            return gate * of_part[name] + bias[:, None]

        mixing = self.option("mixing")
        if mixing == "identity":
            across = jnp.eye(self.n, dtype=dtype)[..., None]
        elif mixing == "sinkhorn":
            # Its matrix maps streams (columns) to streams (rows).
            across = jnp.swapaxes(sinkhorn(logits("across").reshape(self.n, self.n, -1), self.option("rounds")), 0, 1)
        else:
            shares = jax.nn.softmax(logits("across"), axis=0)
            across = jnp.tensordot(jnp.asarray(self.permutations(), dtype), shares, (0, 0))
        return jax.nn.sigmoid(logits("read")), across, 2 * jax.nn.sigmoid(logits("write"))


class Siamese(Residual):
    """u <- N_post(u), r = F(N(u + N_pre(y))), u <- s u + r / sqrt(2l), y <- s y + r: a stream that is normed as that of
    post_ln and one that is not, l the block counted from 1 (Li et al. 2026, SiameseNorm, 2602.08064).

    Both start as the embedding output. The head reads the sum of the two, each normed without a gain: of the paper's
    output only summaries could be read. Delta is taken of both together.
    """

    norm_slots = ("in", "post", "pre")

    def begin(self, x, context):
        return x, x

    def sublayer(self, carry: Carry, sub: Sublayer, context: Context) -> Carry:
        assert context.layer is not None
        u, y = sub.norms["post"](carry[0]), carry[1]
        r = sub.f(sub.norm(u + sub.norms["pre"](y)))
        depth = (2 * (context.layer + 1)).astype(r.dtype)
        return self.add(u, r / jnp.sqrt(depth), context), self.add(y, r, context)

    def end(self, carry, context):
        kind, eps = self.config.norm, context.numbers["norm_eps"]
        u, y = carry if kind == "none" else (normalize(x, kind, eps) for x in carry)
        return u + y

    def stream(self, carry):
        return jnp.concatenate(carry, axis=1)


def sinkhorn(logits: Float[Array, "n n N"], rounds: int) -> Float[Array, "n n N"]:
    """exp(logits) with columns and then rows divided by their sums, `rounds` times (Sinkhorn & Knopp 1967). Rows then
    sum to 1 exactly, columns in the limit. In logarithms, so that no column of small entries divides by 0."""

    def once(logs: Array, _: None) -> tuple[Array, None]:
        logs = jax.nn.log_softmax(logs, axis=0)
        return jax.nn.log_softmax(logs, axis=1), None

    return jnp.exp(jax.lax.scan(once, logits, None, length=rounds)[0])
