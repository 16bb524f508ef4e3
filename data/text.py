"""A text corpus, from the config to its tokens: find it, check it, encode it, split it.

A corpus is read in passes of bounded memory, so that a file may be larger than the machine's memory: one pass checks
and counts, one encodes; for bpe, two between them learn the merges and count the tokens. Caches live in the folder
`DELTAFLOW_CACHE`, or else in the user's cache folder.
"""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .batches import MOST_TOKENS, gather, heldout_starts, window_starts
from .bpe import learn_from, parts
from .config import BPE_VOCAB, DataConfig, problems
from .corpus import Corpus, Mapped, cache_folder, changed, find, reason, replacing, texts
from .errors import DataError
from .floors import counts, unigram
from .source import DataSpec
from .tokenizer import CHAR_LIMIT, ByteTokenizer, CharTokenizer, Tokenizer, code_points, token_dtype

DEVICE_BYTES = 256 * 2**20  # of tokens, up to which placement auto means device


@dataclass(frozen=True, eq=False)
class Windows:
    """One long sequence of tokens, split in two: windows of it are the batches. Both arrays are read-only."""

    train: NDArray[np.unsignedinteger]  # [n]
    val: NDArray[np.unsignedinteger]  # [m], the last val_fraction of the corpus
    sha256: str  # of the corpus's bytes
    source: str  # one line for people
    placement: str  # "device" or "host"; the arrays of the latter are memory-mapped
    context: int  # T
    vocab_size: int
    mapped: Mapped | None  # what lies behind the arrays of the host

    @property
    def form(self) -> DataSpec:
        return DataSpec("lm", self.context, self.vocab_size, self.vocab_size)

    @property
    def details(self) -> str:
        sizes = f"{len(self.train):,} + {len(self.val):,} held out, vocabulary {self.vocab_size}"
        return f"tokens {sizes}, on the {self.placement}"

    @property
    def floors(self) -> dict[str, float]:
        """Nobody knows the entropy of a text, but what knowing no more than how often each token comes costs."""
        return {"unigram": self._unigram}

    @cached_property
    def _unigram(self) -> float:
        return unigram(counts(self.train), counts(self.val), self.vocab_size)

    @property
    def resident(self) -> tuple[np.ndarray, np.ndarray] | None:
        return (self.train, self.val) if self.placement == "device" else None

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> np.ndarray:
        """Starts [steps, B], or windows [steps, B, T+1] gathered on the host."""
        starts = window_starts(len(self.train), self.context, batch, seed, first_step, steps)
        return starts if self.placement == "device" else self._windows(self.train, starts)

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Windows that tile the split, and their weights."""
        starts, weights = heldout_starts(len(self.val), self.context, batch, batches)
        return starts if self.placement == "device" else self._windows(self.val, starts), weights

    def _windows(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Raises DataError when the file behind the tokens is another by now."""
        if self.mapped is not None:
            self.mapped.check()
        return gather(tokens, starts, self.context)


@dataclass(frozen=True, eq=False)
class Dataset(Windows):
    """The tokens of a corpus of text."""

    tokenizer: Tokenizer
    note: str = ""

    @property
    def details(self) -> str:
        return super().details + self.note


def open_dataset(config: DataConfig) -> Dataset:
    """The corpus that the config names, as tokens. Raises DataError with one line for whatever can go wrong."""
    for key, what in problems(config):
        raise DataError(f"data.{key}: {what}")
    corpus = find(config)
    facts = _scan(corpus, config.tokenizer)
    source, note = f"{corpus.name} ({corpus.note}{facts.n_tokens:,} {_unit(config)})", ""
    if config.tokenizer == "bpe":
        tokenizer, facts, n_train, note = _merged(config, corpus, facts)
    else:
        tokenizer = CharTokenizer(facts.vocab) if config.tokenizer == "char" else ByteTokenizer()
        n_train = split(config, corpus.label, facts.n_tokens, _unit(config))
        if tokenizer.vocab_size < 2:
            raise DataError(f"{corpus.label} holds no character but {facts.vocab!r}: nothing is there to be told apart")
    size = facts.n_tokens * token_dtype(tokenizer.vocab_size).itemsize
    placement = placed(config, size)
    tokens, behind = _on_host(corpus, facts, tokenizer) if placement == "host" else (None, None)
    if tokens is None:
        tokens = _in_memory(corpus, facts, tokenizer)
    splits = (tokens[:n_train], tokens[n_train:], facts.sha256, source, placement)
    return Dataset(*splits, config.context, tokenizer.vocab_size, behind, tokenizer, note)


