"""Tokenizers: characters, bytes or merged bytes as token ids, and back. Each is a frozen value that JSON can hold."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import DataError, reason

CHAR_LIMIT = 65_536
_SLICE = 1 << 18  # characters encoded at a time: the work arrays stay in the processor's cache


class Tokenizer(Protocol):
    """A map from text to ids in [0, vocab_size) and back."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids [n], of the smallest unsigned dtype for the vocabulary. Raises DataError for a foreign character."""
        ...

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of these ids [n]. Raises DataError for an id outside [0, vocab_size)."""
        ...

    def token_text(self, token: int) -> str:
        """One token, printable on one line, for tables."""
        ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class CharTokenizer:
    r"""One token a character; the id is the character's place in `vocab`, which is sorted and has no repeats.

    >>> tokenizer = CharTokenizer("\nabc")
    >>> tokenizer.encode("cab\n").tolist(), tokenizer.decode([1, 2, 3])
    ([3, 1, 2, 0], 'abc')
    """

    vocab: str

    def __post_init__(self) -> None:
        if self.vocab != "".join(sorted(set(self.vocab))):
            raise DataError(f"tokenizer: vocab must be sorted and without repeats, got {_listing(self.vocab)}")
        if not 1 <= len(self.vocab) <= CHAR_LIMIT:
            raise DataError(f"tokenizer: vocab must have 1 to {CHAR_LIMIT:,} characters, got {len(self.vocab):,}")

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        id_of = np.full(0x110000, -1, np.int32)  # by code point
        id_of[code_points(self.vocab)] = np.arange(len(self.vocab))
        ids = np.empty(len(text), token_dtype(self.vocab_size))
        for start in range(0, len(text), _SLICE):
            part = id_of[code_points(text[start : start + _SLICE])]
            if part.min() < 0:
                at = start + int(part.argmin())
                character = text[at]
                relatives = (character.swapcase(), unicodedata.normalize("NFKD", character)[:1])
                near = [c for c in relatives if c != character and len(c) == 1 and c in self.vocab]
                hint = f"{printable(near[0])} is; " if near else ""
                raise DataError(
                    f"character {printable(character)} (U+{ord(character):04X}) at position {at:,} is not in the "
                    f"corpus; {hint}the corpus has {len(self.vocab):,} characters: {_listing(self.vocab)}"
                )
            ids[start : start + _SLICE] = part
        return ids

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        points = code_points(self.vocab)[_checked(ids, self.vocab_size)]
        return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def token_text(self, token: int) -> str:
        return printable(self.vocab[_checked([token], self.vocab_size)[0]])

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "vocab": self.vocab}


class _OfBytes:
    """Common part of tokenizers whose tokens are sequences of bytes."""

    _tokens: Sequence[bytes]  # in the order of their ids

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text, with U+FFFD in place of bytes that are not UTF-8, such as sampled ones."""
        return b"".join(self._tokens[index] for index in _checked(ids, self.vocab_size)).decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        """The text of a token; its bytes when they are a part of a character."""
        content = self._tokens[_checked([token], self.vocab_size)[0]]
        try:
            return printable(content.decode("utf-8"))
        except UnicodeDecodeError:
            return f"0x{content.hex().upper()}" if min(content) >= 0x80 else repr(content)


@dataclass(frozen=True)
class ByteTokenizer(_OfBytes):
    """One token a byte of the text's UTF-8 form; 256 of them whatever the corpus.

    >>> ByteTokenizer().encode("aé").tolist()
    [97, 195, 169]
    """

    _tokens = tuple(bytes([byte]) for byte in range(256))

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        return np.frombuffer(utf8(text), np.uint8)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


