"""The transformer: embeddings, a scan over stacked blocks, the final norm and the head."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from .attention import Attention
from .config import ModelConfig
from .init import Init
from .layers import Norm, dropout, product, soft_cap, wide
from .mlp import MLP
from .positions import sinusoidal
from .residual import Carry, Context, Residual, Sublayer, rule_of
from .scaling import in_double, power_of_two, scaled
from .sharding import batch_parts, batch_sharded, replicated
from .taps import tap

MOST_LOGITS = 2**24  # that exist at a time, of one variant on one device: 64 MiB in float32

Score = Callable[[Array, Array], Any]  # (logits [N, V], their targets, of any shape) -> a tree of [N]


class RuleParameters(nnx.Module):
    """The residual rule's own parameters, nested by name."""

    def __init__(self, values: Mapping[str, Any]):
        for name, value in values.items():
            setattr(self, name, RuleParameters(value) if isinstance(value, Mapping) else nnx.Param(value))

    def read(self) -> dict[str, Any]:
        """Returns the parameters as arrays, by name."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, RuleParameters | nnx.Param)}
        return {name: value.read() if isinstance(value, RuleParameters) else value[...] for name, value in own.items()}


class Block(nnx.Module):
    """Attention and MLP, each joined to the stream by the residual rule."""

    def __init__(self, config: ModelConfig, init: Init, layer: Int[Array, ""]):
        self.config, rule = config, rule_of(config)
        self.attn = Attention(config, init, layer)
        self.mlp = MLP(config, init, layer)
        if config.norm != "none":
            for name in self._norm_names(rule).values():
                setattr(self, name, Norm(config, init))
        own = dict(rule.block_parameters(init, layer))
        for index in (0, 1):
            for name, value in rule.sublayer_parameters(init, layer, index).items():
                own[f"{name}_{index + 1}"] = value
        self.residual = RuleParameters(own) if own else None

    def _norm_names(self, rule: Residual) -> dict[tuple[int, str], str]:
        """Returns attribute names by (sublayer, slot): norm_1, norm_2 before, norm_1_out, norm_2_out after."""
        return {
            (index, slot): f"norm_{index + 1}" + ("" if slot == "in" else f"_{slot}")
            for slot in rule.norm_slots
            for index in (0, 1)
        }

    def __call__(self, carry: Carry, context: Context, dtype: jax.typing.DTypeLike) -> Carry:
        """Returns the carry after both sublayers, which compute in `dtype`; the stream keeps its own dtype."""
        rule, numbers = rule_of(self.config), context.numbers
        keys = (None,) * 4 if context.key is None else tuple(jax.random.split(context.key, 4))
        place = self.config.dropout_at("residual")
        rate = None if place is None else numbers[place]
        own = {} if self.residual is None else self.residual.read()

        def detach(y: Array) -> Array:
            return jax.lax.stop_gradient(y) if context.detached else y

        def seen(name: str, value: Array) -> Array:
            return value if context.observe is None else context.observe(name, value)

        def attention(h: Array, mix_value=None, mix_heads=None) -> tuple[Array, Array | None]:
            h = seen("attn/input", batch_sharded(h))
            ends = (mix_value, mix_heads, context.observe, context.fused)
            y, v = self.attn(h.astype(dtype), context.shape, numbers, keys[0], *ends)
            y = batch_sharded(y)
            y = seen("attn/output", detach(dropout(y.astype(h.dtype), rate, keys[1])))
            return y, None if v is None else detach(v)

        def mlp(h: Array, mix_value=None, mix_heads=None) -> tuple[Array, None]:
            del mix_value, mix_heads  # attention's
            h = seen("mlp/input", batch_sharded(h))
            y = batch_sharded(self.mlp(h.astype(dtype), context.observe, context.one))
            return seen("mlp/output", detach(dropout(y.astype(h.dtype), rate, keys[2]))), None

        context = context._replace(key=keys[3])
        carry = rule.enter(carry, own, context)
        for index, (branch, part) in enumerate(((attention, "attn"), (mlp, "mlp"))):
            mine = {name[:-2]: value for name, value in own.items() if name.endswith(f"_{index + 1}")}
            norms = self._norms(rule, index, numbers, partial(seen, f"{part}/norm"))
            carry = rule.sublayer(carry, Sublayer(index, branch, norms, mine, own), context)
        return carry

    def _norms(
        self, rule: Residual, index: int, numbers: Mapping[str, Array], seen: Callable[[Array], Array]
    ) -> dict[str, Callable[[Array], Array]]:
        norms = dict.fromkeys(rule.norm_slots, lambda x: x)
        if self.config.norm != "none":
            names, eps = self._norm_names(rule), numbers["norm_eps"]
            norms = {slot: partial(getattr(self, names[index, slot]), eps=eps) for slot in rule.norm_slots}
        return norms if "in" not in norms else norms | {"in": lambda x: norms["in"](seen(x))}


class StreamStats(NamedTuple):
    """Statistics of the stream at every depth, from 0, the embedding output, to L, the last block's output."""

    rms: Float[Array, "L+1"]
    rank: Float[Array, "L+1"]  # |X - mean over tokens|_F / |X|_F a sequence, averaged over the batch; 0 = collapsed


