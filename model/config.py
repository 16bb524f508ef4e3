"""The `model:` section of a config. No JAX here: a config is checked before JAX starts."""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from . import rules
from .rules import ACTIVATIONS, RULES, DeclarationError, Rule
from .traced import Traced


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def residual_section() -> type[Section]:
    """The keys of `model.residual`: the rule, and every rule's options (model/rules.py).

    Raises DeclarationError where rules share an option and declare it with different types or bounds.
    """
    note = "how a sublayer joins the stream; the rules are listed at the end of docs/config.md"
    fields: dict[str, Any] = {"rule": (Literal[tuple(RULES)], Field(default="pre_ln", description=note))}
    for name, owners in rules.options().items():
        types = {(option.kind, tuple(option.bounds.items())) for option in owners.values()}
        if len(types) > 1:
            raise DeclarationError(
                f"expected one type and the same bounds of {name} in {', '.join(owners)}, got {types}"
            )
        ((kind, bounds),) = types
        value = Field(default=None, description=rules.meanings(owners), **dict(bounds))
        fields[name] = (Annotated[kind | None, Traced()] if kind is float else kind | None, value)
    return create_model("ResidualSection", __base__=Section, **fields)


class ResidualConfig(residual_section()):
    """The residual rule and its options; `residual: NAME` is short for a rule with its own defaults."""

    if TYPE_CHECKING:
        rule: str = "pre_ln"

        def __getattr__(self, name: str) -> Any: ...  # the options


class InitGain(Section):
    """Factors of the initial block matrices, on top of `init` and of the residual rule's own."""

    attn_q: Annotated[float, Traced()] = Field(default=1.0, description="queries")
    attn_k: Annotated[float, Traced()] = Field(default=1.0, description="keys")
    attn_v: Annotated[float, Traced()] = Field(default=1.0, description="values")
    attn_o: Annotated[float, Traced()] = Field(default=1.0, description="attention's output matrix")
    mlp_in: Annotated[float, Traced()] = Field(default=1.0, description="MLP's input matrix")
    mlp_gate: Annotated[float, Traced()] = Field(default=1.0, description="MLP's gate matrix (swiglu, geglu)")
    mlp_out: Annotated[float, Traced()] = Field(default=1.0, description="MLP's output matrix")