def _merged(config: DataConfig, corpus: Corpus, facts: "_Facts") -> tuple[Tokenizer, "_Facts", int, str]:
    """The bpe tokenizer of a corpus of `facts.n_tokens` characters; its facts in tokens, those to train on, a note.

    The split is at the very character at which it is with tokenizer char, so that both hold out the same text.
    """
    characters, wanted = facts.n_tokens, BPE_VOCAB if config.vocab_size is None else config.vocab_size
    held_out = _held_out(config, characters)
    tokenizer, n_train, n_val = learn_from(corpus, facts.sha256, characters, characters - held_out, wanted)
    _check_lengths(config, corpus.label, n_train, n_val, "tokens")
    note = f", {held_out / n_val:.3g} characters a held-out token"
    if tokenizer.vocab_size < wanted:
        note += f"; data.vocab_size {wanted} is out of reach: no pair of tokens is left that occurs twice"
    return tokenizer, replace(facts, n_tokens=n_train + n_val, cut=characters - held_out), n_train, note


@dataclass(frozen=True)
class _Facts:
    """What one pass over a corpus tells."""

    sha256: str
    n_tokens: int  # characters for bpe, until its merges are known
    vocab: str = ""  # of char
    first: int = 0  # byte where the text starts, behind a byte order mark
    cut: int | None = None  # characters before the split, which no token of bpe spans


def _scan(corpus: Corpus, tokenizer: str) -> _Facts:
    """One pass that hashes, checks and counts. Raises DataError when the corpus is empty or not UTF-8."""
    digest, n_bytes = hashlib.sha256(), 0

    def seen(chunk: bytes) -> None:
        nonlocal n_bytes
        digest.update(chunk)
        n_bytes += len(chunk)

    n_characters, n_text = 0, 0
    present = np.zeros(0x110000, bool)
    for text in texts(corpus, seen):
        n_characters += len(text)
        if tokenizer == "char":
            present[code_points(text)] = True
        if tokenizer == "byte":
            n_text += len(text.encode())
    if not n_characters:
        raise DataError(f"{corpus.label} is empty")
    vocab = "".join(map(chr, np.flatnonzero(present)))
    if len(vocab) > CHAR_LIMIT:
        raise DataError(
            f"{corpus.label} has {len(vocab):,} different characters, at most {CHAR_LIMIT:,} can be tokens; "
            "set data.tokenizer: byte"
        )
    if tokenizer == "byte":
        return _Facts(digest.hexdigest(), n_text, first=n_bytes - n_text)
    return _Facts(digest.hexdigest(), n_characters, vocab)


def placed(config: DataConfig, size: int) -> str:
    """`data.placement` with auto resolved for tokens of `size` bytes."""
    if config.placement != "auto":
        return config.placement
    return "device" if size <= DEVICE_BYTES else "host"


