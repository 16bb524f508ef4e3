"""Schema of the `data:` section of a config, and its cross-field checks."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Row = Annotated[tuple[float, ...], Field(strict=False)]
_Own = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:Class")]
_CONTEXT = 64
BPE_VOCAB = 512  # tokens, when data.vocab_size is null
MOST_IN_BATCH = 2**28  # tokens: a gigabyte of int32
MOST_CONTEXT = 2**20
MOST_DRAWN = 2**14  # context of a task whose held-out windows are drawn, 4096 of them
MOST_STATES = 1000  # of a chain whose eigenvalues are computed
DRAWN = ("markov", "copy", "reverse", "sort", "induction", "linear_regression")


class DataConfig(BaseModel):
    """Source of the windows of tokens (or of real values). Options of some kinds are refused with the others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: (
        Literal[
            "text",
            "tokens",
            "markov",
            "copy",
            "reverse",
            "sort",
            "induction",
            "addition",
            "modular",
            "linear_regression",
            "digits",
        ]
        | _Own
    ) = Field(
        default="text",
        description="text; tokens: a file of token ids; tasks whose best possible loss is known, listed at the end of "
        "docs/config.md; digits: 8x8 images; module:Class: your own (docs/data.md)",
    )
    corpus: Literal["python-docs", "shakespeare"] | None = Field(
        default=None,
        description="text: a known corpus; python-docs ships with Python, shakespeare is downloaded; "
        "null = python-docs",
    )
    path: str | None = Field(
        default=None,
        min_length=1,
        description="text: a UTF-8 text file, a folder (its .txt files) or a pattern such as books/*.txt, "
        "instead of corpus; tokens: a .npy file, a .bin of llm.c, or a .bin with its .json",
    )
    tokenizer: Literal["char", "byte", "bpe"] = Field(
        default="char",
        description="text: char, the vocabulary of the corpus; byte, 256; bpe, bytes and merges learnt from the "
        "training part (docs/data.md)",
    )
    vocab_size: int | None = Field(
        default=None,
        ge=256,
        le=1_000_000,
        description=f"text: tokens of tokenizer bpe, 256 bytes and what is merged from them; null = {BPE_VOCAB}",
    )
    context: int = Field(
        default=_CONTEXT,
        ge=1,
        description="tokens of a window, T; addition, modular and digits have a length of their own and set it",
    )
    batch: int = Field(default=16, ge=1, description="windows of an optimizer step, B")
    val_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="held out: of a corpus its last part; addition, modular, digits: share of pairs or images",
    )
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="of the batch order; null = the run's seed")
    placement: Literal["auto", "device", "host"] = Field(
        default="auto",
        description="text, tokens: device: the corpus lives in device memory; host: memory-mapped and gathered there",
    )
    task_seed: int = Field(
        default=0, ge=0, lt=2**32, description="of what a task draws once for all runs: its matrix, its split"
    )
    symbols: int = Field(
        default=16, ge=2, le=10_000, description="markov: states; copy, reverse, sort, induction: different symbols"
    )
    transition: Annotated[tuple[_Row, ...] | None, Field(strict=False)] = Field(
        default=None, description="markov: row i is p(next | i), instead of symbols and sharpness"
    )
    sharpness: float = Field(
        default=2.0, ge=0, le=100, description="markov: rows are softmax(sharpness * normal); 0 = pure chance"
    )
    digits: int = Field(default=3, ge=1, le=8, description="addition: digits of each summand")
    modulus: int = Field(default=97, ge=2, le=1000, description="modular: p")
    operation: Literal["add", "subtract", "multiply"] = Field(
        default="add", description="modular: of a and b, modulo p"
    )
    dimensions: int = Field(default=8, ge=1, le=256, description="linear_regression: of x, d")
    noise: float = Field(default=0.0, ge=0, description="linear_regression: standard deviation of the noise on y")
    patch: Literal[1, 2, 4, 8] = Field(default=2, description="digits: side of the square patches that are tokens")

    @model_validator(mode="before")
    @classmethod
    def _fixed_length(cls, values: Any) -> Any:
        """Sets the context of kinds whose options determine it."""
        if isinstance(values, dict) and "context" not in values and (fixed := fixed_context(values.get)) is not None:
            return {**values, "context": fixed}
        return values


