"""Tokenizers: characters, bytes or merged bytes as token ids, and back. Each is a frozen value that JSON can hold."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import DataError

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


class BytesTokenizer:
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
class ByteTokenizer(BytesTokenizer):
    """One token a byte of the text's UTF-8 form; 256 of them whatever the corpus.

    >>> ByteTokenizer().encode("aé").tolist()
    [97, 195, 169]
    """

    _tokens = tuple(bytes([byte]) for byte in range(256))

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        return np.frombuffer(utf8(text), np.uint8)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


def from_json(data: Any) -> Tokenizer:
    """The tokenizer that `to_json` wrote. Raises DataError for anything else."""
    match data:
        case {"kind": "char", "vocab": str(vocab), **rest} if not rest:
            return CharTokenizer(vocab)
        case {"kind": "byte", **rest} if not rest:
            return ByteTokenizer()
        case {"model": _}:
            from .bpe import BpeTokenizer

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
