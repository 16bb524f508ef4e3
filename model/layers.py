"""Linear maps, norms and dropout: what every sublayer is made of."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from .config import ModelConfig
from .init import Init


class Linear(nnx.Module):
    """y = x W (+ b), the product in the dtype of x, so that compute in bfloat16 keeps float32 parameters."""

    def __init__(self, init: Init, path: str, layer: int | Int[Array, ""], rows: int, columns: int, bias: bool):
        """`path` is blocks/attn/q; its last two parts make the tag of its init_gain, attn_q."""
        gain = init.gain("_".join(path.split("/")[-2:]))
        self.kernel = nnx.Param(init.matrix(path, layer, rows, columns, gain))
        self.bias = nnx.Param(init.constant(0.0, columns)) if bias else None

    def __call__(self, x: Float[Array, "N D"], one: Float[Array, ""] | None = None) -> Float[Array, "N F"]:
        """`one`: for `fusion_barrier`, where there is one."""
        kernel = self.kernel[...]
        if one is not None and kernel.shape[0] > kernel.shape[1]:
            # The kernel's gradient as (g^T x)^T, the narrower of the two on the left: x^T g takes XLA:CPU 1.7 times as
            # long where the rows of x are a power of two of 512 and more, which share few lines of the cache.
            kernel = fusion_barrier(kernel.T, one).T
        y = x @ kernel.astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, :]


def joined(linears: list[Linear], x: Float[Array, "N D"]) -> list[Float[Array, "N F"]]:
    """Several maps of one input as a single product: small matrices leave a core half idle."""
    kernel = jnp.concatenate([linear.kernel[...] for linear in linears], axis=1).astype(x.dtype)
    y = x @ kernel
    biases = [linear.bias for linear in linears]
    if biases[0] is not None:
        y = y + jnp.concatenate([b[...] for b in biases if b is not None]).astype(x.dtype)[None, :]
    ends, total = [], 0
    for linear in linears[:-1]:
        total += linear.kernel[...].shape[1]
        ends.append(total)
    return jnp.split(y, ends, axis=1)


class Norm(nnx.Module):
    """RMSNorm (Zhang & Sennrich 2019, 1910.07467) or LayerNorm (Ba et al. 2016, 1607.06450) over the last axis."""

    def __init__(self, config: ModelConfig, init: Init):
        self.kind = config.norm
        gained = config.norm_gain
        self.gain = nnx.Param(init.constant(1.0, config.width)) if gained else None
        biased = gained and config.bias and config.norm == "layer"
        self.bias = nnx.Param(init.constant(0.0, config.width)) if biased else None

    def __call__(self, x: Float[Array, "N D"], eps: Float[Array, ""]) -> Float[Array, "N D"]:
        y = normalize(x, self.kind, eps)
        if self.gain is not None:
            y = y * self.gain[...][None, :]
        return y if self.bias is None else y + self.bias[...][None, :]


@jax.custom_jvp
def fusion_barrier(x: Float[Array, "..."], one: Float[Array, ""]) -> Float[Array, "..."]:
    """x; its cotangent is divided by `one`, which is 1 in a way that a compiler cannot see through, so that it is
    computed as it was written, once.

    Of unrolled blocks XLA sees all at once. The cotangent of the stream is a sum over the blocks above; XLA:CPU takes a
    sum for cheap and fuses a copy of it into whatever reads it, so every block would add up anew all that is above it.
    A quotient counts as dear, and is computed once. And a product that is then transposed it turns into the product of
    the transposed, but not through a quotient. (Optimization barriers are gone before it fuses.)
    """
    del one
    return x


@fusion_barrier.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[0] / primals[1]


def wide(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """float64 for float64, else float32: what sums and softmaxes run in. A bfloat16 sum loses its small terms."""
    return jnp.dtype("float64" if jnp.dtype(dtype) == jnp.dtype("float64") else "float32")


def normalize(x: Float[Array, "... D"], kind: str, eps: float | Float[Array, ""]) -> Float[Array, "... D"]:
    """x over its root mean square along the last axis, after taking the mean away when `kind` is layer."""
    if kind == "layer":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.asarray(eps, x.dtype))


def root_mean_square(x: Array) -> Float[Array, ""]:
    """sqrt(mean(x^2)) with the largest entry taken out first: squares of entries below 1e-19 underflow in float32."""
    largest = jnp.max(jnp.abs(x))
    return largest * jnp.sqrt(jnp.mean(jnp.square(x / jnp.where(largest > 0, largest, 1))))


def softmax(x: Float[Array, "... S"]) -> Float[Array, "... S"]:
    """Along the last axis, differentiated by its Jacobian diag(y) - y y^T: through the quotient, which is what JAX does
    by default, XLA:CPU takes 1.05 times as long for a whole training step."""
    with jax.softmax_custom_jvp(True):
        return jax.nn.softmax(x, axis=-1)


def dropout(x: Array, rate: Float[Array, ""] | None, key: Key[Array, ""] | None) -> Array:
    """Inverted dropout (Srivastava et al. 2014): kept entries are divided by 1 - rate; off when either is None."""
    if rate is None or key is None:
        return x
    keep = jax.random.bernoulli(key, (1 - rate).astype(jnp.float32), x.shape)
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), jnp.zeros((), x.dtype))


def soft_cap(x: Array, cap: Float[Array, ""] | None) -> Array:
    """cap * tanh(x / cap) (Gemma 2, 2408.00118, section 2); x itself when `cap` is None."""
    return x if cap is None else cap.astype(x.dtype) * jnp.tanh(x / cap.astype(x.dtype))