def split(config: DataConfig, label: str, n: int, unit: str) -> int:
    """Tokens to train on. Raises DataError when a part is too short for a window, and says what would do."""
    n_val, fraction = _held_out(config, n), Fraction(repr(config.val_fraction))
    need = config.context + 1
    smallest = max(ceil(need / (1 - fraction)), config.context * fraction.denominator // fraction.numerator + 1)
    advice = f", the smallest corpus for this context {smallest:,} {unit}"
    _check_lengths(config, label, n - n_val, n_val, unit, advice)
    return n - n_val


def _held_out(config: DataConfig, n: int) -> int:
    """How many of n: `val_fraction` as written, where 0.1 is a tenth, so that no rounding moves the split."""
    return ceil(n * Fraction(repr(config.val_fraction)))


def _check_lengths(config: DataConfig, label: str, n_train: int, n_val: int, unit: str, advice: str = "") -> None:
    """Raises DataError when a part is too short for a window, or both are too long for their positions."""
    if n_train + n_val > MOST_TOKENS:
        n = n_train + n_val
        raise DataError(f"{label} has {n:,} {unit}, at most {MOST_TOKENS:,} have positions that fit an int32")
    need, largest = config.context + 1, min(n_train, n_val) - 1
    if largest < config.context:
        raise DataError(
            f"{label} is too short: {n_train:,} {unit} to train on and {n_val:,} held out "
            f"(data.val_fraction {config.val_fraction}), each must be at least data.context + 1 = {need:,}; "
            + (f"the largest context here is {largest:,}" if largest >= 1 else "no context would do here")
            + advice
        )


def _unit(config: DataConfig) -> str:
    return "bytes" if config.tokenizer == "byte" else "characters"


# Where the tokens go


def _in_memory(corpus: Corpus, facts: _Facts, tokenizer: Tokenizer) -> NDArray[np.unsignedinteger]:
    tokens = np.empty(facts.n_tokens, token_dtype(tokenizer.vocab_size))
    done = 0
    for part in _encoded(corpus, facts, tokenizer):
        tokens[done : done + len(part)] = part
        done += len(part)
    tokens.flags.writeable = False
    return tokens


def _encoded(corpus: Corpus, facts: _Facts, tokenizer: Tokenizer) -> Iterator[NDArray[np.unsignedinteger]]:
    """The tokens in parts, n_tokens in all. Raises DataError when the corpus is no longer the one that was scanned."""
    digest = hashlib.sha256()
    done = 0
    whole = texts(corpus, digest.update)
    for text in whole if facts.cut is None else (piece for _, piece in parts(whole, facts.cut)):
        try:
            part = tokenizer.encode(text)
        except DataError:
            break
        done += len(part)
        if done > facts.n_tokens:
            break
        yield part
    if digest.hexdigest() != facts.sha256:
        raise changed(corpus)


def _on_host(corpus: Corpus, facts: _Facts, tokenizer: Tokenizer) -> tuple[NDArray[np.unsignedinteger], Mapped]:
    """Memory-mapped tokens: the file itself when its bytes are the tokens, else a file of tokens made once."""
    if isinstance(tokenizer, ByteTokenizer) and corpus.path is not None:
        behind = Mapped.of(corpus.label, corpus.path)
        try:
            return np.memmap(corpus.path, np.uint8, "r", offset=facts.first, shape=(facts.n_tokens,)), behind
        except (OSError, ValueError) as error:
            raise DataError(f"{corpus.label} can't be memory-mapped ({reason(error)})") from None
    dtype = token_dtype(tokenizer.vocab_size)
    parted = "" if facts.cut is None else f" {facts.cut}"
    key = hashlib.sha256(f"{facts.sha256} {sorted(tokenizer.to_json().items())}{parted}".encode()).hexdigest()
    path = cache_folder() / "tokens" / f"{key}.npy"
    try:
        if (tokens := _load(path, dtype, facts.n_tokens)) is None:
            _write(path, dtype, facts.n_tokens, _encoded(corpus, facts, tokenizer))
            tokens = _load(path, dtype, facts.n_tokens)
    except OSError as error:
        raise DataError(
            f"the token cache {str(path.parent)!r} can't be used ({reason(error)}); set DELTAFLOW_CACHE to a folder "
            "with room, or data.placement: device"
        ) from None
    assert tokens is not None
    return tokens, Mapped.of(f"the token cache {str(path)!r}", path)


def mapped(path: Path) -> np.ndarray:
    """The array of an .npy, memory-mapped; never unpickled. Raises OSError; ValueError for a file that is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's on a header that Python 2 wrote, or on an empty one
            return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        raise
    except Exception as error:  # a crafted header: SyntaxError, TokenError, OverflowError, RecursionError ...
        raise ValueError(f"no header of an .npy: {type(error).__name__}") from None


def _load(path: Path, dtype: np.dtype, n: int) -> np.ndarray | None:
    """The cached tokens, or None when there are none or the file is not what it should be."""
    try:
        tokens = mapped(path)
    except (FileNotFoundError, ValueError):
        return None
    return tokens if tokens.dtype == dtype and tokens.shape == (n,) else None


def _write(path: Path, dtype: np.dtype, n: int, encoded: Iterator[np.ndarray]) -> None:
    """A whole .npy or none. Plain writes, since a full disk kills whoever maps it."""
    with replacing(path) as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
        )
        for part in encoded:
            file.write(part.tobytes())
