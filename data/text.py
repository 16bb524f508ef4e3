"""A text corpus, from the config to its tokens: find it, check it, encode it, split it.

A corpus is read in passes of bounded memory, so that a file may be larger than the machine's memory: one pass checks
and counts, one encodes. Caches live in the folder `DELTAFLOW_CACHE`, or else in the user's cache folder.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from data.config import DataConfig, problems
from data.corpus import Corpus, cache_folder, find, reason, texts
from data.tokenizer import (
    CHAR_LIMIT,
    ByteTokenizer,
    CharTokenizer,
    DataError,
    Tokenizer,
    code_points,
    token_dtype,
)

DEVICE_BYTES = 256 * 2**20  # of tokens, up to which placement auto means device
_MOST_TOKENS = 2**31


@dataclass(frozen=True, eq=False)
class Dataset:
    """The tokens of a corpus, split in two. Both arrays are read-only."""

    train: UInt[np.ndarray, " n"]
    val: UInt[np.ndarray, " m"]  # the last val_fraction of the corpus
    tokenizer: Tokenizer
    sha256: str  # of the corpus's bytes
    source: str  # one line for people
    placement: str  # "device" or "host"; the arrays of the latter are memory-mapped

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size


def open_dataset(config: DataConfig) -> Dataset:
    """The corpus that the config names, as tokens. Raises DataError with one line for whatever can go wrong."""
    for key, what in problems(config):
        raise DataError(f"data.{key}: {what}")
    corpus = find(config)
    facts = _scan(corpus, characters=config.tokenizer == "char")
    tokenizer = CharTokenizer(facts.vocab) if config.tokenizer == "char" else ByteTokenizer()
    n_train = _split(config, corpus.label, facts.n_tokens)
    size = facts.n_tokens * token_dtype(tokenizer.vocab_size).itemsize
    placement = config.placement
    if placement == "auto":
        placement = "device" if size <= DEVICE_BYTES else "host"
    tokens = _mapped(corpus, facts, tokenizer) if placement == "host" else _in_memory(corpus, facts, tokenizer)
    source = f"{corpus.name} ({corpus.note}{facts.n_tokens:,} {_unit(config)})"
    return Dataset(tokens[:n_train], tokens[n_train:], tokenizer, facts.sha256, source, placement)


@dataclass(frozen=True)
class _Facts:
    """What one pass over a corpus tells."""

    sha256: str
    n_tokens: int
    vocab: str  # "" for bytes
    first: int  # byte where the text starts, behind a byte order mark


def _scan(corpus: Corpus, characters: bool) -> _Facts:
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
        if characters:
            present[code_points(text)] = True
        else:
            n_text += len(text.encode())
    if not n_characters:
        raise DataError(f"{corpus.label} is empty")
    vocab = "".join(map(chr, np.flatnonzero(present)))
    if len(vocab) > CHAR_LIMIT:
        raise DataError(
            f"{corpus.label} has {len(vocab):,} different characters, at most {CHAR_LIMIT:,} can be tokens; "
            "set data.tokenizer: byte"
        )
    if characters:
        return _Facts(digest.hexdigest(), n_characters, vocab, 0)
    return _Facts(digest.hexdigest(), n_text, vocab, n_bytes - n_text)


def _split(config: DataConfig, label: str, n: int) -> int:
    """Tokens to train on. Raises DataError when a part is too short for a window, and says what would do."""
    if n > _MOST_TOKENS:
        raise DataError(f"{label} has {n:,} {_unit(config)}, at most {_MOST_TOKENS:,} have positions that fit an int32")
    fraction = Fraction(repr(config.val_fraction))  # as written: 0.1 is a tenth, so that no rounding moves the split
    n_val = ceil(n * fraction)
    need = config.context + 1
    if min(n - n_val, n_val) >= need:
        return n - n_val
    smallest = max(ceil(need / (1 - fraction)), config.context * fraction.denominator // fraction.numerator + 1)
    largest = min(n - n_val, n_val) - 1
    raise DataError(
        f"{label} is too short: {n - n_val:,} {_unit(config)} to train on and {n_val:,} held out "
        f"(data.val_fraction {config.val_fraction}), each must be at least data.context + 1 = {need:,}; "
        + (f"the largest context here is {largest:,}" if largest >= 1 else "no context would do here")
        + f", the smallest corpus for this context {smallest:,} {_unit(config)}"
    )


def _unit(config: DataConfig) -> str:
    return "characters" if config.tokenizer == "char" else "bytes"


# Where the tokens go


def _in_memory(corpus: Corpus, facts: _Facts, tokenizer: Tokenizer) -> UInt[np.ndarray, " n"]:
    tokens = np.empty(facts.n_tokens, token_dtype(tokenizer.vocab_size))
    done = 0
    for part in _encoded(corpus, facts, tokenizer):
        tokens[done : done + len(part)] = part
        done += len(part)
    tokens.flags.writeable = False
    return tokens


def _encoded(corpus: Corpus, facts: _Facts, tokenizer: Tokenizer) -> Iterator[UInt[np.ndarray, " k"]]:
    """The tokens in parts, n_tokens in all. Raises DataError when the corpus is no longer the one that was scanned."""
    digest = hashlib.sha256()
    done = 0
    for text in texts(corpus, digest.update):
        try:
            part = tokenizer.encode(text)
        except DataError:
            break
        done += len(part)
        if done > facts.n_tokens:
            break
        yield part
    if digest.hexdigest() != facts.sha256:
        raise DataError(f"{corpus.label} changed while it was read; start again when it is complete")


def _mapped(corpus: Corpus, facts: _Facts, tokenizer: Tokenizer) -> UInt[np.ndarray, " n"]:
    """Memory-mapped tokens: the file itself when its bytes are the tokens, else a file of tokens made once.

    The file must then stay as it is while it is in use, as with any memory map.
    """
    if isinstance(tokenizer, ByteTokenizer) and corpus.path is not None:
        try:
            return np.memmap(corpus.path, np.uint8, "r", offset=facts.first, shape=(facts.n_tokens,))
        except (OSError, ValueError) as error:
            raise DataError(f"{corpus.label} can't be memory-mapped ({reason(error)})") from None
    dtype = token_dtype(tokenizer.vocab_size)
    key = hashlib.sha256(f"{facts.sha256} {sorted(tokenizer.to_json().items())}".encode()).hexdigest()
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
    return tokens


def _load(path: Path, dtype: np.dtype, n: int) -> np.ndarray | None:
    """The cached tokens, or None when there are none or the file is not what it should be."""
    try:
        tokens = np.lib.format.open_memmap(path, mode="r")  # which never unpickles
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return tokens if tokens.dtype == dtype and tokens.shape == (n,) else None


def _write(path: Path, dtype: np.dtype, n: int, parts: Iterator[np.ndarray]) -> None:
    """A whole .npy or none: written under another name first. Plain writes, since a full disk kills whoever maps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
            )
            for part in parts:
                file.write(part.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