def fixed_context(get: Any) -> int | None:
    """The context that a kind's options determine, None for other kinds; `get(key)` gives a value or None (default)."""

    def number(key: str) -> int | None:
        value = get(key)
        return DataConfig.model_fields[key].default if value is None else value if isinstance(value, int) else None

    kind, digits, patch = get("kind"), number("digits"), number("patch")
    if kind == "modular":
        return 3
    if kind == "addition" and digits is not None:
        return 3 * digits + 2
    return (8 // patch) ** 2 if kind == "digits" and patch in (1, 2, 4, 8) else None


# The tasks that data of a task can serve: classes are numbers too.
SERVES = {"lm": ("lm",), "classification": ("classification", "regression"), "regression": ("regression",)}


def task_of(kind: str) -> str | None:
    """The task of a kind, as in its source's DataSpec; None for a user's class, which is not opened for it."""
    if ":" in kind:
        return None
    return {"digits": "classification", "linear_regression": "regression"}.get(kind, "lm")


# The kinds of each option. A user's class may read them all.
OPTIONS: dict[str, tuple[str, ...]] = {
    "corpus": ("text",),
    "path": ("text", "tokens"),
    "tokenizer": ("text",),
    "vocab_size": ("text",),
    "placement": ("text", "tokens"),
    "symbols": ("markov", "copy", "reverse", "sort", "induction"),
    "transition": ("markov",),
    "sharpness": ("markov",),
    "digits": ("addition",),
    "modulus": ("modular",),
    "operation": ("modular",),
    "dimensions": ("linear_regression",),
    "noise": ("linear_regression",),
    "patch": ("digits",),
}


def problems(config: DataConfig) -> list[tuple[str, str]]:
    """Cross-field checks as (key, message), all at once."""
    kind, messages = config.kind, []
    for option, kinds in OPTIONS.items():
        if getattr(config, option) != DataConfig.model_fields[option].default and kind not in kinds and ":" not in kind:
            messages.append((option, f"an option of {', '.join(kinds)}; data.kind is {kind}"))
    if kind == "text" and config.corpus is not None and config.path is not None:
        messages.append(("path", f"give corpus or path, not both (corpus is {config.corpus!r})"))
    if kind == "text" and config.vocab_size is not None and config.tokenizer != "bpe":
        messages.append(("vocab_size", f"an option of tokenizer bpe; data.tokenizer is {config.tokenizer}"))
    if kind == "tokens" and config.path is None:
        messages.append(("path", "missing; data.kind tokens needs a .npy or .bin file"))
    fixed = fixed_context(lambda key: getattr(config, key))
    if fixed is not None and config.context != fixed:
        messages.append(("context", f"expected {fixed} with data.kind {kind} (leave it out), got {config.context}"))
    least = {"copy": 2, "reverse": 2, "sort": 2, "induction": 3}.get(kind, 1)
    if config.context < least:
        messages.append(("context", f"expected at least {least} with data.kind {kind}, got {config.context}"))
    if kind == "linear_regression" and config.context % 2:
        messages.append(("context", f"expected an even number (x and y are a token each), got {config.context}"))
    messages += _too_large(config)
    if config.transition is not None:
        messages += [("transition", message) for message in _not_stochastic(config.transition)]
    return messages


def _too_large(config: DataConfig) -> list[tuple[str, str]]:
    """Sizes that would exhaust the machine before any message."""
    kind, context, batch = config.kind, config.context, config.batch
    longest = MOST_DRAWN if kind in DRAWN else MOST_CONTEXT
    if context > longest:
        return [("context", f"expected at most {longest} with data.kind {kind}, got {context}")]
    if batch * context > MOST_IN_BATCH:
        most = MOST_IN_BATCH // context
        return [("batch", f"expected at most {most} with data.context {context}, got {batch}")]
    if kind == "markov" and config.transition is None and config.symbols > MOST_STATES:
        return [("symbols", f"expected at most {MOST_STATES} with data.kind markov, got {config.symbols}")]
    return []


def _not_stochastic(rows: tuple[tuple[float, ...], ...]) -> list[str]:
    if len(rows) < 2 or any(len(row) != len(rows) for row in rows):
        return [f"expected a square matrix, got {len(rows)} rows of {', '.join(str(len(row)) for row in rows)}"]
    for index, row in enumerate(rows):
        if min(row) < 0:
            return [f"expected rows of probabilities, row {index} has {min(row):g}"]
        if abs(sum(row) - 1) > 1e-6:
            return [f"expected rows of probabilities that sum to 1, row {index} sums to {sum(row):g}"]
    return []
