"""Next-token distributions and samples from a network."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from .network import Network, Params


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