class ModelConfig(Section):
    """A decoder-only (or bidirectional) transformer; sizes are counts, `norm_eps` is added to a mean square."""

    layers: int = Field(default=8, ge=1, le=10_000, description="blocks; each has an attention and an MLP sublayer")
    width: int = Field(default=128, ge=1, description="width of the residual stream")
    heads: int = Field(default=4, ge=1, description="query heads; must divide width")
    kv_heads: int | None = Field(default=None, ge=1, description="key and value heads; null = heads; must divide heads")
    mlp_ratio: float = Field(default=4, gt=0, description="hidden width of the MLP over width")
    base_width: int | None = Field(
        default=None,
        ge=1,
        description="muP, docs/optimizers.md: a learning rate that is right at this width is right at every other one; "
        "a model of this width is what it is without the option; null = standard parametrization",
    )
    base_heads: int | None = Field(
        default=None, ge=1, description="heads of the model of base_width, which they must divide; null = heads"
    )
    activation: Literal[tuple(ACTIVATIONS)] = Field(  # pyright: ignore[reportInvalidTypeForm]
        default="gelu", description="gelu is the tanh form; swiglu and geglu add a gate matrix; linear is none at all"
    )
    norm: Literal["rms", "layer", "dyt", "derf", "none"] = Field(
        default="rms",
        description="of every block, and the final one; dyt and derf are tanh and erf of a learnable multiple",
    )
    norm_eps: Annotated[float, Traced()] = Field(
        default=1e-6, ge=0, description="added to the mean square (rms) or variance (layer)"
    )
    norm_gain: bool = Field(default=True, description="learnable gain on every norm")
    residual: ResidualConfig = ResidualConfig()
    skip_scale: Annotated[float, Traced()] = Field(
        default=1.0, description="s in x <- s*x + F(N(x)); 1 = with the skip, 0 = without"
    )
    positions: Literal["learned", "rope", "sinusoidal", "alibi", "none"] = Field(
        default="learned", description="how tokens know their place; sinusoidal has amplitude 1 and no parameters"
    )
    attention: Literal["causal", "full"] = Field(default="causal", description="which keys a query sees")
    window: int | None = Field(
        default=None, ge=1, description="sliding window: keys nearer than this many tokens are seen; null = all"
    )
    attention_scale: Annotated[float | None, Traced()] = Field(
        default=None,
        description="factor of q . k; null = 1 / sqrt(K), K = width / heads; with base_width sqrt(base K) / K",
    )
    attention_cap: Annotated[float | None, Traced()] = Field(
        default=None, gt=0, description="soft cap of attention's logits, cap * tanh(logit / cap); null = none"
    )
    logit_cap: Annotated[float | None, Traced()] = Field(
        default=None, gt=0, description="soft cap of the head's logits; null = none"
    )
    qk_norm: bool = Field(default=False, description="RMS norm on each head's queries and keys, without a gain")
    bias: bool = Field(default=False, description="biases on linear layers and layer norms")
    tied_head: bool = Field(default=True, description="the head reuses the token embedding")
    dropout: Annotated[float, Traced(off=0.0)] = Field(
        default=0.0, ge=0, lt=1, description="embedding, attention and sublayer outputs, inverted form"
    )
    dropout_embed: Annotated[float | None, Traced(off=0.0)] = Field(
        default=None, ge=0, lt=1, description="of the embedding alone; null = dropout"
    )
    dropout_attention: Annotated[float | None, Traced(off=0.0)] = Field(
        default=None, ge=0, lt=1, description="of the attention weights alone; null = dropout"
    )
    dropout_residual: Annotated[float | None, Traced(off=0.0)] = Field(
        default=None, ge=0, lt=1, description="of the sublayers' outputs alone; null = dropout"
    )
    init: Literal["normal", "xavier", "orthogonal"] = Field(default="xavier", description="of every block matrix")
    init_std: Annotated[float, Traced()] = Field(
        default=0.02,
        gt=0,
        description="of embeddings, and of matrices under init: normal (there over sqrt(width / base_width))",
    )
    init_gain: InitGain = InitGain()

    @model_validator(mode="before")
    @classmethod
    def _short_rule(cls, given: Any) -> Any:
        """`residual: NAME` is short for `residual: {rule: NAME}`."""
        if isinstance(given, dict) and isinstance(given.get("residual"), str):
            return {**given, "residual": {"rule": given["residual"]}}
        return given

    @property
    def rule(self) -> Rule:
        """The declaration of the residual rule."""
        return RULES[self.residual.rule]

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def value_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def width_ratio(self) -> float:
        """m, the width over base_width; 1 in the standard parametrization."""
        return 1.0 if self.base_width is None else self.width / self.base_width

    @property
    def usual_attention_scale(self) -> float:
        """The factor of q . k where attention_scale is null: 1 / sqrt(K), with base_width sqrt(base K) / K.

        Trained q and k are correlated, so q . k grows as K and no longer as sqrt(K) (Yang et al. 2022, 2203.03466,
        definition 4.1).
        """
        K = base = self.head_width
        if self.base_width is not None:
            base = self.base_width // (self.base_heads or self.heads)
        return math.sqrt(base / K) / math.sqrt(K)

    def dropout_at(self, place: str) -> str | None:
        """The key of the rate at `place` (embed, attention, residual), None where nothing is dropped."""
        own = getattr(self, f"dropout_{place}")
        key, rate = ("dropout", self.dropout) if own is None else (f"dropout_{place}", own)
        return key if rate else None

    @property
    def drops(self) -> bool:
        """Training draws random numbers: for dropout, or to drop whole blocks."""
        places = ("embed", "attention", "residual")
        return self.rule.draws or any(self.dropout_at(place) for place in places)

    @property
    def gated(self) -> bool:
        return ACTIVATIONS[self.activation].gated

    @property
    def hidden(self) -> int:
        """F, the MLP's hidden width."""
        return round(self.mlp_ratio * self.width)


def problems(config: ModelConfig) -> list[tuple[str, str]]:
    """Cross-field checks as (key, what is wrong), all at once; empty when the model can be built."""
    wrong = []
    if config.width % config.heads:
        wrong.append(("heads", f"expected a divisor of width {config.width} {divisors(config.width, config.heads)}"))
    elif config.positions == "rope" and config.head_width % 2:
        wrong.append(("positions", f"rope turns pairs, so width/heads must be even, got {config.head_width}"))
    if config.heads % config.value_heads:
        wrong.append(("kv_heads", f"expected a divisor of heads {config.heads}, got {config.kv_heads}"))
    wrong += _base_problems(config)
    if config.hidden < 1:
        message = f"mlp_ratio times width must be at least 1, got {config.mlp_ratio} * {config.width}"
        wrong.append(("mlp_ratio", message))
    wrong += rules.problems(config)
    if config.init_gain.mlp_gate != 1.0 and not config.gated:
        wrong.append(("init_gain.mlp_gate", f"activation {config.activation} has no gate; it is for swiglu and geglu"))
    return wrong


def _base_problems(config: ModelConfig) -> list[tuple[str, str]]:
    """Problems of base_width and base_heads, which must be sizes of a model of the same kind."""
    base, heads = config.base_width, config.base_heads
    if base is None:
        return [] if heads is None else [("base_heads", f"needs base_width, got {heads}")]
    if heads is None:
        if base % config.heads:
            return [("base_width", f"expected a multiple of heads {config.heads} (or set base_heads), got {base}")]
        return []
    if base % heads:
        return [("base_heads", f"expected a divisor of base_width {base} {divisors(base, heads)}")]
    # Else keys and values would have a width that does not grow with the model's.
    group, left = divmod(config.heads, config.value_heads)
    if not left and heads % group:
        return [("base_heads", f"expected a multiple of heads / kv_heads {group}, which widths share, got {heads}")]
    return []


def divisors(number: int, got: int) -> str:
    """`(nearest: 3, 4, 6), got 5`"""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    near = sorted({*small, *(number // n for n in small)}, key=lambda n: (abs(n - got), n))[:3]
    return f"(nearest: {', '.join(map(str, sorted(near)))}), got {got}"
