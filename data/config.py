"""Kinds of data, the schema of the `data:` section of a config, and its cross-field checks."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

BPE_VOCAB = 512  # tokens, when data.vocab_size is null
MOST_IN_BATCH = 2**28  # tokens: a gigabyte of int32
MOST_CONTEXT = 2**20
MOST_DRAWN = 2**14  # context of a task whose held-out windows are drawn, 4096 of them
MOST_STATES = 1000  # of a chain whose eigenvalues are computed

# The tasks that data of a task can serve: classes are numbers too.
SERVES = {"lm": ("lm",), "classification": ("classification", "regression"), "regression": ("regression",)}


class Kind(NamedTuple):
    """One kind of data."""

    code: str  # module:name in this package of what opens it: a class or function of the config, imported when called
    options: tuple[str, ...]  # the keys that only this kind and a few others read
    task: str | None = "lm"  # as in its DataSpec
    least: int = 1  # tokens of a window
    most: int = MOST_CONTEXT
    context: Callable[[Any], int] | None = None  # tokens of a window where the options determine it

    def opener(self) -> Callable[["DataConfig"], Any]:
        """The class or function that opens it."""
        module, _, name = self.code.partition(":")
        return getattr(import_module(module, __package__), name)


KINDS = {
    "text": Kind(".text:open_text", ("corpus", "path", "tokenizer", "vocab_size", "placement")),
    "tokens": Kind(".tokens:open_tokens", ("path", "placement")),
    "markov": Kind(".synthetic.tasks:Markov", ("symbols", "transition", "sharpness"), most=MOST_DRAWN),
    "copy": Kind(".synthetic.tasks:Copy", ("symbols",), least=2, most=MOST_DRAWN),
    "reverse": Kind(".synthetic.tasks:Reverse", ("symbols",), least=2, most=MOST_DRAWN),
    "sort": Kind(".synthetic.tasks:Sort", ("symbols",), least=2, most=MOST_DRAWN),
    "induction": Kind(".synthetic.tasks:Induction", ("symbols",), least=3, most=MOST_DRAWN),
    "addition": Kind(".synthetic.tasks:Addition", ("digits",), context=lambda config: 3 * config.digits + 2),
    "modular": Kind(".synthetic.tasks:Modular", ("modulus", "operation"), context=lambda config: 3),
    "linear_regression": Kind(
        ".synthetic.tasks:LinearRegression", ("dimensions", "noise"), task="regression", most=MOST_DRAWN
    ),
    "digits": Kind(
        ".digits:open_digits", ("patch",), task="classification", context=lambda config: (8 // config.patch) ** 2
    ),
}
if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[tuple(KINDS)]

_Row = Annotated[tuple[float, ...], Field(strict=False)]
_Own = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:Class")]


def declaration_of(config: "DataConfig") -> Kind:
    """The declaration of a config's kind; a user's class may read all options, and its task is unknown."""
    return Kind(".custom:CustomSource", (), task=None) if ":" in config.kind else KINDS[config.kind]


class DataConfig(BaseModel):
    """Source of the windows of tokens (or of real values). Options of some kinds are refused with the others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: KindName | _Own = Field(
        default="text",
        description="text; tokens: a file of token ids; tasks whose ideal predictor is known, listed at the end of "
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
        default=64,
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
    patch: Annotated[Literal[1, 2, 4, 8], BeforeValidator(lambda x: x if type(x) is int else str(x))] = Field(
        default=2, description="digits: side of the square patches that are tokens"
    )  # true and 1.0 equal 1

    @model_validator(mode="after")
    def _fixed_length(self) -> Self:
        """Sets the context of kinds whose options determine it."""
        fixed = declaration_of(self).context
        if fixed is not None and "context" not in self.model_fields_set:
            object.__setattr__(self, "context", fixed(self))  # frozen
        return self


def problems(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Cross-field checks as (key, message), all at once."""
    name, kind, context, batch = config.kind, declaration_of(config), config.context, config.batch
    for option in dict.fromkeys(option for each in KINDS.values() for option in each.options):
        default = DataConfig.model_fields[option].default
        if getattr(config, option) != default and option not in kind.options and ":" not in name:
            readers = ", ".join(other for other, each in KINDS.items() if option in each.options)
            yield option, f"an option of {readers}; data.kind is {name}"
    if name == "text" and config.corpus is not None and config.path is not None:
        yield "path", f"give corpus or path, not both (corpus is {config.corpus!r})"
    if name == "text" and config.vocab_size is not None and config.tokenizer != "bpe":
        yield "vocab_size", f"an option of tokenizer bpe; data.tokenizer is {config.tokenizer}"
    if name == "tokens" and config.path is None:
        yield "path", "missing; data.kind tokens needs a .npy or .bin file"
    if kind.context is not None and context != (fixed := kind.context(config)):
        yield "context", f"expected {fixed} with data.kind {name} (leave it out), got {context}"
    if context < kind.least:
        yield "context", f"expected at least {kind.least} with data.kind {name}, got {context}"
    if name == "linear_regression" and context % 2:
        yield "context", f"expected an even number (x and y are a token each), got {context}"
    # Sizes that would exhaust the machine before any message.
    if context > kind.most:
        yield "context", f"expected at most {kind.most} with data.kind {name}, got {context}"
    elif batch * context > MOST_IN_BATCH:
        yield "batch", f"expected at most {MOST_IN_BATCH // context} with data.context {context}, got {batch}"
    elif name == "markov" and config.transition is None and config.symbols > MOST_STATES:
        yield "symbols", f"expected at most {MOST_STATES} with data.kind markov, got {config.symbols}"
    rows = config.transition
    if rows is not None and (len(rows) < 2 or any(len(row) != len(rows) for row in rows)):
        lengths = ", ".join(str(len(row)) for row in rows)
        yield "transition", f"expected a square matrix, got {len(rows)} rows of {lengths}"
        return
    for index, row in enumerate(rows or ()):
        if min(row) < 0 or abs(sum(row) - 1) > 1e-6:
            wrong = (
                f", row {index} has {min(row):g}"
                if min(row) < 0
                else f" that sum to 1, row {index} sums to {sum(row):g}"
            )
            yield "transition", f"expected rows of probabilities{wrong}"
            return