class Interface(NamedTuple):
    """Input and output sizes of a model; see Network."""

    vocab_size: int | None
    context: int
    outputs: int | None = None
    channels: int | None = None
    pooled: bool = False
    most_logits: int = MOST_LOGITS

    @property
    def untied(self) -> bool:
        """True if the head cannot share the embedding's table: there is none, or its rows differ."""
        return self.channels is not None or self.outputs not in (None, self.vocab_size)

    @property
    def rows(self) -> int:
        """Number of rows of the head's table."""
        rows = self.vocab_size if self.outputs is None else self.outputs
        assert rows is not None
        return rows


class Transformer(nnx.Module):
    """A transformer from tokens to logits. Parameters are float32, or float64 if the compute dtype is."""

    def __init__(self, config: ModelConfig, interface: Interface, init: Init):
        self.config, self.interface, context = config, interface, interface.context
        rows = interface.channels if interface.vocab_size is None else interface.vocab_size
        assert rows is not None
        # Real-valued inputs are embedded by a projection [C, D], drawn like a table.
        self.embed = nnx.Param(init.table("embed", rows, config.width))
        learned = config.positions == "learned"
        self.positions = nnx.Param(init.table("positions", context, config.width)) if learned else None
        self.blocks = nnx.vmap(lambda layer: Block(config, init, layer))(jnp.arange(config.layers))
        normed = rule_of(config).final_norm and config.norm != "none"
        self.norm_f = Norm(config, init) if normed else None
        tied = config.tied_head and not interface.untied
        self.head = None if tied else nnx.Param(init.table("head", interface.rows, config.width))

    def __call__(
        self,
        tokens: Int[Array, "B T"] | Float[Array, "B T C"],
        *,
        numbers: Mapping[str, Any],
        key: Key[Array, ""] | None = None,
        dtype: jax.typing.DTypeLike = "float32",
        unroll: int = 1,
        remat: str = "none",
        fused: str | None = None,
        slots: Float[Array, "L+1 2"] | None = None,
        head: Float[Array, "V D"] | None = None,
        score: Score | None = None,
        targets: Array | None = None,
    ) -> tuple[Any, StreamStats | None]:
        """Returns logits [B*T, V], or [B, V] when pooled, in at least float32, and statistics of the stream.

        With `score` and `targets` [B, T, ...] ([B, ...] when pooled) it returns score(logits, targets) in place of the
        logits. More than the interface's `most_logits` never exist as a whole: they are scored, and in the backward
        pass computed again, for some tokens of each sequence at a time.

        `numbers`: the config's traced numbers (model/residual `numbers_of`). `key`: dropout; None turns it off.
        `slots`: zeros whose gradient is |delta| at every depth (model/taps.py); None leaves taps and statistics out
        of the program. `head`: replaces the head's table, so that a tied table can be differentiated separately
        from its use as lookup. `unroll`: blocks a scan iteration. `remat`: values of a block that the backward
        pass computes again: none, all but the products with matrices (dots), or all but the block's input (full).
        `fused`: implementation of attention, which is not differentiable in forward mode; see Attention.
        """
        config, rule = self.config, rule_of(self.config)
        carry, context = self.begin(tokens, numbers, key)
        context = context._replace(fused=fused)
        if min(unroll, config.layers) > 1:
            context = context._replace(one=1 + 0 * context.numbers["skip_scale"])
        graph, stacked = nnx.split(self.blocks)

        def statistics(carry: Carry) -> StreamStats | None:
            return None if slots is None else _stream_stats(rule.stream(carry), context.shape)

        def block(parameters, carry, layer):
            layer_key = None if key is None else jax.random.fold_in(key, layer)
            return nnx.merge(graph, parameters)(carry, context._replace(layer=layer, key=layer_key), dtype)

        if remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
            # Of blocks in one iteration XLA would else merge the second computation with the first.
            block = jax.checkpoint(block, prevent_cse=min(unroll, config.layers) > 1, policy=policy)

        def body(state, inputs):
            (carry, exponent), (parameters, layer, slot) = state, inputs
            stats = statistics(carry)
            if slot is not None:
                carry, exponent = tap(carry, exponent, slot, rule.stream)
            return (block(parameters, carry, layer), exponent), stats

        state = (carry, jnp.zeros((), jnp.float32))
        inputs = (stacked, jnp.arange(config.layers), None if slots is None else slots[:-1])
        (carry, exponent), stats = jax.lax.scan(body, state, inputs, unroll=min(unroll, config.layers))
        if slots is not None:
            last = statistics(carry)
            stats = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), stats, last)
            carry, _ = tap(carry, exponent, slots[-1], rule.stream)
        return self.end(carry, context, dtype, head, score, targets), stats

    def begin(
        self, tokens: Array, numbers: Mapping[str, Any], key: Key[Array, ""] | None = None
    ) -> tuple[Carry, Context]:
        """Returns the input of block 0 and the context that all blocks share."""
        config, x = self.config, self._embedded(tokens)
        numbers = {name: jnp.asarray(number, x.dtype) for name, number in numbers.items()}
        place = config.dropout_at("embed")
        embed_key = None if key is None else jax.random.fold_in(key, config.layers)
        x = dropout(x, None if place is None else numbers[place], embed_key)
        context = Context(numbers, (tokens.shape[0], tokens.shape[1]))
        return rule_of(config).begin(x, context), context

    def end(
        self,
        carry: Carry,
        context: Context,
        dtype: jax.typing.DTypeLike = "float32",
        head: Float[Array, "V D"] | None = None,
        score: Score | None = None,
        targets: Array | None = None,
    ) -> Any:
        """Returns the logits or their scores, from the last block's output: see `__call__`."""
        config, numbers = self.config, context.numbers
        x = rule_of(config).end(carry, context)
        x = x if self.norm_f is None else self.norm_f(x, numbers["norm_eps"])
        x = jnp.mean(x.reshape(*context.shape, -1), axis=1) if self.interface.pooled else x
        if head is None:
            head = self.embed[...] if self.head is None else self.head[...]
        x, table = x.astype(dtype), replicated(head)

        def logits(x: Float[Array, "N D"]) -> Float[Array, "N V"]:
            # The table is cast here, so that its gradient is summed over chunks in its own dtype.
            y = product("nd,dv->nv", batch_sharded(x), table.astype(dtype).T)
            if config.width_ratio != 1:
                # The head's initial values do not depend on the width (Yang et al. 2022, 2203.03466, table 8).
                y = y * jnp.asarray(1 / config.width_ratio, y.dtype)
            return soft_cap(y, numbers.get("logit_cap"))

        if score is None or targets is None:
            return logits(x)
        B, T = context.shape
        most = self.interface.most_logits * batch_parts() // (B * len(table))
        n = max(n for n in range(1, T + 1) if T % n == 0 and (n <= most or n == 1))  # tokens of a sequence in a chunk
        if n == T or self.interface.pooled:
            return score(logits(x), targets)

        def of_chunk(chunk: tuple[Array, Array]) -> Any:
            x, targets = chunk  # [B, n, ...]
            return score(logits(x.reshape(B * n, -1)), targets)

        chunks = [
            jnp.moveaxis(rows.reshape(B, T // n, n, *rows.shape[2:]), 1, 0) for rows in (x.reshape(B, T, -1), targets)
        ]
        scores = jax.lax.map(jax.checkpoint(of_chunk, prevent_cse=False), tuple(chunks))
        return jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, B, n), 0, 1).reshape(-1), scores)

    def _embedded(self, tokens: Array) -> Float[Array, "N D"]:
        (B, T), table = tokens.shape[:2], replicated(self.embed[...])
        if self.interface.channels is None:
            x = table[tokens.reshape(-1)]
        else:
            x = jnp.matmul(tokens.reshape(B * T, -1).astype(table.dtype), table, precision="highest")
        x = batch_sharded(x)
        if self.positions is not None:
            return x + jnp.tile(self.positions[...][:T], (B, 1))
        if self.config.positions == "sinusoidal":
            return x + jnp.tile(sinusoidal(T, self.config.width, x.dtype), (B, 1))
        return x