@dataclass(frozen=True)
class BpeTokenizer(_OfBytes):
    """Byte-pair encoding of UTF-8 (Sennrich et al. 2016, 1508.07909), by the package `tokenizers` (extra `[bpe]`).

    As in GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.2), text is first
    cut into words, a space going with the word behind it, and no token spans two words; tokens are written in an
    alphabet of one character a byte (a space is Ġ).

    `data` is the package's own JSON (`Tokenizer.to_str`, tokenizer.json of Hugging Face): byte-level BPE without
    normalization, special tokens or dropout. Raises DataError for another one.
    """

    data: dict[str, Any]

    @staticmethod
    def of(merges: Iterable[tuple[str, str]]) -> "BpeTokenizer":
        """The tokenizer of merges in the order in which they apply. Each byte is its own id, the first merge is 256."""
        package, merges = hf_tokenizers(), list(merges)
        vocab = {character: byte for byte, character in enumerate(ALPHABET)}
        for left, right in merges:
            vocab.setdefault(left + right, len(vocab))  # two merges may make the same token
        library = package.Tokenizer(package.models.BPE(vocab, merges))
        library.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = package.decoders.ByteLevel()
        return BpeTokenizer(json.loads(library.to_str()))

    def __post_init__(self) -> None:
        _ = self._tokens  # which checks them

    @cached_property
    def _tokens(self) -> list[bytes]:  # pyright: ignore[reportIncompatibleVariableOverride]
        match self.data:
            case {
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
                "post_processor": None,
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "vocab": dict(vocab),
                    "merges": list(),
                },
            } if set(ALPHABET) <= vocab.keys() and "" not in vocab:
                by_id = {index: token for token, index in vocab.items() if type(index) is int}
                try:
                    return [bytes(map(ALPHABET.index, by_id[index])) for index in range(len(vocab))]
                except (KeyError, ValueError):
                    pass
        raise DataError(
            "tokenizer: expected byte-level BPE, with an id for each byte and without gaps, special tokens or dropout, "
            f"got {str(self.data)[:100]!r}"
        )

    @cached_property
    def library(self) -> Any:
        """The package's tokenizer. Raises DataError without the package, or for merges that it refuses."""
        try:
            return hf_tokenizers().Tokenizer.from_str(json.dumps(self.data))
        except DataError:
            raise
        except Exception as error:  # the package has no class for it
            raise DataError(f"tokenizer: {reason(error)}") from None

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        utf8(text)
        dtype = token_dtype(self.vocab_size)
        parts = self.library.encode_batch_fast(list(pieces([text], PIECE)))
        return np.concatenate([np.empty(0, dtype), *(np.array(part.ids, dtype) for part in parts)])

    def to_json(self) -> dict[str, Any]:
        return self.data


_SHOWN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = iter(range(0x100, 0x200))
# GPT-2's: byte b is written ALPHABET[b], itself where that is printable.
ALPHABET = "".join(chr(byte if byte in _SHOWN else next(_OTHERS)) for byte in range(256))
PIECE = 1 << 16  # characters that the package gets at a time: its own records of them are many times as large
# The last end of a word in sight. To Python \x1c to \x1f are spaces too, to GPT-2's pattern they are not.
_WORD_END = re.compile(r".*\S(?=[^\S\x1c-\x1f])", re.DOTALL)


def pieces(texts: Iterable[str], size: int) -> Iterator[str]:
    """A text in pieces of at most `size` characters, which are encoded apart as they would be together.

    They do not depend on the parts in which the text comes. They end where a word does and space follows: no word of
    GPT-2's pattern continues there, and none looks back. Only a stretch of `size` characters without such a place is
    cut elsewhere.

    >>> list(pieces(["one t", "wo  three"], 8))
    ['one two', '  three']
    """
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start > size:
            match = _WORD_END.match(rest, start, start + size + 1)
            end = match.end() if match else start + size
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def hf_tokenizers() -> Any:
    """The package `tokenizers`. Raises DataError without it."""
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            "data.tokenizer: bpe needs tokenizers; install it with pip install tokenizers, or -e '.[bpe]'"
        ) from None
    return tokenizers


def from_json(data: Any) -> Tokenizer:
    """The tokenizer that `to_json` wrote. Raises DataError for anything else."""
    match data:
        case {"kind": "char", "vocab": str(vocab), **rest} if not rest:
            return CharTokenizer(vocab)
        case {"kind": "byte", **rest} if not rest:
            return ByteTokenizer()
        case {"model": _}:
            return BpeTokenizer(data)
    raise DataError(
        "tokenizer: expected a char tokenizer with its vocab, a byte tokenizer, or the tokenizer.json of a byte-level "
        f"BPE, got {str(data)[:100]!r}"
    )


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned dtype that holds ids below vocab_size."""
    return np.min_scalar_type(vocab_size - 1)


def code_points(text: str) -> NDArray[np.unsignedinteger]:
    """uint32 code points [n], one a character; a lone surrogate passes as itself."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def utf8(text: str) -> bytes:
    """The text's UTF-8 form. Raises DataError for a lone surrogate, which has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"character {ascii(text[error.start])} (U+{code:04X}) at position {error.start} "
            "is a lone surrogate, which has no UTF-8 form"
        ) from None


def printable(text: str) -> str:
    """Text in quotes; escaped where it would be invisible, or would combine with its neighbour."""
    return ascii(text) if unicodedata.category(text[0]).startswith("M") else repr(text)


def _listing(vocab: str, at_most: int = 100) -> str:
    return repr(vocab) if len(vocab) <= at_most else f"{vocab[:at_most]!r} and {len(vocab) - at_most:,} more"


def _checked(ids: Sequence[int] | np.ndarray, vocab_size: int) -> NDArray[np.integer]:
    array = np.asarray(ids, dtype=None if len(ids) else np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"token ids must be a list of integers, got shape {array.shape} of {array.dtype}")
    outside = (array < 0) | (array >= vocab_size)
    if outside.any():
        raise DataError(f"token ids must be 0 to {vocab_size - 1}, got {array[outside.argmax()]}")
    return array
