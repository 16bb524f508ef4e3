"""What the `data:` section of a config may say."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DataConfig(BaseModel):
    """A corpus, how it becomes tokens, and how windows of it become batches."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: Literal["text"] = Field(default="text", description="text: one long sequence of tokens")
    corpus: Literal["python-docs", "shakespeare"] | None = Field(
        default=None,
        description="a known corpus; python-docs ships with Python, shakespeare is downloaded; null = python-docs",
    )
    path: str | None = Field(default=None, min_length=1, description="any UTF-8 text file, instead of corpus")
    tokenizer: Literal["char", "byte"] = Field(default="char", description="char: vocabulary of the corpus; byte: 256")
    context: int = Field(default=64, ge=1, description="tokens of a window, T")
    batch: int = Field(default=16, ge=1, description="windows of an optimizer step, B")
    val_fraction: float = Field(default=0.1, gt=0, lt=1, description="the last part of the corpus, held out")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="of the batch order; null = the run's seed")
    placement: Literal["auto", "device", "host"] = Field(
        default="auto", description="device: the corpus lives in device memory; host: memory-mapped and gathered there"
    )


def problems(config: DataConfig) -> list[tuple[str, str]]:
    """Cross-field checks as (key, what is wrong), all at once."""
    if config.corpus is not None and config.path is not None:
        return [("path", f"give corpus or path, not both (corpus is {config.corpus!r})")]
    return []