def _stream_stats(x: Float[Array, "N D"], shape: tuple[int, int]) -> StreamStats:
    x = jax.lax.stop_gradient(x).reshape(*shape, -1)

    def in_one_scale() -> StreamStats:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), _statistics(x.astype(jnp.float64)))

    def largest_factored_out() -> StreamStats:  # squares of activations may underflow without norms and skips
        k = power_of_two(x)
        stats = _statistics(scaled(x.astype(wide(x.dtype)), -k))
        return stats._replace(rms=scaled(stats.rms, k))

    return in_double(x.dtype, in_one_scale, largest_factored_out)


def _statistics(x: Float[Array, "B T D"]) -> StreamStats:
    mean_BD = jnp.mean(x, axis=1)
    spread_B = jnp.sum(jnp.square(x - mean_BD[:, None]), axis=(1, 2))
    # |X|^2 = spread + T |mean|^2, which saves a pass over the stream.
    square_B = spread_B + x.shape[1] * jnp.sum(jnp.square(mean_BD), axis=1)
    rank = jnp.mean(jnp.sqrt(spread_B / jnp.where(square_B > 0, square_B, jnp.ones_like(square_B))))
    return StreamStats(rms=jnp.sqrt(jnp.mean(square_B) / (x.shape[1] * x.shape[2])), rank=rank)
