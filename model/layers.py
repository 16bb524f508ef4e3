"""Linear maps, norms, dropout and other parts of the sublayers."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from .config import ModelConfig
from .init import Init
from .sharding import tensor_sharded


class Linear(nnx.Module):
    """y = x W (+ b), computed in the dtype of x: parameters stay float32 when compute is bfloat16."""

    def __init__(self, init: Init, path: str, layer: int | Int[Array, ""], rows: int, columns: int, bias: bool):
        """Draws the kernel. The last two parts of `path`, blocks/attn/q, form the tag of its init_gain, attn_q."""
        gain = init.gain("_".join(path.split("/")[-2:]))
        self.kernel = nnx.Param(init.matrix(path, layer, rows, columns, gain))
        self.bias = nnx.Param(init.constant(0.0, columns)) if bias else None

    def __call__(self, x: Float[Array, "N D"], one: Float[Array, ""] | None = None) -> Float[Array, "N F"]:
        """Maps x [N, D] to [N, F]. `one`: the divisor of `fusion_barrier`, which is applied if it is given."""
        kernel = self.kernel[...]
        if one is not None and kernel.shape[0] > kernel.shape[1]:
            # Computes the kernel's gradient as (g^T x)^T, with the narrower factor on the left. On XLA:CPU x^T g takes
            # 1.7 times as long if the rows of x have a power-of-two length of 512 or more, which conflict in the cache.
            kernel = fusion_barrier(kernel.T, one).T
        y = x @ kernel.astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, :]


def joined(linears: list[Linear], x: Float[Array, "N D"]) -> list[Float[Array, "N F"]]:
    """Applies several maps to one input as a single product, since small matrices leave a core half idle.

    Not if their columns are divided over devices, where those of one map would have to move to the others'.
    """
    if tensor_sharded():
        return [linear(x) for linear in linears]
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
    """RMSNorm (Zhang & Sennrich 2019, 1910.07467) or LayerNorm (Ba et al. 2016, 1607.06450) over the last axis, or what
    stands in their place, entry by entry: DyT, tanh(alpha x) (Zhu et al. 2025, 2503.10622), or Derf,
    erf(alpha x + shift) (Chen et al. 2025, 2512.10938); alpha is 0.5 and shift 0 at the start."""

    def __init__(self, config: ModelConfig, init: Init):
        self.kind = config.norm
        gained, pointwise = config.norm_gain, config.norm in ("dyt", "derf")
        self.gain = nnx.Param(init.constant(1.0, config.width)) if gained else None
        biased = gained and config.bias and config.norm != "rms"
        self.bias = nnx.Param(init.constant(0.0, config.width)) if biased else None
        self.alpha = nnx.Param(init.constant(0.5)) if pointwise else None
        self.shift = nnx.Param(init.constant(0.0)) if config.norm == "derf" else None

    def __call__(self, x: Float[Array, "N D"], eps: Float[Array, ""]) -> Float[Array, "N D"]:
        if self.alpha is None:
            y = normalize(x, self.kind, eps)
        else:
            y = self.alpha[...].astype(x.dtype) * x
            y = jnp.tanh(y) if self.shift is None else jax.scipy.special.erf(y + self.shift[...].astype(x.dtype))
        if self.gain is not None:
            y = y * self.gain[...][None, :]
        return y if self.bias is None else y + self.bias[...][None, :]


@jax.custom_jvp
def fusion_barrier(x: Float[Array, "..."], one: Float[Array, ""]) -> Float[Array, "..."]:
    """Returns x and divides its cotangent by `one`, a 1 that the compiler cannot constant-fold.

    The division keeps XLA:CPU from two harmful rewrites. In unrolled blocks the cotangent of the stream is a sum over
    the blocks above; XLA considers sums cheap and fuses a copy into every consumer, so that each block would recompute
    the whole sum. Divisions are considered expensive and are computed once. XLA also moves a transpose of a product
    into its factors, but not past a division. (Optimization barriers are removed before fusion.)
    """
    del one
    return x


@fusion_barrier.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[0] / primals[1]


def wide(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype for sums and softmaxes over `dtype`: float64 for float64, else float32."""
    return jnp.dtype("float64" if jnp.dtype(dtype) == jnp.dtype("float64") else "float32")


def product(equation: str, x: Array, y: Array) -> Array:
    """Returns jnp.einsum(equation, x, y) in at least float32.

    The derivatives of bfloat16 factors are products of bfloat16 factors too. JAX's own are products in float32, since
    the cotangent of the result is, which read twice the memory and leave an accelerator's bfloat16 units idle.
    """
    if x.dtype == wide(x.dtype):
        return jnp.einsum(equation, x, y)
    return _wide_product(equation, x, y)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _wide_product(equation, x, y):
    return jnp.einsum(equation, x, y, preferred_element_type=wide(x.dtype))


@_wide_product.defjvp
def _(equation, primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    out = _wide_product(equation, x, y)
    return out, jnp.einsum(equation, dx, y).astype(out.dtype) + jnp.einsum(equation, x, dy).astype(out.dtype)


def normalize(x: Float[Array, "... D"], kind: str, eps: float | Float[Array, ""]) -> Float[Array, "... D"]:
    """Divides x by its root mean square along the last axis, after subtracting the mean if `kind` is layer."""
    if kind == "layer":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.asarray(eps, x.dtype))


def root_mean_square(x: Array) -> Float[Array, ""]:
    """Returns sqrt(mean(x^2)). The largest entry is factored out, since squares of entries below 1e-19 underflow."""
    largest = jnp.max(jnp.abs(x))
    return largest * jnp.sqrt(jnp.mean(jnp.square(x / jnp.where(largest > 0, largest, 1))))


def softmax(x: Float[Array, "... S"]) -> Float[Array, "... S"]:
    """Returns the softmax along the last axis, differentiated by its Jacobian diag(y) - y y^T.

    JAX's default, which differentiates the quotient, makes a training step 1.05 times as long on XLA:CPU.
    """
    with jax.softmax_custom_jvp(True):
        return jax.nn.softmax(x, axis=-1)


def dropout(x: Array, rate: Float[Array, ""] | None, key: Key[Array, ""] | None) -> Array:
    """Applies inverted dropout (Srivastava et al. 2014), dividing by 1 - rate. Returns x if `rate` or `key` is None."""
    if rate is None or key is None:
        return x
    keep = jax.random.bernoulli(key, (1 - rate).astype(jnp.float32), x.shape)
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), jnp.zeros((), x.dtype))


def soft_cap(x: Array, cap: Float[Array, ""] | None) -> Array:
    """Returns cap * tanh(x / cap) (Gemma 2, 2408.00118, section 2); x if `cap` is None."""
    return x if cap is None else cap.astype(x.dtype) * jnp.tanh(x / cap.astype(x.dtype))
