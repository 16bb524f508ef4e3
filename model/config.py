"""What the `model:` section of a config may say. No JAX here: a config is checked before JAX starts."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ResidualRule = Literal["pre_ln", "post_ln", "none"]


class ModelConfig(BaseModel):
    """A decoder-only (or bidirectional) transformer; sizes are counts, `norm_eps` is added to a mean square."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    layers: int = Field(default=8, ge=1, le=10_000, description="blocks; each has an attention and an MLP sublayer")
    width: int = Field(default=128, ge=1, description="width of the residual stream")
    heads: int = Field(default=4, ge=1, description="query heads; must divide width")
    kv_heads: int | None = Field(default=None, ge=1, description="key and value heads; null = heads; must divide heads")
    mlp_ratio: float = Field(default=4, gt=0, description="hidden width of the MLP over width")
    activation: Literal["gelu", "relu", "silu", "swiglu"] = Field(
        default="gelu", description="gelu is the tanh form; swiglu adds a gate matrix"
    )
    norm: Literal["rms", "layer", "none"] = Field(default="rms", description="the final norm follows it")
    norm_eps: float = Field(default=1e-6, ge=0, description="added to the mean square (rms) or variance (layer)")
    norm_gain: bool = Field(default=True, description="learnable gain on every norm")
    residual: ResidualRule = Field(default="pre_ln", description="how a sublayer joins the stream")
    skip_scale: float = Field(
        default=1.0, description="s in x <- s*x + F(N(x)); 1 = with the skip, 0 = without; traced"
    )
    positions: Literal["learned", "rope", "none"] = Field(default="learned", description="how tokens know their place")
    attention: Literal["causal", "full"] = Field(default="causal", description="which keys a query sees")
    qk_norm: bool = Field(default=False, description="RMS norm on each head's queries and keys")
    bias: bool = Field(default=False, description="biases on linear layers and layer norms")
    tied_head: bool = Field(default=True, description="the head reuses the token embedding")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="embedding, attention and sublayer outputs, inverted form"
    )
    init: Literal["normal", "xavier", "orthogonal"] = Field(default="xavier", description="of every block matrix")
    init_std: float = Field(default=0.02, gt=0, description="of embeddings, and of matrices under init: normal; traced")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def value_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden(self) -> int:
        """F, the MLP's hidden width."""
        return round(self.mlp_ratio * self.width)


def problems(config: ModelConfig) -> list[tuple[str, str]]:
    """Cross-field checks as (key, what is wrong), all at once; empty when the model can be built."""
    found = []
    if config.width % config.heads:
        nearest = sorted(
            (h for h in range(1, config.width + 1) if config.width % h == 0),
            key=lambda h: (abs(h - config.heads), h),
        )[:3]
        found.append(
            (
                "heads",
                f"expected a divisor of width {config.width} (nearest: "
                f"{', '.join(map(str, sorted(nearest)))}), got {config.heads}",
            )
        )
    elif config.positions == "rope" and config.head_width % 2:
        found.append(("positions", f"rope turns pairs, so width/heads must be even, got {config.head_width}"))
    if config.heads % config.value_heads:
        found.append(("kv_heads", f"expected a divisor of heads {config.heads}, got {config.kv_heads}"))
    if config.hidden < 1:
        found.append(
            (
                "mlp_ratio",
                f"mlp_ratio times width must be at least 1, got {config.mlp_ratio} * {config.width}",
            )
        )
    if config.residual == "none" and config.skip_scale not in (0.0, 1.0):
        found.append(
            (
                "skip_scale",
                f"residual: none means skip_scale 0; leave it out or use pre_ln, got {config.skip_scale}",
            )
        )
    return found
